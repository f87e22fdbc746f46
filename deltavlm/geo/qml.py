"""QGIS's style files: symbols, labels, and how columns are called and shown, as QML text.

What QGIS 3.22 writes itself was the model; newer ones read it. Nothing here knows our layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from xml.etree import ElementTree as ET

from deltavlm.geo.features import Field

__all__ = ["MADE_HERE", "Colour", "Entry", "Label", "Style", "qml"]

Colour = tuple[int, int, int, int]  # red, green, blue, opacity
Kind = Literal["graduated", "categorised", "single"]

MADE_HERE = "<!-- written by deltavlm; saved by QGIS it loses this line, and is left alone -->"
PARTS = "Symbology|Labeling|Fields|Forms|MapTips|AttributeTable|Rendering"
RENDERERS: Mapping[Kind, tuple[dict[str, str], tuple[str, str] | None]] = {
    "graduated": (
        {"type": "graduatedSymbol", "graduatedMethod": "GraduatedColor"},
        ("ranges", "range"),
    ),
    "categorised": ({"type": "categorizedSymbol"}, ("categories", "category")),
    "single": ({"type": "singleSymbol"}, None),
}
DECIMALS = 3  # of a number, where a style does not say


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the legend: fill, outline, and the attributes that say for which values it is."""

    label: str
    fill: Colour
    outline: Colour
    match: dict[str, str] = field(default_factory=dict)
    width_mm: float = 0.2
    brush: str = "solid"  # Qt's name: "b_diagonal" is hatched
    line: str = "solid"  # Qt's name: "dash"


@dataclass(frozen=True, slots=True)
class Label:
    """Text at each polygon that is at least `min_mm` wide and high on the screen, whatever its CRS."""

    expression: str
    min_mm: float
    size_pt: float = 8


@dataclass(frozen=True, slots=True)
class Style:
    """How a layer is drawn, and how its rows are told."""

    kind: Kind
    entries: Sequence[Entry]
    title: str  # expression: what a row is called in lists
    tip: str  # HTML with [% expressions %]
    value: str = ""  # column or expression that `match` is about
    label: Label | None = None
    on_top: str = ""  # column; rows with larger values are drawn later
    hidden: Sequence[str] = ()  # columns that are left out of the attribute table, not of the form
    decimals: Mapping[str, int] = field(default_factory=dict)


def qml(style: Style, fields: Sequence[Field]) -> str:
    """The text of a style for a layer with these columns."""
    root = ET.Element(
        "qgis", version="3.22.0", labelsEnabled="1" if style.label else "0", styleCategories=PARTS
    )
    _renderer(root, style)
    if style.label:
        _labeling(root, style.label)
    _columns(root, style, fields)
    ET.SubElement(root, "previewExpression").text = style.title
    ET.SubElement(root, "mapTip").text = style.tip
    ET.SubElement(root, "layerGeometryType").text = "2"  # polygons
    doctype = "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>"
    return f"{doctype}\n{MADE_HERE}\n{ET.tostring(root, encoding='unicode')}\n"


def _renderer(root: ET.Element, style: Style) -> None:
    about, legend = RENDERERS[style.kind]
    if legend:
        about = {**about, "attr": style.value}
    order = "1" if style.on_top else "0"
    drawn = ET.SubElement(root, "renderer-v2", about, forceraster="0", symbollevels="0", enableorderby=order)
    lines = ET.SubElement(drawn, legend[0]) if legend else None
    symbols = ET.SubElement(drawn, "symbols")
    for index, entry in enumerate(style.entries):
        number = str(index)
        if legend and lines is not None:
            ET.SubElement(lines, legend[1], entry.match, label=entry.label, symbol=number, render="true")
        symbol = ET.SubElement(symbols, "symbol", type="fill", name=number, alpha="1", clip_to_extent="1")
        layer = ET.SubElement(
            symbol, "layer", {"class": "SimpleFill", "enabled": "1", "pass": "0", "locked": "0"}
        )
        _options(layer, _fill(entry))
    if style.on_top:
        ordered = ET.SubElement(drawn, "orderby")
        ET.SubElement(ordered, "orderByClause", asc="1", nullsFirst="1").text = f'"{style.on_top}"'


def _fill(entry: Entry) -> dict[str, Any]:
    return {
        "color": _colour(entry.fill),
        "style": entry.brush,
        "outline_color": _colour(entry.outline),
        "outline_style": entry.line,
        "outline_width": f"{entry.width_mm:g}",
        "outline_width_unit": "MM",
        "joinstyle": "miter",
    }


def _labeling(root: ET.Element, label: Label) -> None:
    labeling = ET.SubElement(root, "labeling", type="simple")
    settings = ET.SubElement(labeling, "settings", calloutType="simple")
    text = ET.SubElement(
        settings,
        "text-style",
        fieldName=label.expression,
        isExpression="1",
        fontSize=f"{label.size_pt:g}",
        fontSizeUnit="Point",
        fontWeight="63",
        textColor="20,20,20,255",
        textOpacity="1",
        multilineHeight="1",
    )
    ET.SubElement(
        text,
        "text-buffer",
        bufferDraw="1",
        bufferSize="0.8",
        bufferSizeUnits="MM",
        bufferColor="255,255,255,255",
        bufferOpacity="0.85",
        bufferNoFill="0",
        bufferJoinStyle="128",
    )
    ET.SubElement(settings, "text-format", multilineAlign="1")
    ET.SubElement(settings, "placement", placement="1", centroidInside="1", centroidWhole="1")
    ET.SubElement(
        settings, "rendering", drawLabels="1", scaleVisibility="0", obstacle="0", limitNumLabels="0"
    )
    # $area is in square metres on the ellipsoid of the project, so that one rule holds for chips of any size
    shown = f"sqrt($area) * 1000 >= {label.min_mm:g} * @map_scale"
    properties = {"Show": {"active": True, "expression": shown, "type": 3}}
    described = ET.SubElement(settings, "dd_properties")
    _options(described, {"name": "", "properties": properties, "type": "collection"})


def _columns(root: ET.Element, style: Style, fields: Sequence[Field]) -> None:
    configured, aliases = ET.SubElement(root, "fieldConfiguration"), ET.SubElement(root, "aliases")
    table = ET.SubElement(root, "attributetableconfig", sortOrder="0", sortExpression="")
    shown = ET.SubElement(table, "columns")
    ET.SubElement(shown, "column", type="field", name="fid", hidden="1", width="-1")
    for index, one in enumerate(fields):
        if one.type == "float":
            digits = style.decimals.get(one.name, DECIMALS)
            about = ET.SubElement(configured, "field", name=one.name, configurationFlags="None")
            widget = ET.SubElement(about, "editWidget", type="Range")
            numbers = {"Precision": digits, "AllowNull": True, "Style": "SpinBox"}
            limits = {"Min": -1e12, "Max": 1e12, "Step": 0.1}
            _options(ET.SubElement(widget, "config"), numbers | limits)
        ET.SubElement(aliases, "alias", field=one.name, index=str(index), name=one.alias)
        hidden = "1" if one.name in style.hidden else "0"
        ET.SubElement(shown, "column", type="field", name=one.name, hidden=hidden, width="-1")


def _options(parent: ET.Element, values: Mapping[str, Any], name: str = "") -> None:
    """A map of values in QGIS's own spelling."""
    named = {"name": name} if name else {}
    options = ET.SubElement(parent, "Option", named, type="Map")
    for key, value in values.items():
        if isinstance(value, Mapping):
            _options(options, value, key)
            continue
        kind = {bool: "bool", int: "int", float: "double"}.get(type(value), "QString")
        text = str(value).lower() if kind == "bool" else str(value)
        ET.SubElement(options, "Option", type=kind, name=key, value=text)


def _colour(colour: Colour) -> str:
    return ",".join(str(channel) for channel in colour)
