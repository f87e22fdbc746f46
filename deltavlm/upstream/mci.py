"""MCI, the published mask-and-caption model of Change-Agent: names, conversion, verification.

    MCI_model.pth + vocab.json -> config.json, model.safetensors, vocab.json

The published file (github.com/Chen-Yang-Liu/Change-Agent) is a dict of three state dicts. Here its tensors
are named PART/NAME, as in `encoder_dict/cnn.segformer.norm1.weight`. Strict both ways: every tensor is mapped
or on the list of those that nothing reads, and every tensor of ours is filled, in its shape.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deltavlm.errors import InputError, ModelError
from deltavlm.files import folder_bytes, parse_json, read_text
from deltavlm.messages import pluralize
from deltavlm.model.device import DTYPES, meta_device, pick_device
from deltavlm.model.folder import WEIGHTS
from deltavlm.model.mci.config import CLASSES, END, NULL, MCIConfig, read_vocabulary
from deltavlm.model.mci.losses import losses
from deltavlm.model.mci.model import MCIModel, load_folder, save_folder
from deltavlm.model.mci.network import MCI
from deltavlm.upstream.checks import Check, Comparison, read_results
from deltavlm.upstream.kinds import Contents, Converted, Dtype
from deltavlm.upstream.read import describe_source, unpickle
from deltavlm.upstream.write import check_new, check_resources, check_shapes, new_checkpoint

PARTS = ("encoder_dict", "encoder_trans_dict", "decoder_dict")
LEVEL_TOLERANCE = 3e-5  # of the maps of the backbone
TRAIN_TOLERANCE = 1e-3  # of the scores of given words
UNSURE = 255  # in an expected mask: not compared

# Beginning of a published name -> ours; the first match counts. The position tables have the names of the
# other side: `h_embedding` is read by the column of a pixel, `w_embedding` by its row.
PREFIXES = (
    *(
        (f"encoder_dict/cnn.segformer.{published}.", f"backbone.stages.{number - 1}.{ours}.")
        for number in range(1, 5)
        for published, ours in (
            (f"patch_embed{number}.proj", "embed"),
            (f"patch_embed{number}.norm", "embed_norm"),
            (f"block{number}", "blocks"),
            (f"norm{number}", "norm"),
        )
    ),
    ("encoder_trans_dict/h_embedding.", "caption_neck.column_positions."),
    ("encoder_trans_dict/w_embedding.", "caption_neck.row_positions."),
    ("encoder_trans_dict/h_embedding_CD.", "mask_neck.column_positions."),
    ("encoder_trans_dict/w_embedding_CD.", "mask_neck.row_positions."),
    ("encoder_trans_dict/Dynamic_DIF_aware_TR.", "caption_neck.layers."),
    ("encoder_trans_dict/Transformer_aug_CD.", "mask_neck.layers."),
    ("encoder_trans_dict/conv_dif.", "mask_head.difference."),
    ("encoder_trans_dict/conv_fuse.", "mask_head.fuse."),
    ("encoder_trans_dict/to_fused.", "mask_head.upsample."),
    ("encoder_trans_dict/to_seg.", "mask_head.classify."),
    ("decoder_dict/Conv1.", "captioner.join."),
    ("decoder_dict/LN.left.", "captioner.residual."),
    ("decoder_dict/vocab_embedding.", "captioner.embedding."),
    ("decoder_dict/position_encoding.pe", "captioner.word_positions"),
    ("decoder_dict/transformer.layers.", "captioner.layers."),
    ("decoder_dict/wdc.", "captioner.classify."),
)
# Words inside of a name, of the backbone, the necks and the decoder.
WORDS = (
    (".attn.q.", ".attention.query."),
    (".attn.kv.", ".attention.key_value."),  # keys first
    (".attn.proj.", ".attention.out."),
    (".attn.sr.", ".attention.reduce."),
    (".attn.norm.", ".attention.reduce_norm."),
    (".mlp.dwconv.dwconv.", ".mlp.depthwise."),
    (".Q_d_conv.", ".query_mix."),
    (".K_d_conv.", ".key_mix."),
    ("_mix.d_conv_3x3.", "_mix.square."),
    ("_mix.d_conv_1x5.", "_mix.row."),
    ("_mix.d_conv_5x1.", "_mix.column."),
    ("_mix.BN.", "_mix.norm."),
    ("_mix.conv_1.", "_mix.project."),
    (".att.fuse_conv.0.", ".fuse."),
    (".att.fuse_conv.1.", ".fuse_norm."),
    (".att.to_q.", ".query."),
    (".att.to_k.", ".key."),
    (".att.to_v.", ".value."),
    (".att.to_out.0.", ".out."),
    (".feedforward.net.0.", ".fc1."),
    (".feedforward.net.3.", ".fc2."),
    (".self_attn.in_proj_", ".self_attention.in_proj."),
    (".self_attn.out_proj.", ".self_attention.out."),
    (".multihead_attn.in_proj_", ".cross_attention.in_proj."),
    (".multihead_attn.out_proj.", ".cross_attention.out."),
    (".linear1.", ".fc1."),
    (".linear2.", ".fc2."),
)
# Tensors that nothing reads, and why.
_NECK = r"encoder_trans_dict/(Dynamic_DIF_aware_TR|Transformer_aug_CD)\.\d+\.[01]\."
IGNORED = (
    (r".*\.num_batches_tracked", "a counter of training"),
    (_NECK + r"PCM\.\d\..*", "convolutions that are not called"),
    (_NECK + r"att\.[QKV]_LN\..*", "norms that are not called"),
    (_NECK + r"att\.fuse_conv2\..*", "convolutions that are not called"),
    (r"encoder_trans_dict/Dynamic_DIF_aware_TR\.\d+\.2\.(weight|bias)", "a layer that is not called"),
    (r"decoder_dict/transformer\.layers\.\d+\.fc_alpha[123]\..*", "layers that are not called"),
    (r"decoder_dict/position_encoding\.embedding_1D\.weight", "a table that is not read"),
)


def from_published(name: str) -> str | None:
    """Name in our model of a published tensor PART/NAME; None for one that nothing reads.

    Raises: KeyError for a name in neither list.

    >>> from_published("encoder_dict/cnn.segformer.block2.0.attn.sr.weight")
    'backbone.stages.1.blocks.0.attention.reduce.weight'
    """
    if any(re.fullmatch(pattern, name) for pattern, _ in IGNORED):
        return None
    for published, ours in PREFIXES:
        if name.startswith(published):
            name = ours + name.removeprefix(published)
            for old, new in WORDS:
                name = name.replace(old, new)
            return name
    raise KeyError(name)


@dataclass(frozen=True, slots=True)
class Sources:
    """Local files, the input of a conversion."""

    checkpoint: Path  # MCI_model.pth
    vocab: Path  # vocab.json
    heads_config: Path | None = None  # JSON with the numbers of heads, which weights do not show


def convert(sources: Sources, folder: Path, notify: Callable[[str], None] = lambda text: None) -> Converted:
    """Convert the published files into the checkpoint `folder`, atomically.

    Raises: InputError for files that do not fit together, OutputError if `folder` exists or cannot be
        written.
    """
    check_new(folder)
    published = read_published(sources.checkpoint)
    weights, ignored = rename(published, sources.checkpoint)
    config = read_config(weights, sources, folder.name)
    words = _read_words(sources.vocab, config)
    with meta_device():
        expected = {name: tensor.shape for name, tensor in MCI(config).state_dict().items()}
    expected = {name: shape for name, shape in expected.items() if not name.endswith("num_batches_tracked")}
    check_shapes({name: tensor.shape for name, tensor in weights.items()}, expected, sources.checkpoint)
    provenance = {
        "checkpoint": describe_source(sources.checkpoint),
        "vocabulary": describe_source(sources.vocab),
    }
    check_resources(folder, sources.checkpoint)
    with new_checkpoint(folder) as scratch:
        notify(f"writing {WEIGHTS}")
        save_folder(scratch, config, words, weights, provenance)
    return Converted(folder, len(weights), ignored, folder_bytes(folder), provenance)


def read_published(path: Path) -> dict[str, Tensor]:
    """Tensors of MCI_model.pth by PART/NAME. Raises: InputError."""
    content = unpickle(path)
    if not isinstance(content, dict) or not all(isinstance(content.get(part), dict) for part in PARTS):
        raise InputError(f"{path} is no checkpoint of MCI: it lacks {', '.join(PARTS)}")
    return {
        f"{part}/{name}": tensor
        for part in PARTS
        for name, tensor in content[part].items()
        if isinstance(tensor, Tensor)
    }


def rename(published: Mapping[str, Tensor], source: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Tensors by our names, and the names of those that nothing reads.

    Raises: InputError naming the first tensor that is in neither list.
    """
    weights: dict[str, Tensor] = {}
    ignored, unknown = [], []
    for key, tensor in published.items():
        try:
            name = from_published(key)
        except KeyError:
            unknown.append(key)
            continue
        if name is None:
            ignored.append(key)
        else:
            weights[name] = tensor.squeeze(1) if name == "captioner.word_positions" else tensor
    if unknown:
        raise InputError(
            f"{source} has {pluralize(len(unknown), 'unknown tensor')}, {unknown[0]} the first; it is not a "
            "checkpoint of MCI"
        )
    return weights, tuple(ignored)


def read_config(weights: Mapping[str, Tensor], sources: Sources, name: str) -> MCIConfig:
    """Configuration of the model, from the shapes of its weights and the numbers of heads.

    Raises: InputError.
    """

    def count(prefix: str) -> int:
        """Number of members of a list of modules."""
        indices = {key.removeprefix(prefix).split(".")[0] for key in weights if key.startswith(prefix)}
        return len(indices)

    stages = range(4)
    try:
        reduce = {
            stage: tensor.shape[2]
            for stage in stages
            if (tensor := weights.get(f"backbone.stages.{stage}.blocks.0.attention.reduce.weight"))
            is not None
        }
        classes = weights["mask_head.classify.1.weight"].shape[0]
        words, decoder_width = weights["captioner.embedding.weight"].shape
        values: dict[str, Any] = {
            "widths": tuple(weights[f"backbone.stages.{stage}.embed.weight"].shape[0] for stage in stages),
            "depths": tuple(count(f"backbone.stages.{stage}.blocks.") for stage in stages),
            "reductions": tuple(reduce.get(stage, 1) for stage in stages),
            "caption_neck_layers": count("caption_neck.layers."),
            "mask_neck_layers": count("mask_neck.layers."),
            "decoder_layers": count("captioner.layers."),
            "decoder_width": decoder_width,
            "decoder_hidden": weights["captioner.layers.0.fc1.weight"].shape[0],
            "position_size": weights["caption_neck.column_positions.weight"].shape[0],
            "words": words,
            "max_words": weights["captioner.word_positions"].shape[0],
        }
    except (KeyError, IndexError, ValueError) as error:
        raise InputError(f"{sources.checkpoint} is no checkpoint of MCI: it lacks {error}") from error
    if classes != len(CLASSES):
        raise InputError(
            f"{sources.checkpoint} has masks of {pluralize(classes, 'class', 'classes')}, not {len(CLASSES)}"
        )
    try:
        return MCIConfig(name=name, **values, **read_heads(sources))
    except ValueError as error:
        raise InputError(
            f"{sources.checkpoint}: {error}; give the numbers of heads with `heads_config`"
        ) from error


def read_heads(sources: Sources) -> dict[str, Any]:
    """Numbers of attention heads, which the shapes of weights do not show.

    They are `backbone_heads` and `heads` of `sources.heads_config` or of expected.json beside the checkpoint,
    there in an object `dims`; without either those of the published model. Raises: InputError.
    """
    beside = sources.checkpoint.with_name("expected.json")
    path = sources.heads_config or (beside if beside.is_file() else None)
    if path is None:
        return {}
    try:
        values = parse_json(read_text(path))
        values = values.get("dims", values)
        return {"backbone_heads": tuple(values["backbone_heads"]), "heads": int(values["heads"])}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} does not tell backbone_heads and heads: {error!r}") from error


def _read_words(path: Path, config: MCIConfig) -> tuple[str, ...]:
    """Words of the vocabulary. Raises: InputError if it is not that of the checkpoint."""
    try:
        words = read_vocabulary(path)
    except ModelError as error:
        raise InputError(str(error)) from error
    if len(words) != config.words:
        raise InputError(f"{path} has {len(words)} words, the checkpoint {config.words}; give its vocab.json")
    return words


def inspect(path: Path) -> Contents:
    """Contents of MCI_model.pth. Raises: InputError."""
    published = read_published(path)
    ignored, unknown = [], []
    for name in published:
        try:
            if from_published(name) is None:
                ignored.append(name)
        except KeyError:
            unknown.append(name)
    parts = []
    for part in PARTS:
        group = [tensor for name, tensor in published.items() if name.startswith(f"{part}/")]
        dtypes = ", ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in group}))
        parts.append((part, len(group), sum(tensor.numel() for tensor in group), dtypes))
    dims: dict[str, Any] = {}
    if not unknown:
        config = read_config(rename(published, path)[0], Sources(path, path), "inspected")
        hidden = {"name", "kind", "no_change", "sources", "files"}
        dims = {each.name: getattr(config, each.name) for each in fields(config) if each.name not in hidden}
    return Contents(path, path.stat().st_size, tuple(parts), tuple(ignored), tuple(unknown), dims)


def verify(folder: Path, expected: Path, dtype: Dtype = "fp32", device: str = "cpu") -> list[Check]:
    """Compare all stages of the model, each pair alone, and the pairs as one batch.

    Raises: InputError if the expected results cannot be read, ModelError if the checkpoint cannot.
    """
    values, arrays = read_results(expected)
    model = load_folder(folder, dtype=DTYPES[dtype], device=pick_device(device))
    comparison = Comparison()
    with torch.inference_mode():
        for index, case in enumerate(values["cases"]):
            _compare_stages(comparison, model.network, arrays, values, index)
            _compare_answers(comparison, model, arrays, [case], "")
        _compare_answers(comparison, model, arrays, values["cases"], ", batched")
    if "train" in values:
        _compare_training(comparison, model.network, arrays, values["train"])
    return comparison.checks()


def _images(arrays: Mapping[str, Tensor], date: str, pairs: list[int]) -> Any:
    """Images (N, 3, H, W) uint8 of one date."""
    return arrays[f"uint8_{date}"][pairs].permute(0, 3, 1, 2).numpy()


def _compare_stages(
    comparison: Comparison, network: MCI, arrays: Mapping[str, Tensor], values: Mapping[str, Any], pair: int
) -> None:
    """Compare the stages of one pair, as far as they are among the expected results."""
    compare, maps = comparison.tensors, {}
    for date in "AB":
        pixels = network.normalise(torch.from_numpy(_images(arrays, date, [pair])))
        stride = values["pixel_stride"]
        compare("pixels", pixels[0, :, ::stride, ::stride], arrays[f"pixel_{date}_{pair}"])
        maps[date] = network.backbone(pixels)
        for level, map_NCHW in enumerate(maps[date], start=1):
            if f"p{pair}/level{level}_{date}" in arrays:
                actual, wanted = map_NCHW[0], arrays[f"p{pair}/level{level}_{date}"]
                compare(f"level {level}", actual, wanted.reshape(actual.shape), LEVEL_TOLERANCE)
    for name, neck in (("mask neck", network.mask_neck), ("caption neck", network.caption_neck)):
        for date, map_NCHW in zip("AB", neck(maps["A"][3], maps["B"][3]), strict=True):
            compare(name, map_NCHW[0], arrays[f"p{pair}/{name.replace(' ', '_')}_{date}"])
    encoding = network(*(network.normalise(torch.from_numpy(_images(arrays, each, [pair]))) for each in "AB"))
    compare("memory", encoding.memory[0], arrays[f"p{pair}/memory"])
    stride = values["mask_logits_stride"]
    compare("mask logits", encoding.mask_logits[0, :, ::stride, ::stride], arrays[f"p{pair}/mask_logits"])
    labels, known = encoding.mask_logits[0].argmax(dim=0).cpu(), arrays[f"p{pair}/mask"] != UNSURE
    comparison.values("mask", bool((labels == arrays[f"p{pair}/mask"])[known].all()), True)
    wanted, captioner = arrays[f"p{pair}/caption_logits"], network.captioner
    words = torch.tensor([values["cases"][pair]["token_ids"][: len(wanted)]], device=encoding.memory.device)
    compare("caption logits", captioner.score(encoding.memory, words)[0], wanted)
    cache, masked = captioner.begin(encoding.memory), words.new_tensor([NULL])
    steps = [captioner.read(words[:, :count], cache, masked) for count in range(1, len(wanted) + 1)]
    compare("caption logits, word by word", torch.cat(steps, dim=1)[0], wanted)


def _compare_training(
    comparison: Comparison, network: MCI, arrays: Mapping[str, Tensor], train: Mapping[str, Any]
) -> None:
    """Compare the losses of a batch, and their gradients relative to the largest of each tensor. Two pairs
    are the batch, and the mask of each is the label of the other."""
    device = network.captioner.classify.weight.device
    pairs, width = train["pairs"], network.captioner.max_words
    words = torch.tensor([[*ids, *[NULL] * (width - len(ids))] for ids in train["token_ids"]], device=device)
    pixels = [network.normalise(torch.from_numpy(_images(arrays, date, pairs))) for date in "AB"]
    labels = torch.stack([arrays[f"p{pair}/mask"].long() for pair in reversed(pairs)]).to(device)
    labels = labels.masked_fill(labels == UNSURE, 0)
    with torch.no_grad():
        memory = network(*pixels).memory
        scores = network.captioner.score(memory, words, (NULL, END))
    comparison.tensors("training, caption logits", scores, arrays["train/caption_logits"], TRAIN_TOLERANCE)
    for name, value in train["losses"].items():
        loss = losses(network, pixels[0], pixels[1], words, labels)[name]
        comparison.tensors(f"loss, {name}", loss.detach(), torch.tensor(value))
        network.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        parameters = dict(network.named_parameters())
        for key, gradient in arrays.items():
            if key.startswith(f"train/{name}/"):
                ours = from_published(key.removeprefix(f"train/{name}/"))
                assert ours is not None
                actual = parameters[ours].grad
                scale = gradient.abs().max()
                comparison.tensors(
                    f"gradients, {name}",
                    torch.zeros_like(gradient) if actual is None else actual.cpu() / scale,
                    gradient / scale,
                )


def _compare_answers(
    comparison: Comparison,
    model: MCIModel,
    arrays: Mapping[str, Tensor],
    cases: list[Mapping[str, Any]],
    suffix: str,
) -> None:
    """Compare captions, counts and changed pixels of a batch of pairs."""
    pairs = [case["pair"] for case in cases]
    encoded = model.encode(_images(arrays, "A", pairs), _images(arrays, "B", pairs))
    findings_of_pairs = model.findings(encoded)
    for case, caption, findings in zip(cases, model.captions(encoded), findings_of_pairs, strict=True):
        comparison.values(f"ids, greedy{suffix}", list(caption.ids), case["token_ids"][1:])
        comparison.values(f"text, greedy{suffix}", caption.text, case["text"])
        comparison.values(f"counts{suffix}", dict(findings.counts), case["counts"])
