"""Caveats of a summary, from its outputs: chips not analyzed, overlap, scale, uncertain scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from deltavlm.geo.registration import shift_caveat
from deltavlm.messages import pluralize
from deltavlm.pipeline.scale import Scale
from deltavlm.summaries.results import UNSURE, Results
from deltavlm.summaries.totals import AreaSummary

__all__ = ["caveats"]


def caveats(results: Results, total: AreaSummary, areas: Sequence[AreaSummary] = ()) -> list[str]:
    """Sentences on how to read the totals, the most important first; only those that apply."""
    sentences = [
        *_not_analyzed(results, total),
        *_counts(results, total),
        *_small_areas(results, areas),
        *_pixel_size(results),
        *_shifts(results),
        *_threshold(results),
        *_confidence(results, total),
    ]
    return list(dict.fromkeys(sentences))


def _not_analyzed(results: Results, total: AreaSummary) -> Iterator[str]:
    count = total.nodata + total.failed
    if count:
        yield (
            f"Not analyzed: {count:,} of {pluralize(total.chips, 'chip')} ({total.nodata:,} without enough "
            f"data, {total.failed:,} that could not be read or answered). They may have changed or not."
        )
    if results.lost_pairs:
        names = ", ".join(results.lost_pairs[:3]) + (", …" if len(results.lost_pairs) > 3 else "")
        yield f"Pairs that could not be opened and were not analyzed: {len(results.lost_pairs):,} ({names})."
    elif results.lost_pairs is None:
        yield "The output does not record which pairs could not be opened; a GeoPackage does."
    for run in results.runs:
        limit = _option(run, "limit")
        if limit:
            chips = pluralize(limit, "chip")
            yield f"The run was limited to {chips}; the other chips of the images were not analyzed."
        inputs = {**run.get("inputs", {}), **run.get("reading", {})}
        if inputs.get("bbox") or inputs.get("aoi"):
            yield "Only chips that touch the area of interest were analyzed."
            if results.chips["aoi_share"].isna().all():
                yield "How much of them lies outside of it is not known, and counts."
        share = run.get("inputs", {}).get("alignment", {}).get("overlap_share")
        if share is not None and share < 0.9995:
            yield f"The later image covers {share:.1%} of the earlier one; nothing else was analyzed."
    if any(not run for run in results.runs):
        yield "An output has no provenance, so more may have been left out than is listed here."
    if total.unparsed:
        yield (
            f"For {pluralize(total.unparsed, 'chip')} the answer was neither yes nor no, which is not "
            "counted as changed."
        )


def _counts(results: Results, total: AreaSummary) -> Iterator[str]:
    has_counts = total.new_buildings is not None or total.new_roads is not None
    if has_counts:
        yield (
            "New buildings and roads are counted per chip, none where it is called unchanged, and weighted "
            "by the ground that is the chip's own: their sums are estimates."
        )
    if total.basis in ("chips", "chips and polygons"):
        yield "Changed ground is the area of whole chips, however little of a chip has changed."
    unknown = int(results.chips["ground_share"].isna().sum())
    if unknown:
        yield (
            f"For {pluralize(unknown, 'chip')} it is not known how much of the ground lies in other chips "
            "too; it counts for each of them."
        )
    cascaded = results.chips["status"].eq("cascaded")
    changed_later = int((cascaded & results.chips["changed"].eq(True)).sum())
    if changed_later:
        chips = pluralize(
            changed_later,
            "changed chip was asked only whether it",
            "changed chips were asked only whether they",
        )
        yield f"{chips} changed: the run, with a cascade, saw no change there."
    if cascaded.any() and has_counts:
        yield "With a cascade, unchanged chips were not asked for counts; they count as none."
    pairs = results.chips["pair_id"].nunique()
    if pairs > 1:
        yield f"Figures are over {pairs:,} pairs; ground that several pairs cover counts for each of them."


def _small_areas(results: Results, areas: Sequence[AreaSummary]) -> Iterator[str]:
    sizes = [area.area_km2 for area in areas if area.area_km2]
    if sizes and np.median(sizes) < np.nanmedian(results.areas_m2) / 1e6:
        yield (
            "Areas are smaller than chips: what a chip counts is spread evenly over its ground, and the chip "
            "is counted in one of them."
        )


def _pixel_size(results: Results) -> Iterator[str]:
    sizes_m = results.chips["gsd_m"].to_numpy(dtype=float, na_value=np.nan)
    sizes_m = np.unique(np.round(sizes_m[np.isfinite(sizes_m)], 4))
    extremes_m = sizes_m[[0, -1] if len(sizes_m) else []].tolist()
    for model, (training_gsd_m, downsampling) in dict(_training_scales(results)).items():
        scales = [Scale(size_m, training_gsd_m, downsampling) for size_m in extremes_m]
        warnings = {scale.warning() for scale in scales}
        for warning in sorted(filter(None, warnings)):
            yield f"Scale ({model}): {warning}."


def _shifts(results: Results) -> Iterator[str]:
    shifts_px = results.chips["shift_px"].to_numpy(dtype=float, na_value=np.nan)
    caveat = shift_caveat(shifts_px[np.isfinite(shifts_px)])
    if caveat:
        yield caveat


def _training_scales(results: Results) -> Iterator[tuple[str, tuple[float, float]]]:
    """For each model: ground sample distance that it was trained on, and how far it downsampled the chips."""
    for run in results.runs:
        model, chip_px = run.get("model", {}), _option(run, "chip_px")
        for facts in (model, model.get("evidence", {})):
            training_gsd_m, model_chip_px = facts.get("training_gsd_m"), facts.get("chip_px")
            if training_gsd_m and model_chip_px and chip_px:
                yield str(facts.get("name")), (float(training_gsd_m), chip_px / model_chip_px)


def _threshold(results: Results) -> Iterator[str]:
    if results.threshold is not None:
        yield (
            f"Changed chips are those with a score of at least {results.threshold:g}, by the stored scores; "
            "polygons of chips that it calls unchanged are left out."
        )
        return
    for threshold in dict.fromkeys(_option(run, "threshold") for run in results.runs):
        if threshold is not None:
            yield f"The run calls chips changed that have a score of at least {threshold:g}."


def _confidence(results: Results, total: AreaSummary) -> Iterator[str]:
    if total.conflicting:
        rules = ", ".join(f"{name} {count:,}" for name, count in sorted(total.conflicts.items()))
        yield (
            f"The answers about {total.conflicting:,} of {pluralize(total.looked_at, 'analyzed chip')} "
            f"contradict each other ({rules})."
        )
    if total.unsure:
        yield (
            f"The model is undecided on {pluralize(total.unsure, 'chip')} ({total.unsure_share or 0:.0%} of "
            f"the analyzed ones), with a score from {UNSURE[0]} to {UNSURE[1]}."
        )
    names = {run.get("model", {}).get("name") for run in results.runs} - {None}
    if "nano" in names:
        yield (
            "The model nano was trained on synthetic scenes only. Its scores are probabilities where one "
            "chip in five has changed; where change is rarer, use a higher threshold."
        )
    fingerprints = {run.get("model", {}).get("fingerprint") for run in results.runs} - {None}
    if len(fingerprints) > 1:
        yield f"The answers come from {len(fingerprints)} models, whose scores cannot be compared."
    if total.cloud_share:
        yield (
            f"Cloud masks hide {total.cloud_share:.2g} of the ground that has data; nothing is known of it."
        )
    yield "These are answers of a model, not measurements: check the images before any decision."


def _option(run: Mapping[str, Any], name: str) -> Any:
    return run.get("options", {}).get(name)
