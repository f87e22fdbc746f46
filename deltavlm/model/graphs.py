"""ONNX graphs of a checkpoint, for runtimes without torch: written here, run by `model.openvino`.

    encode.onnx    both images -> masks, and what the Q-Former reads of a pair
    query.onnx     that and a question -> soft prompt
    language.onnx  embeddings of prompt or token, and the key/value cache -> logits, and what it adds to that

The weights are those of model.safetensors, which the graphs refer to by offset; a graph fits every weight
file of the same layout, which `layout_digest` identifies.

B pairs, R rows, T image tokens, D their width, A evidence tokens, X cross-attention layers of the Q-Former,
H heads, E width of a head, Q queries, S text tokens, P cached tokens, L language width, Y language layers.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from deltavlm.errors import ConfigError
from deltavlm.files import write_atomic
from deltavlm.model.deltavlm import DeltaVLM
from deltavlm.model.difference import both_dates
from deltavlm.model.folder import (
    CACHE,
    FEATURES,
    GRAPHS,
    LAYOUT,
    STEP,
    WEIGHTS,
    TensorSlot,
    layout_digest,
    tensor_slots,
)

if TYPE_CHECKING:
    import onnx

OPSET = 17
MASKED = -1e9  # added to the logits of attention where there is nothing to attend to


class PairEncoder(nn.Module):
    """Encoder of pairs: images (2, B, 3, H, W) uint8, before first -> mask probabilities (B, C, h, w),
    evidence tokens (B, A, D), keys and values (B, X, H, T, E) of the Q-Former's cross-attention, and counts
    (B, K)."""

    def __init__(self, model: DeltaVLM) -> None:
        super().__init__()
        self.vision, self.difference, self.dense = model.vision, model.difference, model.dense
        self.qformer = model.qformer

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        assert self.dense is not None
        dates, maps = self.vision(self.vision.normalise(images.flatten(0, 1)))
        before, after = both_dates(dates)
        maps, distances = self.difference.compare(maps)
        tokens = self.difference(before, after, distances)
        halves = tokens.chunk(2, dim=1)
        logits, density = self.dense(torch.cat(halves, dim=2), maps, distances)
        evidence = self.dense.evidence(logits, density, distances)
        tokens = torch.cat([tokens, evidence], dim=1)
        bert: Any = self.qformer.bert
        attentions = [
            layer.crossattention.attention for layer in bert.encoder.layer if layer.has_cross_attention
        ]
        heads = bert.config.num_attention_heads
        keys, values = (
            torch.stack([split_heads(getattr(each, name)(tokens), heads) for each in attentions], dim=1)
            for name in ("key", "value")
        )
        return logits.softmax(dim=1), evidence, keys, values, density.sum(dim=(2, 3))


class Query(nn.Module):
    """Q-Former: evidence tokens (R, A, D), keys and values (R, X, H, T, E), and ids and mask (R, S) of a
    question -> soft prompt (R, Q, L)."""

    def __init__(self, model: DeltaVLM) -> None:
        super().__init__()
        self.qformer, self.projection = model.qformer, model.projection

    def forward(self, evidence: Tensor, keys: Tensor, values: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        bert: Any = self.qformer.bert
        queries = self.qformer.queries(evidence)
        count = self.qformer.query_tokens.shape[1]
        words = bert.embeddings.word_embeddings(ids)
        words = words + bert.embeddings.position_embeddings.weight[: ids.shape[1]]
        x = bert.embeddings.layernorm(torch.cat([queries, words], dim=1))
        seen = torch.cat([torch.ones_like(x[:, :count, 0]), mask.to(x.dtype)], dim=1)
        bias = (1 - seen)[:, None, None] * MASKED
        crossings = 0
        for layer in bert.encoder.layer:
            is_last = layer is bert.encoder.layer[-1]
            attention = layer.attention.attention
            heads = attention.num_attention_heads
            key, value = (split_heads(linear(x), heads) for linear in (attention.key, attention.value))
            if is_last:  # of which the text is not read
                x = x[:, :count]
            mixed = attend(split_heads(attention.query(x), heads), key, value, bias)
            x = layer.attention.output(mixed, x)
            soft, text = x[:, :count], x[:, count:]
            if layer.has_cross_attention:
                query = split_heads(layer.crossattention.attention.query(soft), heads)
                mixed = attend(query, keys[:, crossings], values[:, crossings])
                soft = layer.crossattention.output(mixed, soft)
                crossings += 1
            x = layer.output_query(layer.intermediate_query(soft), soft)
            if not is_last:
                x = torch.cat([x, layer.output(layer.intermediate(text), text)], dim=1)
        prompt: Tensor = self.projection(x)
        return prompt


class LanguageStep(nn.Module):
    """Llama with an explicit cache: embeddings (R, S, L), attention mask (R, P + S), positions (R, S), and
    keys and values (R, H, P, E) of each of Y layers -> logits (R, V) of the last token, and keys and values
    (Y, R, H, S, E) of the S tokens.

    The cache may have places that are not filled yet, where the mask is 0.
    """

    def __init__(self, model: DeltaVLM) -> None:
        super().__init__()
        self.language = model.language

    def forward(
        self, embeds: Tensor, mask: Tensor, positions: Tensor, *cache: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        model: Any = self.language.model
        keys, values = cache[: len(cache) // 2], cache[len(cache) // 2 :]
        heads = self.language.config.num_attention_heads
        angles = positions[..., None].to(embeds.dtype) * model.rotary_emb.inv_freq
        angles = torch.cat([angles, angles], dim=-1)[:, None]
        cos, sin = angles.cos(), angles.sin()
        columns = torch.arange(mask.shape[1])
        rows = torch.arange(embeds.shape[1]) + (mask.shape[1] - embeds.shape[1])
        visible = (columns <= rows[:, None])[None] & (mask[:, None] > 0)
        bias = (1 - visible.to(embeds.dtype))[:, None] * MASKED
        x, step_keys, step_values = embeds, [], []
        for index, layer in enumerate(model.layers):
            attention, h = layer.self_attn, layer.input_layernorm(x)
            key, value = (split_heads(linear(h), heads) for linear in (attention.k_proj, attention.v_proj))
            key = key * cos + rotate_half(key) * sin
            if index == len(model.layers) - 1:  # of which the last token alone is read
                x, h, cos, sin, bias = x[:, -1:], h[:, -1:], cos[:, :, -1:], sin[:, :, -1:], bias[:, :, -1:]
            query = split_heads(attention.q_proj(h), heads)
            query = query * cos + rotate_half(query) * sin
            # one tensor: over cache and step apart, the attention of OpenVINO 2026.4 was 1e-4 off at times
            all_keys = torch.cat([keys[index], key], dim=2)
            all_values = torch.cat([values[index], value], dim=2)
            x = x + attention.o_proj(attend(query, all_keys, all_values, bias))
            x = x + layer.mlp(layer.post_attention_layernorm(x))
            step_keys.append(key)
            step_values.append(value)
        logits = self.language.lm_head(model.norm(x[:, -1]))
        return logits, torch.stack(step_keys), torch.stack(step_values)


def split_heads(x_RSD: Tensor, heads: int) -> Tensor:
    """(R, S, D) -> (R, heads, S, D / heads)."""
    rows, length, width = x_RSD.shape
    return x_RSD.reshape(rows, length, heads, width // heads).transpose(1, 2)


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention of (R, H, S, E) over (R, H, N, E), heads merged again: (R, S, H E).

    bias: added to the attention logits; broadcasts to (R, H, S, N).
    """
    logits = query @ key.transpose(2, 3) * query.shape[-1] ** -0.5
    if bias is not None:
        logits = logits + bias
    mixed: Tensor = logits.softmax(dim=-1) @ value
    return mixed.transpose(1, 2).flatten(2)


def rotate_half(x: Tensor) -> Tensor:
    """Second half of the last axis, negated, before the first: what rotary embedding multiplies by sines."""
    half = x.shape[-1] // 2
    return torch.cat([-x[..., half:], x[..., :half]], dim=-1)


def export_graphs(model: DeltaVLM, folder: Path) -> None:
    """Write the graphs of a checkpoint into its folder, each file atomically.

    model: with the weights of `folder` in float32, in evaluation mode.

    Raises: ConfigError for a model without a mask head; OSError.
    """
    if model.dense is None or not model.dense.config.evidence:
        raise ConfigError("graphs are for a checkpoint with a mask head, such as nano; use `runtime='torch'`")
    path = folder / WEIGHTS
    slots, digest = tensor_slots(path), layout_digest(path)
    for name, graph in zip(GRAPHS, _trace(model), strict=True):
        _refer_to_weights(graph, slots)
        entry = graph.metadata_props.add()
        entry.key, entry.value = LAYOUT, digest
        write_atomic(folder / name, graph.SerializeToString(deterministic=True))


def _trace(model: DeltaVLM) -> Sequence[onnx.ModelProto]:
    """Graphs in the order of GRAPHS, with their weights inside."""
    side, pairs, rows, text = model.vision.config.image_px, 2, 3, 5
    images = torch.zeros((2, pairs, 3, side, side), dtype=torch.uint8)
    encoder, query, language = PairEncoder(model), Query(model), LanguageStep(model)
    with torch.no_grad():
        _, evidence, keys, values, _ = encoder(images)
        of_rows = [each[:1].repeat_interleave(rows, dim=0) for each in (evidence, keys, values)]
        config: Any = model.language.config
        cache = torch.zeros(
            rows,
            config.num_attention_heads,
            text,
            config.hidden_size // config.num_attention_heads,
        )
    ids = torch.zeros((rows, text), dtype=torch.long)
    step = (torch.zeros(rows, 2, config.hidden_size), torch.ones((rows, text + 2), dtype=torch.long))
    positions = torch.arange(2).repeat(rows, 1) + text
    row = {0: "rows"}
    cached = [f"{name}{layer}" for name in CACHE for layer in range(config.num_hidden_layers)]
    return [
        _export(
            encoder,
            {"images": images},
            list(FEATURES),
            {"images": {1: "pairs"}} | {name: {0: "pairs"} for name in FEATURES},
        ),
        _export(
            query,
            dict(zip(("evidence", "keys", "values"), of_rows, strict=True)) | {"ids": ids, "mask": ids + 1},
            ["soft"],
            {name: row for name in ("evidence", "keys", "values", "soft")}
            | {name: {0: "rows", 1: "text"} for name in ("ids", "mask")},
        ),
        _export(
            language,
            {"embeds": step[0], "mask": step[1], "positions": positions}
            | {name: cache.clone() for name in cached},
            list(STEP),
            {"embeds": {0: "rows", 1: "text"}, "positions": {0: "rows", 1: "text"}, "logits": row}
            | {"mask": {0: "rows", 1: "total"}}
            | {name: {0: "rows", 2: "cached"} for name in cached}
            | {name: {1: "rows", 3: "text"} for name in STEP[1:]},
        ),
    ]


def _export(
    module: nn.Module, inputs: Mapping[str, Tensor], outputs: list[str], axes: Mapping[str, Mapping[int, str]]
) -> onnx.ModelProto:
    """Graph of a module; weights keep their names, and nothing is folded into constants.

    The exporter by tracing: the newer one takes minutes for the slices of the feature distance, and names the
    weights anew.
    """
    import onnx

    buffer: Any = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is the older exporter, and that shapes become constants
        torch.onnx.export(
            module.eval(),
            tuple(inputs.values()),
            buffer,
            input_names=list(inputs),
            output_names=outputs,
            dynamic_axes={name: dict(names) for name, names in axes.items()},
            do_constant_folding=False,
            opset_version=OPSET,
            dynamo=False,
        )
    return onnx.load_from_string(buffer.getvalue())


def _refer_to_weights(graph: onnx.ModelProto, slots: Mapping[str, TensorSlot]) -> None:
    """Replace each weight by a reference to its place in model.safetensors, and a cast to float32."""
    from onnx import TensorProto, helper

    casts = []
    tied = {"language.lm_head.weight": "language.model.embed_tokens.weight"}
    for weight in graph.graph.initializer:
        slot = slots.get(weight.name) or slots.get(tied.get(weight.name, ""))
        if slot is None or slot.shape != tuple(weight.dims):
            continue  # a constant of the graph
        stored = f"{weight.name}.stored"
        casts.append(helper.make_node("Cast", [stored], [weight.name], to=TensorProto.FLOAT))
        reference = TensorProto(
            name=stored, dims=weight.dims, data_type=TensorProto.FLOAT16, data_location=TensorProto.EXTERNAL
        )
        for key, value in (("location", WEIGHTS), ("offset", slot.start), ("length", slot.length)):
            entry = reference.external_data.add()
            entry.key, entry.value = key, str(value)
        weight.CopyFrom(reference)
    nodes = [*casts, *graph.graph.node]
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)
