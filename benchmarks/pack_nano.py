"""Release of a trained nano: copy weights into the package, recipe, log and scores into the docs.

    python benchmarks/pack_nano.py RUN

RUN is the folder of `deltavlm train` with `model/`, and with `scores.json` of `nano_scores.py` for the same
weights. Writes `deltavlm/weights/nano`, `docs/nano/`, and the text between the markers in
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
sys.path.insert(0, str(ROOT))  # this checkout, not an installed copy

from deltavlm.model import checkpoint  # noqa: E402
from deltavlm.model.folder import fingerprint  # noqa: E402
from deltavlm.model.graphs import export_graphs  # noqa: E402

BEGIN, END = "<!-- {}: written by benchmarks/pack_nano.py -->", "<!-- end of {} -->"
FILES = ("config.json", "model.safetensors", "tokenizer.json")
METRICS = {
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
    "talk_file": "open questions as worded in a data set",
    "talk_typed": "open questions as people type them",
    "talk_after_1": "follow-up questions after one turn",
    "talk_after_2": "after two turns",
    "talk_after_3": "after three turns",
    "talk_unheard": "the last of these without its history",
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


def synthetic_table(scores: dict[str, Any]) -> str:
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
        for key, label in METRICS.items()
    ]
    head = [
        f"synthetic scenes, held out ({plain['pairs']} each)",
        "plain",
        "plain: the dense head's own rule",
    ]
    return table([*head, "plain: a constant answer", "pixels twice as coarse", "rich"], rows)


def real_table(scores: dict[str, Any]) -> str:
    groups = {name: results for name, results in scores["real"].items() if name != "false alarms"}
    keys = dict.fromkeys(key for results in groups.values() for key in results if key != "pairs, changed")
    sizes = [
        f"{name}: {results['pairs, changed'][1]} of {results['pairs, changed'][0]}"
        for name, results in groups.items()
    ]
    rows = [[key, *(number(results.get(key)) for results in groups.values())] for key in keys]
    alarms = "; ".join(
        f"{name}: {share:.0%} of {count:.0f} chips"
        for name, (share, count) in scores["real"]["false alarms"].items()
    )
    return (
        table(["real pairs: changed of all", *sizes], rows)
        + f"\n\nFalse alarms where nothing was built: {alarms}."
    )


def targets_table(scores: dict[str, Any]) -> str:
    """Value of each target metric of the project, beside the target."""
    synthetic, real = scores["made"], scores.get("real", {})
    # label, value, target, higher is better
    rows = [
        ("synthetic: yes/no accuracy", synthetic["yes_no_accuracy"], 0.97, True),
        ("count MAE", synthetic["count_mae_all"], 0.35, False),
        ("cell F1, buildings", synthetic["cell_f1_buildings"], 0.90, True),
        ("cell F1, roads", synthetic["cell_f1_roads"], 0.80, True),
        ("caption exact, all", synthetic["caption_exact"], 0.75, True),
        ("caption exact, changed", synthetic["caption_exact_changed"], 0.55, True),
    ]
    for key, label in METRICS.items():
        if rule := RULE.get(key):
            rows.append(
                (
                    f"{label}, against the dense head's own rule",
                    synthetic[key],
                    synthetic[rule],
                    key != "count_mae_all",
                )
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
        cell_f1, rule = mask["cell F1, buildings, mask"], mask.get("the same by the dense head's own rule")
        if rule is not None:
            rows.append(
                ("real: cell F1, buildings, by mask, against the dense head's own rule", cell_f1, rule, True)
            )
        rows += [
            (f"false alarms, {name}", share, 0.10, False) for name, (share, _) in real["false alarms"].items()
        ]
    return table(
        ["metric", "value", "target", ""],
        [
            [
                label,
                number(value),
                f"{target:.3f}",
                "met" if (value >= target if is_higher_better else value <= target) else "missed",
            ]
            for label, value, target, is_higher_better in rows
        ],
    )


def fill(page: Path, name: str, paragraphs: list[str]) -> None:
    """Replace the text between the markers of a page, or append it where there are none."""
    begin, end = BEGIN.format(name), END.format(name)
    before, _, after = page.read_text().partition(begin)
    tail = after.partition(end)[2] or "\n"
    page.write_text("\n\n".join([before.rstrip("\n"), begin, *paragraphs, end + tail]))


def model_index(scores: dict[str, Any]) -> str:
    """Yes/no scores as the `model-index` of a model card's front matter, in YAML."""
    synthetic, real = scores["made"], scores.get("real")
    name = f"Synthetic scenes, held out ({synthetic['pairs']})"
    datasets = [(name, synthetic["yes_no_balanced"], synthetic["yes_no_auc"])]
    if real:
        by_mask = real["all, by mask"]
        name = f"Real pairs with masks ({by_mask['pairs, changed'][0]})"
        datasets.append((name, by_mask["balanced accuracy"][0], by_mask["AUC"][0]))
    results = [
        {
            "task": {"type": "image-classification", "name": "Has anything changed?"},
            "dataset": {"type": "own", "name": name},
            "metrics": [
                {"type": "accuracy", "name": "Balanced accuracy", "value": round(balanced, 3)},
                {"type": "roc_auc", "name": "AUC", "value": round(auc, 3)},
            ],
        }
        for name, balanced, auc in datasets
    ]
    index = {"model-index": [{"name": scores["model"], "results": results}]}
    text: str = yaml.safe_dump(index, sort_keys=False)
    return text


def fill_front_matter(page: Path, text: str) -> None:
    """Replace the YAML between the markers of a page's front matter."""
    begin, end = "# scores: written by benchmarks/pack_nano.py\n", "# end of scores\n"
    before, _, after = page.read_text().partition(begin)
    page.write_text(before + begin + text + end + after.partition(end)[2])


def write_docs(scores: dict[str, Any], docs: Path) -> None:
    """Write the tables of scores into the pages of the docs."""
    source = f"Weights {scores['fingerprint'][:8]}, measured {scores['date']}."
    tables = [synthetic_table(scores), *([real_table(scores)] if "real" in scores else [])]
    fill(docs / "nano.md", "targets", [source, targets_table(scores)])
    fill_front_matter(docs / "model-card.md", model_index(scores))
    fill(docs / "model-card.md", "scores", [source, *tables])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    run = parser.parse_args().run
    scores = json.loads((run / "scores.json").read_text())
    if scores["fingerprint"] != fingerprint(run / "model"):
        sys.exit(f"{run / 'scores.json'} has other weights than {run / 'model'}; run nano_scores.py again")
    for name in FILES:
        shutil.copyfile(run / "model" / name, ROOT / "deltavlm" / "weights" / "nano" / name)
    shipped = ROOT / "deltavlm" / "weights" / "nano"
    export_graphs(checkpoint.load(shipped)[1], shipped)
    docs = ROOT / "docs"
    (docs / "nano").mkdir(exist_ok=True)
    for name in ("log.jsonl", "scores.json"):
        shutil.copyfile(run / name, docs / "nano" / name)
    recipe = yaml.safe_load((run / "config.yaml").read_text())
    recipe["scenes"]["ground_folder"] = "tiles"  # not where they are on this machine
    (docs / "nano" / "config.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    write_docs(scores, docs)


if __name__ == "__main__":
    main()
