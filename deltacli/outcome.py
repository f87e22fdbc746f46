"""What is said of a pair when it is opened, and of a run over its chips when that is done."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from deltacli.console import console, pluralize

if TYPE_CHECKING:
    from rasterio.crs import CRS

    from deltacli.wanted import Wanted
    from deltavlm.geo.pair import PairReader
    from deltavlm.model.interface import ModelFacts
    from deltavlm.pipeline.analyze import ChangedChip, Summary


def places(chips: list[ChangedChip], crs: CRS | None) -> tuple[str, list[tuple[float, float]]]:
    """Where the most changed chips are, and in what; without a way to lon/lat, as the output has it."""
    import numpy as np

    from deltavlm.geo.geobox import LONLAT, project

    points = np.array([(chip.x, chip.y) for chip in chips], float).reshape(-1, 2)
    lonlat = project(points, crs, LONLAT)
    if crs is not None and np.isfinite(lonlat).all():
        return "lon/lat", [(x, y) for x, y in lonlat.tolist()]
    return ("x/y px" if crs is None else "x/y"), [(x, y) for x, y in points.tolist()]


def print_outcome(summary: Summary, reader: PairReader, target: str, judged: bool, top: int = 10) -> None:
    """The end of a run over one pair; judged: whether the yes/no question was asked; `top`: most rows of the
    table."""
    chips = summary.most_changed[:top]
    crs = reader.geobox.crs
    where, points = places(chips, crs)
    digits = 5 if where == "lon/lat" else 0
    rows = [
        (chip.chip_id, f"{x:.{digits}f}", f"{y:.{digits}f}", f"{chip.score:.2f}", chip.caption)
        for chip, (x, y) in zip(chips, points, strict=True)
    ]
    x_name, y_name = (
        ("lon", "lat")
        if where == "lon/lat"
        else ("x px", "y px")
        if reader.geobox.crs is None
        else ("x", "y")
    )
    console.table("Most changed chips", ("chip", x_name, y_name, "score", "caption"), rows)
    print_unread(summary)
    console.info(f"{chips_told(summary, judged)}; output {'on stdout' if target == '-' else target}")


def print_changes(summary: Summary, wanted: Wanted, extras: Mapping[str, str]) -> None:
    """How much ground changed, and what lies beside the output."""
    parts = [f"{pluralize(summary.polygons, 'polygon')} of change"] if wanted.masks.polygons else []
    parts += [f"{name} {path}" for name, path in extras.items()]
    if parts:
        console.info("; ".join(parts))


def changes_told(summary: Summary, wanted: Wanted, extras: Mapping[str, str]) -> dict[str, Any]:
    """The same as plain values."""
    told: dict[str, Any] = {"polygons": summary.polygons} if wanted.masks.polygons else {}
    return told | ({"extras": dict(extras)} if extras else {})


def print_unread(summary: Summary) -> None:
    """Warn where a yes/no answer was neither."""
    if summary.unread:
        console.warning(
            f"the model said neither yes nor no to whether {pluralize(summary.unread, 'chip')} changed; the"
            f" answers as written are in answer_change"
        )


def chips_told(summary: Summary, judged: bool) -> str:
    """`15 chips: 1 changed, 2 nodata; 0.7 s, 21.3 chips/s`."""
    parts = [f"{summary.changed} changed"] if judged else []
    parts += [f"{count} {status}" for status, count in summary.statuses.items() if status != "answered"]
    told = ": ".join(filter(None, [pluralize(summary.chips, "chip"), ", ".join(parts)]))
    return f"{told}; {summary.seconds:.1f} s, {summary.chips_per_s:.1f} chips/s"


def chips_counted(summary: Summary) -> dict[str, Any]:
    """How many chips there are, and of each status."""
    return {
        "chips": summary.chips,
        **{
            status: summary.statuses[status]
            for status in ("answered", "cascaded", "nodata", "unreadable", "error")
        },
        "earlier": summary.earlier,
        "repeated": summary.repeated,
        "changed": summary.changed,
        "neither_yes_nor_no": summary.unread,
        "seconds": round(summary.seconds, 3),
        "chips_per_s": round(summary.chips_per_s, 3),
    }


def changed_told(chip: ChangedChip, where: str, point: tuple[float, float]) -> dict[str, Any]:
    """One of the most changed chips as plain values."""
    x_name, y_name = ("lon", "lat") if where == "lon/lat" else ("x", "y")
    told = {"pair_id": chip.pair} if chip.pair else {}
    return {
        **told,
        "chip_id": chip.chip_id,
        "score": chip.score,
        x_name: point[0],
        y_name: point[1],
        "caption": chip.caption,
    }


def outcome(summary: Summary, reader: PairReader, model: ModelFacts) -> dict[str, Any]:
    """The summary as one JSON object."""
    where, points = places(summary.most_changed, reader.geobox.crs)
    return {
        **chips_counted(summary),
        "gsd_m": reader.gsd_m,
        "overlap_share": reader.alignment.overlap_share,
        "notes": list(reader.notes),
        "model": model.name,
        "fingerprint": model.fingerprint,
        "device": model.device,
        "batch_size": summary.batch_size,
        "first_failure": summary.first_failure or None,
        "most_changed": [
            changed_told(chip, where, point) for chip, point in zip(summary.most_changed, points, strict=True)
        ],
    }
