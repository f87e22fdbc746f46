"""Models of other systems at full size, with random weights in the published layout.

    python benchmarks/full_size.py mci [--dtype fp32] [--folder FOLDER]
    python benchmarks/full_size.py changechat --layers 2 --dtype bf16

Writes random files as they are published, converts them, and answers the standard questions about a chip of
the sample pair in a process of its own. Prints a row of a Markdown table: parameters, size of the checkpoint,
seconds of conversion, loading, encoding and answering, and the peak resident memory of the process. The files
are removed afterwards. Needs about 1.5 GB of disk and of memory for mci, and 5 GB for changechat with two of
the 32 layers of its language model, all of full width.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # measure this checkout, not an installed copy

import torch  # noqa: E402

from benchmarks.rows import Table, heading, spread  # noqa: E402
from deltavlm.files import format_bytes  # noqa: E402
from deltavlm.upstream import kinds  # noqa: E402
from tests.changechat_reference import tokenizer_model  # noqa: E402
from tests.mci_reference import PUBLISHED, random_weights  # noqa: E402

ROUNDS = {"mci": 5, "changechat": 2}  # the first is not counted
WIDTH, INTERMEDIATE, VOCABULARY = 4096, 11_008, 32_000  # of LLaVA-1.5-7B
TOWER, TOWER_LAYERS, TOWER_INTERMEDIATE, PATCHES = 1024, 24, 4096, 24 * 24  # of CLIP ViT-L/14-336
RANK, ALPHA = 64, 128  # of the published recipe
ANSWERS = """
import json, resource, sys, time
import numpy as np
import rasterio
start = time.perf_counter()
from deltavlm import load_model
from deltavlm.pipeline.answers import phrasebook_of, question_of
from deltavlm.tasks.questions import QuestionSpec
folder, dtype, rounds, *images = sys.argv[1:]
model = load_model(folder, device="cpu", dtype=dtype)
loaded = time.perf_counter()
dates = []
for path in images:
    with rasterio.open(path) as source:
        dates.append(source.read(window=((0, 256), (0, 256)))[None, :3])
specs = [QuestionSpec(task, task) for task in ("caption", "change", "count", "location")]
questions = [question_of(spec, book=phrasebook_of(model)) for spec in specs]
encode, answer = [], []
for _ in range(int(rounds)):
    begun = time.perf_counter()
    encoded = model.encode(*dates)
    middle = time.perf_counter()
    model.answer(encoded, questions)
    encode.append(middle - begun)
    answer.append(time.perf_counter() - middle)
print(json.dumps({
    "load": loaded - start, "encode": encode[1:], "answer": answer[1:],
    "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
}))
"""


def write_mci(folder: Path) -> dict[str, Path]:
    """Random files of MCI in the published layout."""
    torch.save(random_weights(0, PUBLISHED), folder / "MCI_model.pth")
    words = [
        "<NULL>",
        "<UNK>",
        "<START>",
        "<END>",
        *(f"word{number}" for number in range(4, PUBLISHED.words)),
    ]
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    return {"checkpoint": folder / "MCI_model.pth", "vocab": folder / "vocab.json"}


def write_changechat(folder: Path, layers: int) -> dict[str, Path]:
    """Random files of ChangeChat in the published layout, in float16, with this many layers of the Llama."""
    base, vision, adapter = folder / "llava", folder / "clip", folder / "adapter"
    for path in (base, vision, adapter):
        path.mkdir()
    text = {"hidden_size": WIDTH, "num_hidden_layers": layers, "num_attention_heads": 32}
    text |= {"intermediate_size": INTERMEDIATE, "vocab_size": VOCABULARY}
    (base / "config.json").write_text(json.dumps(text))
    (base / "tokenizer.model").write_bytes(tokenizer_model())
    holders: dict[str, str] = {}
    for number in range(-1, layers):  # a shard for each layer, so that memory holds one
        shard, file = _llama_layer(number), f"pytorch_model-{number + 2:05d}.bin"
        torch.save(shard, base / file)
        holders |= dict.fromkeys(shard, file)
    (base / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": holders}))
    tower = {"hidden_size": TOWER, "num_hidden_layers": TOWER_LAYERS, "num_attention_heads": 16}
    tower |= {"intermediate_size": TOWER_INTERMEDIATE, "patch_size": 14}
    (vision / "config.json").write_text(json.dumps({"vision_config": tower}))
    torch.save(_clip(), vision / "pytorch_model.bin")
    (adapter / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "bias": "none"})
    )
    lora = {}
    for name, shape in _llama_linears().items():
        for number in range(layers):
            stem = f"base_model.model.model.layers.{number}.{name}"
            lora[f"{stem}.lora_A.weight"] = _random(RANK, shape[1])
            lora[f"{stem}.lora_B.weight"] = _random(shape[0], RANK)
    torch.save(lora, adapter / "adapter_model.bin")
    return {"base": base, "vision": vision, "adapter": adapter}


def _random(*shape: int) -> torch.Tensor:
    return (0.02 * torch.randn(shape)).half()


def _llama_linears() -> dict[str, tuple[int, int]]:
    """Linear layers of a block and their shapes (out, in)."""
    return {
        **{f"self_attn.{name}_proj": (WIDTH, WIDTH) for name in "qkvo"},
        **{f"mlp.{name}_proj": (INTERMEDIATE, WIDTH) for name in ("gate", "up")},
        "mlp.down_proj": (WIDTH, INTERMEDIATE),
    }


def _llama_layer(number: int) -> dict[str, torch.Tensor]:
    """Tensors of a block of the Llama; for -1 those outside of the blocks, with the projector."""
    if number >= 0:
        stem = f"model.layers.{number}"
        weights = {f"{stem}.{name}.weight": _random(*shape) for name, shape in _llama_linears().items()}
        norms = ("input_layernorm", "post_attention_layernorm")
        return weights | {f"{stem}.{name}.weight": torch.ones(WIDTH).half() for name in norms}
    return {
        "model.embed_tokens.weight": _random(VOCABULARY, WIDTH),
        "lm_head.weight": _random(VOCABULARY, WIDTH),
        "model.norm.weight": torch.ones(WIDTH).half(),
        "model.mm_projector.0.weight": _random(WIDTH, TOWER),
        "model.mm_projector.0.bias": _random(WIDTH),
        "model.mm_projector.2.weight": _random(WIDTH, WIDTH),
        "model.mm_projector.2.bias": _random(WIDTH),
    }


def _clip() -> dict[str, torch.Tensor]:
    """Tensors of CLIP's vision tower."""
    stem = "vision_model."
    weights = {
        f"{stem}embeddings.class_embedding": _random(TOWER),
        f"{stem}embeddings.patch_embedding.weight": _random(TOWER, 3, 14, 14),
        f"{stem}embeddings.position_embedding.weight": _random(PATCHES + 1, TOWER),
    }
    norms = [f"{stem}pre_layrnorm", f"{stem}post_layernorm"]
    for layer in range(TOWER_LAYERS):
        block = f"{stem}encoder.layers.{layer}."
        norms += [f"{block}layer_norm1", f"{block}layer_norm2"]
        linears = {f"self_attn.{name}_proj": (TOWER, TOWER) for name in ("q", "k", "v", "out")}
        linears |= {"mlp.fc1": (TOWER_INTERMEDIATE, TOWER), "mlp.fc2": (TOWER, TOWER_INTERMEDIATE)}
        for name, shape in linears.items():
            weights |= {f"{block}{name}.weight": _random(*shape), f"{block}{name}.bias": _random(shape[0])}
    for name in norms:
        weights |= {f"{name}.weight": torch.ones(TOWER).half(), f"{name}.bias": _random(TOWER)}
    return weights


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=list(ROUNDS))
    parser.add_argument("--layers", type=int, default=32, help="of the language model of changechat")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--folder", type=Path, help="where the files are written; they are removed")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        folder = Path(scratch)
        is_mci = arguments.kind == "mci"
        paths = write_mci(folder) if is_mci else write_changechat(folder, arguments.layers)
        begun = time.perf_counter()
        converted = kinds.convert(arguments.kind, paths, folder / "converted")
        convert_s = time.perf_counter() - begun
        images = [ROOT / "sample_data" / name for name in ("before.tif", "after.tif")]
        command = [
            sys.executable,
            "-c",
            ANSWERS,
            converted.folder,
            arguments.dtype,
            ROUNDS[arguments.kind],
            *images,
        ]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        run = subprocess.run(
            [*map(str, command)], capture_output=True, text=True, check=True, env=environment
        )
        measured = json.loads(run.stdout.splitlines()[-1])
        read = [path for name, path in paths.items() if name != "vocab"]
        parameters = sum(part[2] for path in read for part in kinds.inspect(arguments.kind, path).parts)
    print(heading(torch.get_num_threads(), f"torch {torch.__version__}"), end="\n\n")
    Table().row(
        {
            "kind": arguments.kind if is_mci else f"changechat, {arguments.layers} of 32 layers",
            "dtype": arguments.dtype,
            "numbers in the published file": f"{parameters:,}",
            "checkpoint": format_bytes(converted.bytes),
            "convert": f"{convert_s:.1f} s",
            "load": f"{measured['load']:.1f} s",
            "encode a pair": f"{spread(measured['encode'], 2)} s",
            "four questions": f"{spread(measured['answer'], 2)} s",
            "peak memory": format_bytes(int(measured["peak"])),
        }
    )


if __name__ == "__main__":
    main()
