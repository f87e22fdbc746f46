"""QML, the style files of QGIS: symbols, labels, column aliases, attribute table and form, as text.

Modeled on what QGIS 3.22 writes; newer versions read it. Independent of our layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from xml.etree import ElementTree as ET

from deltavlm.geo.features import Field

__all__ = ["SIGNATURE", "Color", "Entry", "Label", "Style", "qml"]

Color = tuple[int, int, int, int]  # red, green, blue, opacity
Kind = Literal["graduated", "categorised", "single"]

SIGNATURE = "<!-- written by deltavlm; saved by QGIS it loses this line, and is left alone -->"
CATEGORIES = "Symbology|Labeling|Fields|Forms|MapTips|AttributeTable|Rendering"
RENDERERS: Mapping[Kind, tuple[dict[str, str], tuple[str, str] | None]] = {
    "graduated": (
        {"type": "graduatedSymbol", "graduatedMethod": "GraduatedColor"},
        ("ranges", "range"),
    ),
    "categorised": ({"type": "categorizedSymbol"}, ("categories", "category")),
    "single": ({"type": "singleSymbol"}, None),
}
NULL_VALUE = "{2839923C-8B7D-419E-B84B-CA2FE9B80EC7}"  # what QGIS writes for null in a value map
NO_CHOICE = "<none>"  # entry of a value map for null
DECIMALS = 3  # of a number, unless the style says otherwise


@dataclass(frozen=True, slots=True)
class Entry:
    """Legend entry: fill, outline, and the XML attributes that say which values it is for."""

    label: str
    fill: Color
    outline: Color
    match: dict[str, str] = field(default_factory=dict)
    width_mm: float = 0.2
    brush: str = "solid"  # name in Qt: "b_diagonal" is hatched
    line: str = "solid"  # name in Qt: "dash"


@dataclass(frozen=True, slots=True)
class Label:
    """Label of each polygon that is at least `min_mm` wide and high on the screen, in any CRS."""

    expression: str
    min_mm: float
    size_pt: float = 8


@dataclass(frozen=True, slots=True)
class Style:
    """Style of a layer: symbols, labels, titles and the attribute table."""

    kind: Kind
    entries: Sequence[Entry]
    title: str  # expression for the name of a row in lists
    tip: str  # HTML with [% expressions %]
    value: str = ""  # column or expression that `match` applies to
    label: Label | None = None
    on_top: str = ""  # column; rows with larger values are drawn later
    hidden: Sequence[str] = ()  # columns hidden in the attribute table, but shown in the form
    decimals: Mapping[str, int] = field(default_factory=dict)


def qml(style: Style, fields: Sequence[Field]) -> str:
    """QML text of a style for a layer with these columns."""
    root = ET.Element(
        "qgis", version="3.22.0", labelsEnabled="1" if style.label else "0", styleCategories=CATEGORIES
    )
    _renderer(root, style)
    if style.label:
        _labeling(root, style.label)
    _columns(root, style, fields)
    _form(root, fields)
    ET.SubElement(root, "previewExpression").text = style.title
    ET.SubElement(root, "mapTip").text = style.tip
    ET.SubElement(root, "layerGeometryType").text = "2"  # polygons
    doctype = "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>"
    return f"{doctype}\n{SIGNATURE}\n{ET.tostring(root, encoding='unicode')}\n"


def _renderer(root: ET.Element, style: Style) -> None:
    attributes, legend = RENDERERS[style.kind]
    if legend:
        attributes = {**attributes, "attr": style.value}
    order = "1" if style.on_top else "0"
    renderer = ET.SubElement(
        root, "renderer-v2", attributes, forceraster="0", symbollevels="0", enableorderby=order
    )
    entries = ET.SubElement(renderer, legend[0]) if legend else None
    symbols = ET.SubElement(renderer, "symbols")
    for index, entry in enumerate(style.entries):
        number = str(index)
        if legend and entries is not None:
            ET.SubElement(entries, legend[1], entry.match, label=entry.label, symbol=number, render="true")
        symbol = ET.SubElement(symbols, "symbol", type="fill", name=number, alpha="1", clip_to_extent="1")
        layer = ET.SubElement(
            symbol, "layer", {"class": "SimpleFill", "enabled": "1", "pass": "0", "locked": "0"}
        )
        _options(layer, _fill(entry))
    if style.on_top:
        order_by = ET.SubElement(renderer, "orderby")
        ET.SubElement(order_by, "orderByClause", asc="1", nullsFirst="1").text = f'"{style.on_top}"'


def _fill(entry: Entry) -> dict[str, Any]:
    return {
        "color": _color(entry.fill),
        "style": entry.brush,
        "outline_color": _color(entry.outline),
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
    condition = f"sqrt($area) * 1000 >= {label.min_mm:g} * @map_scale"
    properties = {"Show": {"active": True, "expression": condition, "type": 3}}
    data_defined = ET.SubElement(settings, "dd_properties")
    _options(data_defined, {"name": "", "properties": properties, "type": "collection"})


def _columns(root: ET.Element, style: Style, fields: Sequence[Field]) -> None:
    configuration, aliases = ET.SubElement(root, "fieldConfiguration"), ET.SubElement(root, "aliases")
    table = ET.SubElement(root, "attributetableconfig", sortOrder="0", sortExpression="")
    table_columns = ET.SubElement(table, "columns")
    ET.SubElement(table_columns, "column", type="field", name="fid", hidden="1", width="-1")
    for index, column in enumerate(fields):
        name = column.name
        widget = _widget(column, style.decimals.get(name, DECIMALS))
        if widget:
            element = ET.SubElement(configuration, "field", name=name, configurationFlags="None")
            config = ET.SubElement(ET.SubElement(element, "editWidget", type=widget[0]), "config")
            _options(config, widget[1])
        ET.SubElement(aliases, "alias", field=name, index=str(index), name=column.alias)
        hidden = "1" if name in style.hidden else "0"
        ET.SubElement(table_columns, "column", type="field", name=name, hidden=hidden, width="-1")


def _widget(column: Field, decimals: int) -> tuple[str, dict[str, Any]] | None:
    """Type and settings of the widget that shows a column in forms and tables; None: QGIS chooses.

    Without one QGIS shows lists of a GeoPackage as an empty table of keys.
    """
    if column.choices:
        choices = {NO_CHOICE: NULL_VALUE, **{choice: choice for choice in column.choices}}
        return "ValueMap", {"map": [{label: value} for label, value in choices.items()]}
    if column.type == "float":
        numbers = {"Precision": decimals, "AllowNull": True, "Style": "SpinBox"}
        return "Range", numbers | {"Min": -1e12, "Max": 1e12, "Step": 0.1}
    if column.type in ("list", "json"):
        return "TextEdit", {"IsMultiline": False, "UseHtml": False}
    return None


def _form(root: ET.Element, fields: Sequence[Field]) -> None:
    """Form in which people fill in the editable columns, which come first; all others are read-only.

    QGIS writes what its widgets show when a form is saved: numbers rounded, lists as text.
    """
    editable = ET.SubElement(root, "editable")
    for name, is_editable in (("fid", False), *((column.name, column.editable) for column in fields)):
        ET.SubElement(editable, "field", name=name, editable="1" if is_editable else "0")
    groups = {
        "Review": [column for column in fields if column.editable],
        "Result": [column for column in fields if not column.editable],
    }
    if not all(groups.values()):
        return
    ET.SubElement(root, "editorlayout").text = "tablayout"
    form = ET.SubElement(root, "attributeEditorForm")
    for title, columns in groups.items():
        group = ET.SubElement(
            form, "attributeEditorContainer", name=title, groupBox="1", columnCount="1", showLabel="1"
        )
        for column in columns:
            index = str(fields.index(column))
            ET.SubElement(group, "attributeEditorField", name=column.name, index=index, showLabel="1")


def _options(parent: ET.Element, values: Mapping[str, Any], name: str = "") -> None:
    """Append a map of values in the form that QGIS writes."""
    named = {"name": name} if name else {}
    options = ET.SubElement(parent, "Option", named, type="Map")
    for key, value in values.items():
        if isinstance(value, Mapping):
            _options(options, value, key)
            continue
        if isinstance(value, list):
            entries = ET.SubElement(options, "Option", name=key, type="List")
            for entry in value:
                _options(entries, entry)
            continue
        kind = {bool: "bool", int: "int", float: "double"}.get(type(value), "QString")
        text = str(value).lower() if kind == "bool" else str(value)
        ET.SubElement(options, "Option", type=kind, name=key, value=text)


def _color(color: Color) -> str:
    return ",".join(str(channel) for channel in color)
