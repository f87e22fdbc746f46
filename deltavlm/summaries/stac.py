"""The STAC item of an output, for a catalogue: STAC 1.1 with the extensions projection and processing.

What the MLM extension advises for results of a model is followed: the processing level L4, and a link and an
expression that lead to the model's own item.
"""

from __future__ import annotations

import calendar
import json
import os
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import numpy as np
import pyproj
import shapely
from shapely.geometry import mapping

from deltavlm.errors import ConfigError, InputError
from deltavlm.geo.geojson import cut_at_180
from deltavlm.summaries.results import Results, union
from deltavlm.summaries.stac_model import mlm_name, model_item_name
from deltavlm.summaries.totals import summarize_chips

__all__ = ["dump_item", "result_item"]

EXTENSIONS = "https://stac-extensions.github.io"
PROCESSING = f"{EXTENSIONS}/processing/v1.1.0/schema.json"
PROJECTION = f"{EXTENSIONS}/projection/v2.0.0/schema.json"
MEDIA = {
    ".gpkg": "application/geopackage+sqlite3",
    ".geojson": "application/geo+json",
    ".geojsonl": "application/geo+json-seq",
    ".ndjson": "application/geo+json-seq",
    ".fgb": "application/vnd.flatgeobuf",
    ".parquet": "application/vnd.apache.parquet",
    ".tif": "image/tiff; application=geotiff",
    ".png": "image/png",
    ".qml": "application/xml",
    ".html": "text/html",
    ".md": "text/markdown",
}
MOST_IMAGES = 200  # that are linked; of more, the list of pairs says which
MOST_POINTS = 400  # of an outline
SAME_PLACE = 1e-6  # degrees: a decimetre
LEVEL = "L4"  # results of a model, in words of the processing extension

Item = dict[str, Any]


def result_item(
    results: Results,
    item_path: Path,
    *,
    item_id: str | None = None,
    before_date: str | None = None,
    after_date: str | None = None,
    beside: Mapping[str, Path] | None = None,
) -> Item:
    """The item of one output, and of files `beside` it by their names; links are relative to `item_path`.

    Dates are ISO 8601, of which a year or a month will do; where they are not given, those of the pairs.

    Raises:
        InputError: no CRS, no chips, no provenance, or the dates are not known.
        ConfigError: a date that is none, or the later one comes first.
    """
    (path,), (run,) = results.paths, results.runs
    if not results.has_crs:
        raise InputError(f"{path}: has no CRS, so there is no place to put into a catalogue")
    if not run.get("model"):
        raise InputError(
            f"{path}: does not say which model made it; give an output as analyze has written it"
        )
    start = _moment(_date(results, "before", before_date), "start")
    end = _moment(_date(results, "after", after_date), "end")
    if start > end:
        raise ConfigError(f"the later date ({end}) comes before the earlier one ({start}); swap them")
    outline = _outline(results)
    model_href = f"./{quote(model_item_name(run))}"
    whole = summarize_chips(results)
    asset = {
        "href": _href(str(path), item_path.parent),
        "type": MEDIA.get(path.suffix.lower(), "application/octet-stream"),
        "title": "What changed, chip by chip",
        "roles": ["data"],
        "processing:level": LEVEL,
        "processing:expression": {"format": "stac-mlm", "expression": model_href},
    }
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": [PROJECTION, PROCESSING],
        "id": item_id or path.stem,
        "geometry": mapping(outline),
        "bbox": _bbox(outline),
        "properties": {
            "title": f"Changes between two dates: {path.stem}",
            "datetime": None,
            "start_datetime": start,
            "end_datetime": end,
            **_ground(results, run),
            "processing:level": LEVEL,
            "processing:lineage": _lineage(run),
            "processing:software": {name: str(number) for name, number in run.get("versions", {}).items()},
            "deltavlm:chips": whole.chips,
            "deltavlm:not_looked_at": whole.nodata + whole.failed,
            "deltavlm:changed": whole.changed,
        },
        "links": [*_images(results, run, item_path.parent), _link_to_model(run, model_href)],
        "assets": {"changes": asset, **_beside(path, beside or {}, item_path.parent)},
    }


def _beside(path: Path, given: Mapping[str, Path], folder: Path) -> Item:
    """Assets for files that belong to the output: its style for QGIS, a mask, a report."""
    style = path.with_suffix(".qml")
    files = {"style": style, **given} if style.is_file() else dict(given)
    assets = {}
    for name, file in files.items():
        kind = MEDIA.get(file.suffix.lower(), "application/octet-stream")
        role = "metadata" if file.suffix.lower() in (".qml", ".md", ".html") else "data"
        assets[name] = {"href": _href(str(file), folder), "type": kind, "title": file.name, "roles": [role]}
    return assets


def _date(results: Results, which: Literal["before", "after"], given: str | None) -> str:
    """The date that was given, else the first or last that the chips tell."""
    known = sorted(str(one) for one in results.chips[f"{which}_date"].dropna().unique())
    if given is None and not known:
        raise InputError(
            f"{results.paths[0]}: does not say when its images were taken; give --{which}-date, as 2024-05-31"
        )
    return given or (known[0] if which == "before" else known[-1])


def _moment(text: str, edge: Literal["start", "end"]) -> str:
    """A date in ISO 8601 as a moment in UTC: the first or the last second of a day, month or year.

    >>> _moment("2024-02", "end")
    '2024-02-29T23:59:59Z'
    """
    found = re.fullmatch(r"(\d{4})(?:-(\d{2})(?:-(\d{2}))?)?", text.strip())
    try:
        if found is None:
            moment = datetime.fromisoformat(text.strip())
            moment = moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC)
        else:
            year, month, day = (int(part) if part else 0 for part in found.groups())
            last = edge == "end"
            month = month or (12 if last else 1)
            day = day or (calendar.monthrange(year, month)[1] if last else 1)
            moment = datetime(year, month, day, *((23, 59, 59) if last else (0, 0, 0)), tzinfo=UTC)
    except (ValueError, calendar.IllegalMonthError):
        raise ConfigError(f"{text!r} is no date in ISO 8601; write it as 2024-05-31") from None
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ").rjust(20, "0")


def _outline(results: Results) -> shapely.Geometry:
    """The ground under all chips, or a hull of it where that has very many corners."""
    if shapely.is_missing(results.lonlat).all():
        raise InputError(f"{results.paths[0]}: has no chips with a place to put into a catalogue")
    outline = shapely.simplify(union(results.lonlat), SAME_PLACE)
    if shapely.get_num_coordinates(outline) > MOST_POINTS:
        outline = shapely.convex_hull(outline)
    return cut_at_180(outline)


def _bbox(outline: shapely.Geometry) -> list[float]:
    """West, south, east, north; of what is cut at the 180th meridian, west is the larger one."""
    west, south, east, north = shapely.bounds(outline).tolist()
    parts = shapely.bounds(shapely.get_parts(outline))
    eastern = parts[parts[:, 0] >= 0]
    if east - west > 359.9 and len(parts) > 1 and len(eastern):
        return [float(eastern[:, 0].min()), south, float(parts[parts[:, 0] < 0][:, 2].max()), north]
    return [west, south, east, north]


def _ground(results: Results, run: Mapping[str, Any]) -> Item:
    """CRS and grid, in words of the projection extension, and the size of a pixel."""
    crs = pyproj.CRS(results.chips.crs)
    code = crs.to_authority()
    told: Item = {"proj:code": ":".join(code)} if code else {"proj:code": None, "proj:wkt2": crs.to_wkt()}
    grid = run.get("inputs", {}).get("grid")
    if grid:
        told |= {"proj:shape": [grid["height"], grid["width"]], "proj:transform": list(grid["transform"])}
    sizes = results.chips["gsd_m"].to_numpy(dtype=float, na_value=np.nan)
    if np.isfinite(sizes).any():
        told["gsd"] = float(np.nanmin(sizes))
    return told


def _lineage(run: Mapping[str, Any]) -> str:
    options = run.get("options", {})
    questions = ", ".join(str(one.get("name")) for one in run.get("questions", ()))
    return (
        f"Chips of {options.get('chip_px')} px that share {options.get('overlap_px')} px were cut from both "
        f"dates, and the model {run['model'].get('name')} ({run['model'].get('fingerprint')}) was asked "
        f"about each: {questions}."
    )


def _images(results: Results, run: Mapping[str, Any], folder: Path) -> Iterator[Item]:
    """Links to the images, and to the list of the pairs where there is one."""
    for date, when in (("before", "earlier"), ("after", "later")):
        names = [str(name) for name in results.chips[date].dropna().unique()]
        for name in names if len(names) <= MOST_IMAGES else ():
            yield {"rel": "derived_from", "href": _href(name, folder), "title": f"The {when} image"}
    if "pairs" in run:
        yield {"rel": "derived_from", "href": _href(str(run["pairs"]), folder), "title": "The list of pairs"}


def _link_to_model(run: Mapping[str, Any], href: str) -> Item:
    return {
        "rel": "derived_from",
        "href": href,
        "type": "application/geo+json",
        "title": "The model",
        "mlm:name": mlm_name(str(run["model"].get("name"))),
    }


def _href(location: str, folder: Path) -> str:
    """A URL as it is; a file as a path from `folder`."""
    if "://" in location:
        return location
    if location.startswith("/vsi") or not Path(location).exists():
        return quote(location)
    told = Path(os.path.relpath(Path(location).absolute(), folder.absolute())).as_posix()
    return quote(told if told.startswith("../") else f"./{told}")


def dump_item(item: Item) -> str:
    """An item as the text of a file."""
    return json.dumps(item, indent=2, ensure_ascii=False) + "\n"
