"""Puts a trained nano into the package: its weights, its recipe and log, and its scores into the docs.

    python benchmarks/pack_nano.py RUN

RUN is the folder of `deltavlm train` with `model/`, and with `scores.json` of `nano_scores.py` for the same
weights. Writes `deltavlm/weights/nano`, `docs/nano/`, and what stands between the marks in
`docs/model-card.md` (scores, also in its front matter) and `docs/nano.md` (targets).
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # of this checkout, not of an installed copy

from deltavlm.model import checkpoint  # noqa: E402

BEGIN, END = "<!-- {}: written by benchmarks/pack_nano.py -->", "<!-- end of {} -->"
FILES = ("config.json", "model.safetensors", "tokenizer.json")
MADE = {
    "yes_no_accuracy": "yes/no accuracy",
    "yes_no_balanced": "yes/no balanced accuracy",
    "yes_no_auc": "yes/no AUC",
    "calibration_error": "calibration error",
    "count_mae_all": "count MAE, roads and buildings",
    "cell_f1_buildings": "cell F1, buildings",
    "cell_f1_roads": "cell F1, roads",
    "caption_exact": "caption exact, all",
    "caption_exact_changed": "caption exact, changed",
    "caption_exact_unchanged": "caption exact, unchanged",
    "talk_file": "open questions in a set's words",
    "talk_typed": "open questions as people type them",
    "talk_after_1": "follow-ups behind one turn",
    "talk_after_2": "behind two",
    "talk_after_3": "behind three",
    "talk_unheard": "the last of these without the turns before it",
}
RULE = {
    "yes_no_accuracy": "rule_yes_no",
    "count_mae_all": "rule_count_mae",
    "cell_f1_buildings": "rule_cell_f1_buildings",
    "cell_f1_roads": "rule_cell_f1_roads",
}
CONSTANT = {
    "yes_no_accuracy": "constant_yes_no",
    "count_mae_all": "count_mae_always_zero",
    "cell_f1_buildings": "constant_cell_f1_buildings",
    "cell_f1_roads": "constant_cell_f1_roads",
    "caption_exact": "constant_caption_exact",
}


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in [head, *rows]]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def number(value: Any) -> str:
    if value is None or value != value:
        return ""
    if isinstance(value, list):
        low, high = value[1:]
        return number(value[0]) + (f" ({low:.2f} to {high:.2f})" if low == low else "")
    return f"{value:.3f}"


def made(scores: dict[str, Any]) -> str:
    plain = scores["made"]
    rows = [
        [
            label,
            number(plain[key]),
            number(plain.get(RULE.get(key, ""))),
            number(plain.get(CONSTANT.get(key, ""))),
            number(scores["far"][key]),
            number(scores["rich"][key]),
        ]
        for key, label in MADE.items()
    ]
    head = [f"made scenes, held out ({plain['pairs']} each)", "plain", "plain: the dense head's own rule"]
    return table([*head, "plain: a constant answer", "pixels twice as coarse", "rich"], rows)


def real(scores: dict[str, Any]) -> str:
    groups = {name: found for name, found in scores["real"].items() if name != "false alarms"}
    keys = dict.fromkeys(key for found in groups.values() for key in found if key != "pairs, changed")
    sizes = [
        f"{name}: {found['pairs, changed'][1]} of {found['pairs, changed'][0]}"
        for name, found in groups.items()
    ]
    rows = [[key, *(number(found.get(key)) for found in groups.values())] for key in keys]
    alarms = "; ".join(
        f"{name}: {share:.0%} of {count:.0f} chips"
        for name, (share, count) in scores["real"]["false alarms"].items()
    )
    return (
        table(["real pairs: changed of all", *sizes], rows)
        + f"\n\nFalse alarms where nothing was built: {alarms}."
    )


def targets(scores: dict[str, Any]) -> str:
    """How far each target of the project is: (what, reached, the bar, is more better)."""
    made, real = scores["made"], scores.get("real", {})
    rows = [
        ("made: yes/no accuracy", made["yes_no_accuracy"], 0.97, True),
        ("count MAE", made["count_mae_all"], 0.35, False),
        ("cell F1, buildings", made["cell_f1_buildings"], 0.90, True),
        ("cell F1, roads", made["cell_f1_roads"], 0.80, True),
        ("caption exact, all", made["caption_exact"], 0.75, True),
        ("caption exact, changed", made["caption_exact_changed"], 0.55, True),
    ]
    for key, label in MADE.items():
        if rule := RULE.get(key):
            rows.append(
                (f"{label}, against the dense head's own rule", made[key], made[rule], key != "count_mae_all")
            )
    if real:
        rows += [
            ("real: AUC, SZTAKI", real["sztaki_256"]["AUC"][0], 0.95, True),
            ("real: AUC, LEVIR-CD", real["levir_bit"]["AUC"][0], 0.95, True),
            ("real: balanced accuracy, by mask", real["all, by mask"]["balanced accuracy"][0], 0.85, True),
            ("real: balanced accuracy, by eye", real["all, by eye"]["balanced accuracy"][0], 0.85, True),
            ("real: mask F1, buildings, LEVIR-CD", real["levir_bit"]["mask F1, buildings"][0], 0.60, True),
        ]
        mask = real["all, by mask"]
        words, rule = mask["cell F1, buildings, mask"], mask.get("the same by the dense head's own rule")
        if rule is not None:
            rows.append(
                ("real: cell F1, buildings, by mask, against the dense head's own rule", words, rule, True)
            )
        rows += [
            (f"false alarms, {name}", share, 0.10, False) for name, (share, _) in real["false alarms"].items()
        ]
    return table(
        ["what", "reached", "target", ""],
        [
            [
                what,
                number(value),
                f"{bar:.3f}",
                "met" if (value >= bar if more else value <= bar) else "short",
            ]
            for what, value, bar, more in rows
        ],
    )


def fill(page: Path, name: str, told: list[str]) -> None:
    """Puts paragraphs between a page's marks, or at its end where it has none."""
    begin, end = BEGIN.format(name), END.format(name)
    before, _, rest = page.read_text().partition(begin)
    page.write_text("\n\n".join([before.rstrip("\n"), begin, *told, end + (rest.partition(end)[2] or "\n")]))


def index(scores: dict[str, Any]) -> str:
    """The scores of yes and no in the words of a model card's front matter."""
    made, real = scores["made"], scores.get("real")
    known = [(f"Drawn scenes, held out ({made['pairs']})", made["yes_no_balanced"], made["yes_no_auc"])]
    if real:
        found = real["all, by mask"]
        pairs = f"Real pairs with masks ({found['pairs, changed'][0]})"
        known.append((pairs, found["balanced accuracy"][0], found["AUC"][0]))
    results = [
        {
            "task": {"type": "image-classification", "name": "Has anything changed?"},
            "dataset": {"type": "own", "name": name},
            "metrics": [
                {"type": "accuracy", "name": "Balanced accuracy", "value": round(balanced, 3)},
                {"type": "roc_auc", "name": "AUC", "value": round(auc, 3)},
            ],
        }
        for name, balanced, auc in known
    ]
    told: str = yaml.safe_dump(
        {"model-index": [{"name": scores["model"], "results": results}]}, sort_keys=False
    )
    return told


def fill_front(page: Path, told: str) -> None:
    """Puts YAML between the marks of a page's front matter."""
    begin, end = "# scores: written by benchmarks/pack_nano.py\n", "# end of scores\n"
    before, _, rest = page.read_text().partition(begin)
    page.write_text(before + begin + told + end + rest.partition(end)[2])


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("run", type=Path)
    run = ask.parse_args().run
    scores = json.loads((run / "scores.json").read_text())
    if scores["fingerprint"] != checkpoint.fingerprint(run / "model"):
        sys.exit(f"{run / 'scores.json'} is of other weights than {run / 'model'}; run nano_scores.py again")
    for name in FILES:
        shutil.copyfile(run / "model" / name, ROOT / "deltavlm" / "weights" / "nano" / name)
    docs = ROOT / "docs" / "nano"
    docs.mkdir(exist_ok=True)
    for name in ("config.yaml", "log.jsonl", "scores.json"):
        shutil.copyfile(run / name, docs / name)
    told = [f"Weights {scores['fingerprint'][:8]}, measured {scores['date']}."]
    pages = ROOT / "docs"
    fill(pages / "nano.md", "targets", [*told, targets(scores)])
    fill_front(pages / "model-card.md", index(scores))
    fill(
        pages / "model-card.md",
        "scores",
        [*told, made(scores), *([real(scores)] if "real" in scores else [])],
    )


if __name__ == "__main__":
    main()
