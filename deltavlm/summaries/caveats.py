"""What to keep in mind about totals, as far as outputs tell it: overlap, scale, what was not looked at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from deltavlm.pipeline.reading import scale_warning
from deltavlm.summaries.results import Results
from deltavlm.summaries.totals import UNSURE, AreaSummary

__all__ = ["caveats"]

TWICE = 1.005  # an overlap that is told


def caveats(results: Results, whole: AreaSummary, found: Sequence[AreaSummary] = ()) -> list[str]:
    """Sentences about the totals of areas and of the whole, the weightiest first."""
    told = [
        *_unseen(results, whole),
        *_counted(results, whole),
        *_small(results, found),
        *_scale(results),
        *_sureness(results, whole),
    ]
    return list(dict.fromkeys(told))


def _unseen(results: Results, whole: AreaSummary) -> Iterator[str]:
    unseen = whole.nodata + whole.failed
    if unseen:
        yield (
            f"{unseen:,} of {whole.chips:,} chips were not looked at ({whole.nodata:,} without enough data, "
            f"{whole.failed:,} that could not be read or answered). Nothing is known of them."
        )
    if results.lost_pairs:
        named = ", ".join(results.lost_pairs[:3]) + (", …" if len(results.lost_pairs) > 3 else "")
        yield (
            f"Pairs that could not be opened, of which nothing is known: {len(results.lost_pairs):,} "
            f"({named})."
        )
    elif results.lost_pairs is None:
        yield "The output does not say which pairs could not be opened; a GeoPackage does, in a layer."
    for run in results.runs:
        limit = _option(run, "limit")
        if limit:
            yield f"The run was limited to {limit:,} chips; the rest of the images was not looked at."
        asked = {**run.get("inputs", {}), **run.get("reading", {})}
        if asked.get("bbox") or asked.get("aoi"):
            yield "Only chips that touch an area of interest were asked for; the rest was not looked at."
        share = run.get("inputs", {}).get("alignment", {}).get("overlap_share")
        if share is not None and share < 0.9995:
            yield f"The later image covers {share:.1%} of the earlier one; the rest was not looked at."
    if any(not run for run in results.runs):
        yield "An output does not say how it was made, so more may have been left out than is told here."
    if whole.unread:
        yield f"Of {whole.unread:,} chips the answer was neither yes nor no; they do not count as changed."


def _counted(results: Results, whole: AreaSummary) -> Iterator[str]:
    counted = whole.new_buildings is not None or whole.new_roads is not None
    if counted:
        yield (
            "New buildings and roads are counted chip by chip, and what a chip's edge cuts counts on both "
            "sides: their sums are estimates."
        )
    if whole.overlap and whole.overlap > TWICE:
        yield (
            f"Chips overlap: a piece of ground lies in {whole.overlap:.2f} chips on average. Sums over chips "
            f"count it as often; divided by {whole.overlap:.2f} they are nearer to the truth."
        )
    if results.chips["status"].eq("cascaded").any() and counted:
        yield "Chips that said no to whether anything changed were not asked for counts; they count as none."
    pairs = results.chips["pair_id"].nunique()
    if pairs > 1:
        yield f"Figures are over {pairs:,} pairs; ground that several of them show counts for each of them."
    yield "Changed ground is that of whole chips, however little of a chip has changed."


def _small(results: Results, found: Sequence[AreaSummary]) -> Iterator[str]:
    sizes = [one.area_km2 for one in found if one.area_km2]
    if sizes and np.median(sizes) < np.nanmedian(results.areas_m2) / 1e6:
        yield "Areas are smaller than chips: each chip counts in one of them, and its neighbours look empty."


def _scale(results: Results) -> Iterator[str]:
    sizes = results.chips["gsd_m"].to_numpy(dtype=float, na_value=np.nan)
    known = np.unique(np.round(sizes[np.isfinite(sizes)], 4))
    for model, (learned_m, shrink) in dict(_trained(results)).items():
        warnings = {
            scale_warning(size, learned_m, shrink) for size in known[[0, -1] if len(known) else []].tolist()
        }
        for warning in sorted(filter(None, warnings)):
            yield f"Scale ({model}): {warning}."


def _trained(results: Results) -> Iterator[tuple[str, tuple[float, float]]]:
    """Metres a pixel that each model learned on, and how many times smaller it saw the chips."""
    for run in results.runs:
        model = run.get("model", {})
        learned_m, own_px = model.get("training_gsd_m"), model.get("chip_px")
        chip_px = _option(run, "chip_px")
        if learned_m and own_px and chip_px:
            yield str(model.get("name")), (float(learned_m), chip_px / own_px)


def _sureness(results: Results, whole: AreaSummary) -> Iterator[str]:
    if whole.unsure:
        yield (
            f"{whole.unsure:,} chips ({whole.unsure_share or 0:.0%} of those looked at) have a score "
            f"from {UNSURE[0]} to {UNSURE[1]}: the model leans to neither side."
        )
    names = {run.get("model", {}).get("name") for run in results.runs} - {None}
    if "nano" in names:
        yield (
            "The model nano has learned from drawn scenes only. Its scores are probabilities where change is "
            "as likely as not; where it is rare, ask for more than 0.5."
        )
    prints = {run.get("model", {}).get("fingerprint") for run in results.runs} - {None}
    if len(prints) > 1:
        yield f"The answers come from {len(prints)} models, whose scores cannot be compared."
    yield "These are answers of a model, not measurements: look at the images before deciding anything."


def _option(run: Mapping[str, Any], name: str) -> Any:
    return run.get("options", {}).get(name)
