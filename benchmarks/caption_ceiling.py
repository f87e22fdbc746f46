"""Ceiling of the caption forms: captions from the true mask, scored against the sentences of annotators.

    python benchmarks/caption_ceiling.py FOLDER

A folder has a table pairs.csv (pair_id, changed, captions as a JSON list) and for each pair with captions a
folder with mask.png of the new buildings. Counts and cells come from the mask; a changed pair whose mask is
empty has a new road. What stood there before and whether a road passes is not in a mask: the forms that say
so say it of every pair with new buildings. Words and metrics are those of the protocol `strict`; needs Java.

Prints Markdown on stdout.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # measure this checkout, not an installed copy

import numpy as np  # noqa: E402
import numpy.typing as npt  # noqa: E402
from PIL import Image  # noqa: E402
from scipy import ndimage  # noqa: E402

from deltavlm.data.synthetic import phrases  # noqa: E402
from deltavlm.data.synthetic.facts import Facts, facts_of  # noqa: E402
from deltavlm.data.synthetic.ground_truth import CHANGE_CODE, COVER_CODE  # noqa: E402
from deltavlm.metrics import java, text  # noqa: E402

UNKNOWN_COVER = COVER_CODE["built"]


def facts_of_mask(mask: npt.NDArray[np.bool_], changed: bool) -> Facts:
    """Facts of a pair whose new buildings are the parts of a mask; a changed one without them has a road."""
    mask = mask if changed else np.zeros_like(mask)
    change = np.where(mask, CHANGE_CODE["building_built"], 0).astype(np.uint8)
    instances = ndimage.label(mask)[0].astype(np.uint16)
    facts = facts_of(change, instances, np.full(mask.shape, UNKNOWN_COVER, np.uint8))
    road = {"road_built": 1} if changed and not facts.changed else {}
    return replace(facts, counts=facts.counts | road, replaced_cover=None)


def written(facts: list[Facts]) -> dict[str, list[str]]:
    """Captions of all pairs by the name of their form; unchanged pairs have the plain sentence in each."""
    along: list[Facts] = [
        replace(each, along="road" if each.counts["building_built"] else None) for each in facts
    ]
    says = {
        "along the road": along,
        "the trees are removed": [replace(each, replaced_cover="trees") for each in facts],
        "along the road, and the trees are removed": [
            replace(each, replaced_cover="trees") for each in along
        ],
        "on the bare land": [replace(each, replaced_cover="soil") for each in facts],
    }
    forms = {
        f"wording {number + 1}": [phrases.captions(each)[number * each.changed] for each in facts]
        for number in range(5)
    }
    return forms | {
        f"wording 1, {form}": [phrases.captions(each)[0] for each in said] for form, said in says.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    with (folder / "pairs.csv").open(encoding="utf-8") as table:
        rows = [row for row in csv.DictReader(table) if row["captions"]]
    masks = [np.asarray(Image.open(folder / row["pair_id"] / "mask.png").convert("L")) > 127 for row in rows]
    changed = np.array([row["changed"] == "yes" for row in rows])
    forms = written([facts_of_mask(mask, flag) for mask, flag in zip(masks, changed.tolist(), strict=True)])
    references = [json.loads(row["captions"]) for row in rows]

    tokens = iter(java.ptb_tokenize([sentence for group in references for sentence in group]))
    groups = [tuple(next(tokens) for _ in group) for group in references]
    sentences = [
        sentence for form in forms.values() for sentence in form
    ]  # normalised: they are their tokens
    statistics = java.meteor_statistics(sentences, groups * len(forms)).reshape(len(forms), len(rows), -1)
    print(
        "| caption | CIDEr-D, all | S*m, all | CIDEr-D, changed | S*m, changed | words |",
        "\n|---|---|---|---|---|---|",
        sep="",
    )
    for (name, form), meteor in zip(forms.items(), statistics, strict=True):
        cells = []
        for members in (np.arange(len(rows)), np.flatnonzero(changed)):
            metrics = text.compute_metrics(
                [form[index] for index in members], [groups[index] for index in members], meteor[members]
            )
            cells += [f"{100 * metrics[metric].value():.1f}" for metric in ("cider", "s_m")]
        words = np.mean([len(form[index].split()) for index in np.flatnonzero(changed)])
        print(f"| {name} | {' | '.join(cells)} | {words:.1f} |")


if __name__ == "__main__":
    main()
