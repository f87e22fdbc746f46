"""Parser of a list of pairs: CSV with a header, JSON lines, or a STAC item collection.

Errors name file, line and column.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from difflib import get_close_matches
from functools import partial
from json import JSONDecodeError
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import numpy as np
import shapely
from shapely.errors import ShapelyError
from shapely.geometry import shape
from shapely.geometry.base import BaseGeometry

from deltavlm.errors import ConfigError, InputError
from deltavlm.files import describe_read_error, open_regular, parse_json, read_text
from deltavlm.geo.cloud_mask import relocate_cloud_mask
from deltavlm.geo.location import decode_path, is_local, normalize_location
from deltavlm.geo.output_files import SUFFIXES
from deltavlm.geo.vector_reader import split_layer
from deltavlm.messages import pluralize, preview
from deltavlm.pipeline.pairs import Pair, PairList, with_ids

__all__ = ["COLUMNS", "LABEL", "is_pair_list", "parse_pairs", "read_pairs"]

COLUMNS = (
    *("before", "after", "id", "date", "before_date", "after_date", "aoi"),
    *("before_cloud_mask", "after_cloud_mask"),
)
ALIAS = "pair_id"  # what outputs call the id
LABEL = "changed"  # of a list for a calibration
_LABELS = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}
_REQUIRED = ("before", "after")
_DELIMITERS = ",;\t"
_HEAD_BYTES = 2**16  # of a file, which tell a list from an output
_FEATURES = re.compile(rb'\s*\{\s*"type"\s*:\s*"Feature')  # beginning of GeoJSON
_MAX_FIELD = 2**24  # characters of a CSV field: an area of interest can be long
_COARSE_DATE = re.compile(r"\d{4}(-(0[1-9]|1[0-2]))?")  # a year, or a year and a month
_COLLECTION = re.compile("COLLECTION", re.IGNORECASE)
_MAX_COLLECTIONS = 32
_WKT = re.compile(r"(?i)((MULTI)?(POLYGON|LINESTRING|POINT)|GEOMETRYCOLLECTION)\s*(Z|M|ZM)?\s*(\(|EMPTY)")


@dataclass(frozen=True, slots=True)
class _Row:
    """Values of one line of the list, or of one item of a collection."""

    line: int  # or item of a collection, from 1
    source: str  # file and line, for messages
    values: Mapping[str, Any]
    item_url: str = ""  # where a STAC item says that it lies


def is_pair_list(path: Path) -> bool:
    """True for a file that is a list of pairs by its name, or by its beginning where an output may have that
    name too; False for an output, or a folder."""
    suffix = path.suffix.lower()
    if path.is_dir() or suffix in (".gpkg", ".fgb", ".parquet"):
        return False
    if suffix not in SUFFIXES:
        return True
    try:
        with open_regular(path) as stream:
            head = stream.read(_HEAD_BYTES)
    except OSError:
        return False
    return b'"assets"' in head or not _FEATURES.match(head)  # STAC items have assets


def read_pairs(path: Path, *, labels: bool = False) -> PairList:
    """Read the pairs of a file; its relative paths start at its folder.

    labels: read the column `changed` too.

    Raises: InputError that names file, line and column.
    """
    try:
        text = read_text(path)
    except OSError as error:
        raise InputError(describe_read_error(path, error)) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text; save it as UTF-8") from error
    return parse_pairs(text, str(path), path.parent, labels=labels)


def parse_pairs(text: str, source: str, folder: Path, *, labels: bool = False) -> PairList:
    """Parse a list of pairs in CSV, JSON lines or a STAC item collection; the first character decides.

    labels: read the column `changed` too: yes, true or 1; no, false or 0; or empty.

    Raises: InputError that names `source`, line and column.
    """
    text = text.removeprefix("\ufeff")
    if not text.strip():
        raise InputError(f"{source}: holds no pairs; the first line of a CSV is before,after")
    rows = list(_json_rows(text, source) if text.lstrip()[0] in "{[" else _csv_rows(text, source))
    pairs = [_pair(row, folder) for row in rows]
    columns = [*COLUMNS, ALIAS, *([LABEL] if labels else [])]
    if labels:
        pairs = [replace(pair, changed=_label(row)) for pair, row in zip(pairs, rows, strict=True)]
    if not pairs:
        raise InputError(f"{source}: holds no pairs; give a line or an item for each")
    extra = dict.fromkeys(key for row in rows for key in row.values if key and key not in columns)
    notes = (f"{source}: ignored columns: {', '.join(extra)}",) if extra else ()
    unit = "items" if ", item " in rows[0].source else "lines"
    return PairList(with_ids(pairs, f"{source}, {unit}"), source, notes)


def _csv_rows(text: str, source: str) -> Iterator[_Row]:
    head = next(line for line in text.splitlines() if line.strip())
    delimiter = max(_DELIMITERS, key=head.count)
    limit = csv.field_size_limit(_MAX_FIELD)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        header: list[str] = []
        begin = 1
        for cells in reader:
            line, begin = begin, reader.line_num + 1
            if not any(cell.strip() for cell in cells):
                continue
            if not header:
                header = _header([cell.strip().lower() for cell in cells], f"{source}, line {line}")
                continue
            if len(cells) > len(header):
                raise InputError(
                    f"{source}, line {line}: has {pluralize(len(cells), 'column')}, but the header "
                    f"{len(header)}; put text with a comma in quotes"
                )
            yield _Row(line, f"{source}, line {line}", dict(zip(header, cells, strict=False)))
    except csv.Error as error:
        raise InputError(f"{source}, line {reader.line_num}: is not valid CSV ({error})") from error
    finally:
        csv.field_size_limit(limit)


def _header(names: list[str], source: str) -> list[str]:
    for name in _REQUIRED:
        if name not in names:
            close = get_close_matches(name, names, n=1)
            hint = f"is {close[0]!r} meant?" if close else "the first line names the columns"
            raise InputError(
                f"{source}: there is no column {name!r}; {hint} (required: before, after; optional: "
                f"{', '.join(COLUMNS[2:])})"
            )
    duplicate = next((name for name in names if name and names.count(name) > 1), None)
    if duplicate is not None:
        raise InputError(f"{source}: there are two columns {duplicate!r}; keep one")
    return names


def _json_rows(text: str, source: str) -> Iterator[_Row]:
    try:
        document = parse_json(text)
    except ValueError as error:
        if not _is_json(text.lstrip().partition("\n")[0]):
            raise InputError(f"{source}: is not valid JSON ({error})") from error
        yield from _json_line_rows(text, source)
        return
    if isinstance(document, list):
        raise InputError(f"{source}: is a JSON list; write an object a line, or a STAC item collection")
    if document.get("type") != "FeatureCollection":  # one line, or one object over several
        yield _Row(1, f"{source}, line 1", _check_object(document, f"{source}, line 1"))
        return
    items = document.get("features")
    if not isinstance(items, list):
        raise InputError(f"{source}: the item collection has no list 'features'")
    for number, item in enumerate(items, start=1):
        item_source = f"{source}, item {number}"
        yield _Row(number, item_source, _stac_values(item, item_source), _self_url(item))


def _json_line_rows(text: str, source: str) -> Iterator[_Row]:
    for number, line in enumerate(text.split("\n"), start=1):
        line_source = f"{source}, line {number}"
        if line.strip():
            try:
                values = parse_json(line)
            except ValueError as error:
                at_column = (
                    f"{error.msg} at column {error.colno}" if isinstance(error, JSONDecodeError) else error
                )
                raise InputError(f"{line_source}: is not valid JSON ({at_column})") from error
            yield _Row(number, line_source, _check_object(values, line_source))


def _is_json(text: str) -> bool:
    try:
        parse_json(text)
    except ValueError:
        return False
    return True


def _check_object(values: Any, source: str) -> Mapping[str, Any]:
    if not isinstance(values, dict):
        raise InputError(f'{source}: is not an object; write {{"before": "...", "after": "..."}}')
    for name in _REQUIRED:
        if name not in values:
            close = get_close_matches(name, values, n=1)
            raise InputError(f"{source}: has no {name!r}{f'; is {close[0]!r} meant?' if close else ''}")
    return values


def _stac_values(item: Any, source: str) -> Mapping[str, Any]:
    """Values of a pair from a STAC item. Its geometry is the footprint of the images, not an AOI."""
    assets = item.get("assets") if isinstance(item, dict) else None
    if not isinstance(assets, dict):
        raise InputError(f"{source}: is not a STAC item with assets")
    hrefs = {}
    for name in _REQUIRED:
        asset = assets.get(name)
        if not isinstance(asset, dict) or not isinstance(asset.get("href"), str):
            raise InputError(
                f"{source}: has no asset {name!r} with a href, only {', '.join(map(repr, assets)) or 'none'}"
            )
        hrefs[name] = asset["href"]
    properties = item.get("properties")
    if not isinstance(properties, dict):
        properties = {}
    start = assets["before"].get("datetime") or properties.get("start_datetime")
    end = assets["after"].get("datetime") or properties.get("end_datetime") or properties.get("datetime")
    aoi = properties.get("aoi")
    label = {LABEL: properties[LABEL]} if LABEL in properties else {}
    return {**hrefs, "id": item.get("id"), "before_date": start, "after_date": end, "aoi": aoi, **label}


def _self_url(item: Mapping[str, Any]) -> str:
    """URL of a STAC item by its link to itself; empty without one."""
    links = item.get("links")
    for link in links if isinstance(links, list) else ():
        if isinstance(link, dict) and link.get("rel") == "self" and "://" in str(link.get("href")):
            return str(link["href"])
    return ""


def _pair(row: _Row, folder: Path) -> Pair:
    texts = {name: _text(row.values.get(name), f"{row.source}, {name}") for name in COLUMNS if name != "aoi"}
    for name in _REQUIRED:
        if texts[name] is None:
            raise InputError(f"{row.source}, {name}: is empty; name an image")
    dates = {
        name: check_date(texts[name], f"{row.source}, {name}") for name in COLUMNS if name.endswith("date")
    }
    return Pair(
        texts["id"] or _text(row.values.get(ALIAS), f"{row.source}, {ALIAS}") or "",
        _resolve(texts["before"] or "", folder, row.item_url),
        _resolve(texts["after"] or "", folder, row.item_url),
        dates["before_date"],
        dates["after_date"] or dates["date"],
        _aoi(row.values.get("aoi"), f"{row.source}, aoi", folder),
        row.line,
        _cloud_mask(texts["before_cloud_mask"], f"{row.source}, before_cloud_mask", folder),
        _cloud_mask(texts["after_cloud_mask"], f"{row.source}, after_cloud_mask", folder),
    )


def _label(row: _Row) -> bool | None:
    """Label of a pair; None where it is empty. Raises: InputError."""
    value = row.values.get(LABEL)
    text = "" if value is None else str(value).strip().lower()
    if text and text not in _LABELS:
        raise InputError(
            f"{row.source}, {LABEL}: {preview(value)} is neither yes (true, 1) nor no (false, 0)"
        )
    return _LABELS.get(text)


def _cloud_mask(text: str | None, source: str, folder: Path) -> str | None:
    """Cloud mask with a path that is resolved at the folder. Raises: InputError."""
    if text is None:
        return None
    try:
        return relocate_cloud_mask(text, partial(_resolve, folder=folder))
    except ConfigError as error:
        raise InputError(f"{source}: {error}") from error


def _text(value: Any, source: str) -> str | None:
    """Printable text of a value; a number as it is written. Raises: InputError."""
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise InputError(f"{source}: {preview(value)} is not text")
    text = str(value).strip()
    if any(ord(char) < 32 or 0xD800 <= ord(char) < 0xE000 or ord(char) == 127 for char in text):
        raise InputError(f"{source}: {text!r} has characters that cannot be printed; remove them")
    return text or None


def _resolve(text: str, folder: Path, item_url: str = "") -> str:
    """Location of a path or URL in a list: a relative path starts at `folder`; a URL or a /vsi path stays.

    Percent-encoding is decoded where no file has the encoded name. What is not in `folder` is looked for
    beside `item_url`, where the item of the list says that it lies.
    """
    location = normalize_location(text)
    if not is_local(location):
        return location
    path = Path(decode_path(str(folder / location)))
    if path.exists() or Path(location).is_absolute():
        return str(path)
    if item_url:
        return normalize_location(urljoin(item_url, text))
    return text if ":" in text else str(path)


def check_date(text: str | None, source: str) -> str | None:
    """Date in ISO 8601, a year, or a year and a month. Raises: InputError for other text."""
    if text is None or _COARSE_DATE.fullmatch(text):
        return text
    try:
        datetime.fromisoformat(text)
    except ValueError:
        raise InputError(f"{source}: {text!r} is not a date in ISO 8601; write it as 2024-05-31") from None
    return text


def _aoi(value: Any, source: str, folder: Path) -> Path | BaseGeometry | None:
    """Area of interest: a geometry in longitude and latitude (WKT or GeoJSON), or a vector file."""
    if not isinstance(value, dict):
        text = _text(value, source)
        if text is None:
            return None
        if not text.startswith("{") and not _WKT.match(text):
            file, layer = split_layer(str(folder / normalize_location(text)))
            return Path(f"{file}:{layer}") if layer else Path(_resolve(text, folder))
        value = text
    try:
        if isinstance(value, str) and value.startswith("{"):
            value = parse_json(value)
        if isinstance(value, str) and len(_COLLECTION.findall(value)) > _MAX_COLLECTIONS:
            raise ValueError("too many collections in collections")  # GEOS would overflow the stack
        geometry = shapely.from_wkt(value) if isinstance(value, str) else _shape(value)
        geometry = shapely.make_valid(geometry)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError, ShapelyError) as error:
        words = str(error).partition("\n")[0]
        raise InputError(
            f"{source}: is neither WKT nor a GeoJSON geometry ({words}); give one, or a file"
        ) from error
    if not geometry.area > 0:
        raise InputError(f"{source}: has no area; give a polygon")
    if (np.abs(np.reshape(geometry.bounds, (2, 2))) > (360, 90)).any():
        raise InputError(
            f"{source}: is not in longitude and latitude; reproject it, or name a file with a CRS"
        )
    return geometry


def _shape(value: Mapping[str, Any]) -> BaseGeometry:
    if value.get("type") == "Feature":
        value = value["geometry"]
    if value.get("type") == "FeatureCollection":
        return shapely.union_all([_shape(feature) for feature in value["features"]])
    return shape(value)
