"""Scores of a model on held-out made scenes and, where a folder of them is given, on real pairs.

Made: scenes of seeds that no training or calibration ever saw. Real: a folder with `mask_cells.csv`
(pair_id, share of the mask, cells) and `labels.csv` (labels by eye), and for every pair a folder with
before.png, after.png and mask.png.

    python benchmarks/nano_scores.py --scenes 1000 --real FOLDER --json scores.json

Prints Markdown tables on stdout; talk goes to stderr. Baselines stand beside the model in the same run.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # measure this checkout, not an installed copy

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

from deltavlm.data.synthetic.cache import FAR_TEST_SEED, TEST_SEED, draw_cache  # noqa: E402
from deltavlm.metrics import binary, sets  # noqa: E402
from deltavlm.model.interface import ChangeModel, Reply  # noqa: E402
from deltavlm.model.predictor import load_model  # noqa: E402
from deltavlm.tasks import locate  # noqa: E402
from deltavlm.tasks.locate import LABELS  # noqa: E402
from deltavlm.training.evaluate import QUESTIONS, said_and_true, scores, talk_scores  # noqa: E402

LEAST_CHANGED = 0.005  # share of the mask from which a real pair counts as changed
SHORT = dict(zip(("TL", "TC", "TR", "ML", "MC", "MR", "BL", "BC", "BR"), LABELS, strict=True))


def made(model: ChangeModel, number: int, *, far: bool = False) -> dict[str, Any]:
    """Scores on `number` scenes of the test seeds; `far` ones have pixels twice as coarse."""
    with tempfile.TemporaryDirectory() as scratch:
        seed, reduce = (FAR_TEST_SEED, 2) if far else (TEST_SEED, 1)
        draw_cache(Path(scratch), number, seed=seed, reduce=reduce)
        return scores(*said_and_true(model, Path(scratch))) | talk_scores(model, Path(scratch))


def picture(path: Path, size: int) -> np.ndarray:
    """(3, size, size) uint8 RGB; larger pictures are cut at the top left, not resized."""
    return np.asarray(Image.open(path).convert("RGB"))[:size, :size].transpose(2, 0, 1)


def plain_difference(before: np.ndarray, after: np.ndarray) -> float:
    """The baseline that knows nothing: mean absolute difference after matching mean and deviation of the
    bands."""
    a, b = (x.astype(float) for x in (before, after))
    a, b = ((x - x.mean((1, 2), keepdims=True)) / (x.std((1, 2), keepdims=True) + 1e-6) for x in (a, b))
    return float(np.abs(a - b).mean())


def real(model: ChangeModel, folder: Path) -> dict[str, Any]:
    """Scores on the real pairs that have PNG pictures and a mask."""
    with (folder / "mask_cells.csv").open() as table:
        rows = [row for row in csv.reader(table)][1:]
    with (folder / "labels.csv").open() as table:
        by_eye = {row["pair_id"]: row for row in csv.DictReader(table)}
    rows = [row for row in rows if (folder / row[0] / "before.png").exists()]
    replies: list[Sequence[Reply]] = []
    plain, area = [], []
    for row in rows:
        before, after = (
            picture(folder / row[0] / f"{date}.png", model.chip_px) for date in ("before", "after")
        )
        encoded = model.encode(before[None], after[None])
        replies += model.answer(encoded, QUESTIONS)
        mask = getattr(encoded, "mask_logits", None)  # of a model with a dense head
        area.append(0.0 if mask is None else float((1 - mask.float().softmax(dim=1)[:, 0]).mean()))
        plain.append(plain_difference(before, after))
    chance = [reply[1].score for reply in replies]
    yes = [score >= 0.5 for score in chance]
    located = []
    for reply in replies:
        try:
            located.append(locate.parse(reply[3].text).buildings)
        except Exception:  # an answer that cannot be read says nothing
            located.append(())
    masked = [float(row[2]) >= LEAST_CHANGED for row in rows]
    any_mask = [float(row[2]) > 0 for row in rows]
    eye = [by_eye[row[0]]["changed"] == "yes" if row[0] in by_eye else None for row in rows]
    seen = [index for index, label in enumerate(eye) if label is not None]
    # Buildings: cells of the mask where the mask is of buildings, cells by eye where new buildings were seen.
    levir = [index for index, row in enumerate(rows) if row[0].startswith("levir")]
    built = [
        i
        for i in seen
        if by_eye[rows[i][0]]["buildings_new"] in ("yes", "no")
        and by_eye[rows[i][0]]["roads_new"] != "unsure"
    ]

    def eye_cells(index: int) -> list[str]:
        row = by_eye[rows[index][0]]
        return [SHORT[cell] for cell in row["grid_cells"].split()] if row["buildings_new"] == "yes" else []

    result = {
        "pairs": len(rows),
        "changed (mask >= 0.5 %)": int(sum(masked)),
        "balanced accuracy": binary.balanced_accuracy(yes, masked),
        "AUC": binary.auc(chance, masked),
        "AUC plain difference": binary.auc(plain, masked),
        "AUC of the dense head's changed area": binary.auc(area, masked),
        "balanced accuracy, any mask": binary.balanced_accuracy(yes, any_mask),
        "AUC, any mask": binary.auc(chance, any_mask),
        "pairs by eye": len(seen),
        "balanced accuracy, by eye": binary.balanced_accuracy(
            [yes[i] for i in seen], [bool(eye[i]) for i in seen]
        ),
        "AUC, by eye": binary.auc([chance[i] for i in seen], [bool(eye[i]) for i in seen]),
        "AUC plain difference, by eye": binary.auc([plain[i] for i in seen], [bool(eye[i]) for i in seen]),
        "AUC of the dense head's changed area, by eye": binary.auc(
            [area[i] for i in seen], [bool(eye[i]) for i in seen]
        ),
        "building cells F1, LEVIR-CD masks": sets.micro(
            [located[i] for i in levir], [[SHORT[c] for c in rows[i][4].split()] for i in levir]
        ).f1,
        "building cells F1, by eye": sets.micro(
            [located[i] for i in built], [eye_cells(i) for i in built]
        ).f1,
        "building cells F1, every cell always": sets.micro(
            [LABELS for _ in built], [eye_cells(i) for i in built]
        ).f1,
    }
    for row, reply, truth in zip(rows, replies, masked, strict=True):
        print(f"{row[0]:44s} {truth!s:5} {row[2]} {reply[1].score:.2f} {reply[0].text}", file=sys.stderr)
    return result


def table(title: str, content: dict[str, Any]) -> None:
    print(f"\n{title}\n\n| measure | value |\n|---|---|")
    for name, value in content.items():
        print(f"| {name} | {value:.3f} |" if isinstance(value, float) else f"| {name} | {value} |")


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--model", default="nano", help="a shipped model's name or a checkpoint folder")
    ask.add_argument("--scenes", type=int, default=1000, help="made scenes to score; 0 for none")
    ask.add_argument("--real", type=Path, help="folder of real pairs")
    ask.add_argument("--json", type=Path, help="also write the numbers there")
    args = ask.parse_args()
    model = load_model(args.model, device="cpu")
    found: dict[str, Any] = {
        "model": model.name,
        "fingerprint": model.fingerprint,
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
    }
    table("Run", found)
    if args.scenes:
        found["made"] = made(model, args.scenes)
        table("Made scenes, held out", found["made"])
        found["far"] = made(model, args.scenes, far=True)
        table("Made scenes of pixels twice as coarse (about 0.6 to 3 m), held out", found["far"])
    if args.real:
        found["real"] = real(model, args.real)
        table("Real pairs, never trained or tuned on", found["real"])
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
