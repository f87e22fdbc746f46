"""STAC item of an output: STAC 1.1 with the extensions projection and processing.

It follows the MLM extension's advice for results of a model: processing level L4, and a link and an
expression that lead to the item of the model.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import numpy as np
import pyproj
import shapely
from shapely.geometry import mapping

from deltavlm.errors import ConfigError, InputError
from deltavlm.geo.dates import as_datetime
from deltavlm.geo.lonlat import cut_at_180, hull_in_lonlat, lonlat_bounds
from deltavlm.geo.output_files import write_output
from deltavlm.summaries.results import Results, union
from deltavlm.summaries.stac_model import mlm_name, model_item_name
from deltavlm.summaries.totals import summarize_chips

__all__ = ["dump_item", "result_item", "write_items"]

EXTENSIONS = "https://stac-extensions.github.io"
PROCESSING = f"{EXTENSIONS}/processing/v1.1.0/schema.json"
PROJECTION = f"{EXTENSIONS}/projection/v2.0.0/schema.json"
MEDIA_TYPES = {
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
MAX_IMAGE_LINKS = 200  # for more images, the link to the list of pairs has to do
MAX_OUTLINE_POINTS = 400
SIMPLIFY_DEGREES = 1e-6  # a decimetre
LEVEL = "L4"  # of the processing extension: results of a model

Item = dict[str, Any]


def result_item(
    results: Results,
    item_path: Path,
    *,
    item_id: str | None = None,
    before_date: str | None = None,
    after_date: str | None = None,
    assets: Mapping[str, Path] | None = None,
) -> Item:
    """Item of a single output.

    Args:
        item_path: path of the item; links are relative to its folder.
        item_id: the name of the output by default.
        before_date, after_date: ISO 8601, of which a year or a month is enough; by default the earliest and
            latest date of the pairs.
        assets: more files by the name of their asset.

    Raises:
        InputError: no CRS, no chips, no provenance, or unknown dates.
        ConfigError: an invalid date, or the later date comes first.
    """
    (path,), (run,) = results.paths, results.runs
    if not results.has_crs:
        raise InputError(f"{path}: has no CRS, so it has no location for a catalogue")
    if not run.get("model"):
        raise InputError(
            f"{path}: does not say which model made it; give an output as analyze has written it"
        )
    start = _timestamp(_date(results, "before", before_date), "start")
    end = _timestamp(_date(results, "after", after_date), "end")
    if start > end:
        raise ConfigError(f"the later date ({end}) comes before the earlier one ({start}); swap them")
    outline = _outline(results)
    model_href = f"./{quote(model_item_name(run))}"
    total = summarize_chips(results)
    asset = {
        "href": _href(str(path), item_path.parent),
        "type": MEDIA_TYPES.get(path.suffix.lower(), "application/octet-stream"),
        "title": "Changes by chip",
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
        "bbox": list(lonlat_bounds(outline)),
        "properties": {
            "title": f"Changes between two dates: {path.stem}",
            "datetime": None,
            "start_datetime": start,
            "end_datetime": end,
            **_projection(results, run),
            "processing:level": LEVEL,
            "processing:lineage": _lineage(run),
            "processing:software": {name: str(number) for name, number in run.get("versions", {}).items()},
            "deltavlm:chips": total.chips,
            "deltavlm:not_looked_at": total.nodata + total.failed,
            "deltavlm:changed": total.changed,
            **{f"deltavlm:{name}": value for name, value in total.totals.as_dict().items()},
        },
        "links": [*_image_links(results, run, item_path.parent), _model_link(run, model_href)],
        "assets": {"changes": asset, **_file_assets(path, assets or {}, item_path.parent)},
    }


def _file_assets(path: Path, extra_files: Mapping[str, Path], folder: Path) -> Item:
    """Assets of files that belong to the output: its QGIS style, and `extra_files` such as a mask."""
    style = path.with_suffix(".qml")
    files = {"style": style, **extra_files} if style.is_file() else dict(extra_files)
    assets = {}
    for name, file in files.items():
        media_type = MEDIA_TYPES.get(file.suffix.lower(), "application/octet-stream")
        role = "metadata" if file.suffix.lower() in (".qml", ".md", ".html") else "data"
        assets[name] = {
            "href": _href(str(file), folder),
            "type": media_type,
            "title": file.name,
            "roles": [role],
        }
    return assets


def _date(results: Results, side: Literal["before", "after"], override: str | None) -> str:
    """The override, else the earliest `before` or the latest `after` date of the chips."""
    dates = sorted(str(date) for date in results.chips[f"{side}_date"].dropna().unique())
    if override is None and not dates:
        raise InputError(
            f"{results.paths[0]}: does not say when its images were taken; give `{side}_date`, as 2024-05-31"
        )
    return override or (dates[0] if side == "before" else dates[-1])


def _timestamp(text: str, edge: Literal["start", "end"]) -> str:
    """Timestamp in UTC of an ISO 8601 date: the first or last second of a day, month or year.

    >>> _timestamp("2024-02", "end")
    '2024-02-29T23:59:59Z'
    """
    try:
        moment = as_datetime(text.strip(), is_end=edge == "end")
    except ValueError:
        raise ConfigError(f"{text!r} is not a date in ISO 8601; write it as 2024-05-31") from None
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ").rjust(20, "0")


def _outline(results: Results) -> shapely.Geometry:
    """Union of all chips, or its convex hull if it has too many vertices."""
    if shapely.is_missing(results.lonlat).all():
        raise InputError(f"{results.paths[0]}: has no chips with a location for a catalogue")
    outline = shapely.simplify(union(results.lonlat), SIMPLIFY_DEGREES)
    if shapely.get_num_coordinates(outline) > MAX_OUTLINE_POINTS:
        return hull_in_lonlat(outline)
    return cut_at_180(outline)


def _projection(results: Results, run: Mapping[str, Any]) -> Item:
    """CRS and grid as fields of the projection extension, and the ground sample distance."""
    crs = pyproj.CRS(results.chips.crs)
    code = crs.to_authority()
    fields: Item = {"proj:code": ":".join(code)} if code else {"proj:code": None, "proj:wkt2": crs.to_wkt()}
    grid = run.get("inputs", {}).get("grid")
    if grid:
        fields |= {"proj:shape": [grid["height"], grid["width"]], "proj:transform": list(grid["transform"])}
    sizes = results.chips["gsd_m"].to_numpy(dtype=float, na_value=np.nan)
    if np.isfinite(sizes).any():
        fields["gsd"] = float(np.nanmin(sizes))
    return fields


def _lineage(run: Mapping[str, Any]) -> str:
    options = run.get("options", {})
    questions = ", ".join(str(question.get("name")) for question in run.get("questions", ()))
    return (
        f"Chips of {options.get('chip_px')} px with an overlap of {options.get('overlap_px')} px, read from "
        f"both dates and analyzed by the model {run['model'].get('name')} "
        f"({run['model'].get('fingerprint')}) with the questions {questions}."
    )


def _image_links(results: Results, run: Mapping[str, Any], folder: Path) -> Iterator[Item]:
    """Links to the images, and to the list of pairs if there is one."""
    for date, when in (("before", "earlier"), ("after", "later")):
        names = [str(name) for name in results.chips[date].dropna().unique()]
        for name in names if len(names) <= MAX_IMAGE_LINKS else ():
            yield {"rel": "derived_from", "href": _href(name, folder), "title": f"The {when} image"}
    if "pairs" in run:
        yield {"rel": "derived_from", "href": _href(str(run["pairs"]), folder), "title": "The list of pairs"}


def _model_link(run: Mapping[str, Any], href: str) -> Item:
    return {
        "rel": "derived_from",
        "href": href,
        "type": "application/geo+json",
        "title": "The model",
        "mlm:name": mlm_name(str(run["model"].get("name"))),
    }


def _href(location: str, folder: Path) -> str:
    """URL unchanged; path of a file relative to `folder`."""
    if "://" in location:
        return location
    if location.startswith("/vsi") or not Path(location).exists():
        return quote(location)
    relative = Path(os.path.relpath(Path(location).absolute(), folder.absolute())).as_posix()
    return quote(relative if relative.startswith("../") else f"./{relative}")


def dump_item(item: Item) -> str:
    """Item as JSON text."""
    return json.dumps(item, indent=2, ensure_ascii=False) + "\n"


def write_items(item_path: Path, item: Item, model_path: Path, model: Item, *, overwrite: bool) -> bool:
    """Write the item of an output and that of its model, which outputs of one model share.

    Without `overwrite`, an existing item of the model is kept. Returns whether it was.

    Raises:
        OutputError and WriteError: as `write_output`.
    """
    keep_model = not overwrite and model_path.exists()
    if not keep_model:
        write_output(model_path, dump_item(model).encode(), overwrite)
    write_output(item_path, dump_item(item).encode(), overwrite)
    return keep_model
