"""Effect of `--quantize`: memory of the language model, drift of its first logits, equal answers.

The sample pair's chips are asked the four questions by the same model in full, in 8 and in 4 bit. Baseline,
in the same run: the full model. Speed is not measured, since that of a CPU says nothing about a GPU. Needs
bitsandbytes, and rasterio to read the pair.

    python benchmarks/quantize.py --threads 2

Prints dated Markdown rows on stdout; messages on stderr.
"""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # measure this checkout, not an installed copy

import rasterio  # noqa: E402
import torch  # noqa: E402

from benchmarks.rows import commit, hardware  # noqa: E402
from deltavlm.config import shipped_config  # noqa: E402
from deltavlm.geo.pair import RasterPair, open_pair  # noqa: E402
from deltavlm.model.kinds import load_model  # noqa: E402
from deltavlm.model.predictor import Predictor  # noqa: E402
from deltavlm.model.quantize import tensor_bytes  # noqa: E402
from deltavlm.pipeline.answers import question_of  # noqa: E402
from deltavlm.tasks.questions import load_questions  # noqa: E402

KINDS = (None, "int8", "int4")
SAMPLE = ROOT / "sample_data"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path, default=SAMPLE / "before.tif")
    parser.add_argument("--after", type=Path, default=SAMPLE / "after.tif")
    parser.add_argument("--model", default="nano")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--overlap", type=int, default=128, help="of chips, for more chips of a small pair")
    args = parser.parse_args()
    import numpy as np

    questions = [question_of(spec) for spec in load_questions(shipped_config("questions.yaml"))]
    models: dict[str | None, Predictor] = {}
    for kind in KINDS:
        model = load_model(
            args.model, runtime="torch", device=args.device, threads=args.threads, dtype="fp32", quantize=kind
        )
        assert isinstance(model, Predictor)
        models[kind] = model
    chip_px = models[None].chip_px
    with open_pair(RasterPair(str(args.before), str(args.after))) as reader:
        chips = [reader.read(chip) for chip in reader.chips(chip_px, args.overlap)]
    before, after = (np.stack([getattr(chip, date) for chip in chips]) for date in ("before", "after"))
    print(f"{len(chips)} chips", file=sys.stderr)

    answers, firsts = {}, {}
    encoded = models[None].encode(before, after)
    for kind, model in models.items():
        answers[kind] = model.answer(encoded, questions)
        prompts = [model.format_prompt(question.prompt) for question in questions]
        firsts[kind] = torch.cat(
            [
                model.model.first_logits(encoded.tokens[pair].expand(4, -1, -1), *model.tokenize(prompts))
                for pair in range(len(chips))
            ]
        )
    print(
        "| date (UTC) | commit | hardware | versions | model | kind | language model's blocks, MB, share"
        " | whole model, share | mean drift of first logits / their deviation | equal answers"
        " | largest change of a yes/no score |"
    )
    print("|" + "---|" * 11)
    sizes = {
        kind: (tensor_bytes(m.model.language.model.layers), tensor_bytes(m.model))
        for kind, m in models.items()
    }
    yes_no = [index for index, question in enumerate(questions) if question.yes_no]
    for kind in KINDS[1:]:
        drift = (firsts[kind] - firsts[None]).abs().mean() / firsts[None].std()
        rows = list(zip(answers[kind], answers[None], strict=True))
        equal = sum(a.text == b.text for row, full in rows for a, b in zip(row, full, strict=True))
        largest = max(abs(row[index].score - full[index].score) for row, full in rows for index in yes_no)
        blocks, total = (quantized / full for quantized, full in zip(sizes[kind], sizes[None], strict=True))
        print(
            f"| {datetime.now(UTC):%Y-%m-%d} | {commit()} | {hardware(args.threads)} "
            f"| torch {torch.__version__}, bitsandbytes {version('bitsandbytes')}, "
            f"GDAL {rasterio.__gdal_version__} | {args.model} | {kind} "
            f"| {sizes[kind][0] / 1e6:.2f}, **{blocks:.3f}** | {total:.2f} | {float(drift):.4f} "
            f"| {equal} of {len(chips) * len(questions)} | {largest:.4f} |"
        )


if __name__ == "__main__":
    main()
