"""How QGIS draws the layers of a GeoPackage when it opens them: the rows of its table `layer_styles`.

Chips are graded by the score of "changed", pale enough to see the image; what was not answered is grey.
Named cells have one colour a class. Outlines are thin, labels are off, and a map tip tells the caption.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree as ET

__all__ = ["layer_style"]

Colour = tuple[int, int, int, int]  # red, green, blue, opacity


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the legend: the fill, the outline, and the attributes that say for which values it is."""

    label: str
    fill: Colour
    outline: Colour
    match: dict[str, str]
    width_mm: float = 0.2


CHIP_SCORE = 'coalesce("changed_score", -1)'  # a null is in no range, so what was not answered counts as -1
CHIP_WORDS = ("unchanged", "probably unchanged", "unsure", "probably changed", "changed")
CHIP_FILLS: tuple[Colour, ...] = (  # yellow to red; neighbours overlap at the edge, so even the last is pale
    (255, 255, 178, 0),
    (254, 204, 92, 25),
    (253, 141, 60, 45),
    (240, 59, 32, 60),
    (189, 0, 38, 75),
)
NOT_ANSWERED = Entry(
    "not answered", (128, 128, 128, 70), (110, 110, 110, 200), {"lower": "-1", "upper": "-0.5"}
)
LOCATION_ENTRIES = (
    Entry("building", (255, 237, 0, 30), (255, 237, 0, 255), {"value": "building"}, 0.4),
    Entry("road", (0, 210, 255, 30), (0, 210, 255, 255), {"value": "road"}, 0.4),
)


def _chip_entries() -> list[Entry]:
    entries = [NOT_ANSWERED]
    for step, (fill, word) in enumerate(zip(CHIP_FILLS, CHIP_WORDS, strict=True)):
        low, high = f"{step / len(CHIP_FILLS):g}", f"{(step + 1) / len(CHIP_FILLS):g}"
        outline = (*fill[:3], 120 + 30 * step)
        entries.append(Entry(f"{word} ({low} to {high})", fill, outline, {"lower": low, "upper": high}))
    return entries


CHIP_TIP = '<b>[% "chip_id" %]</b> [% round("changed_score", 2) %]<br>[% "caption" %]'
CELL_TIP = '<b>[% "class" %]</b> [% "cell" %]<br>[% "caption" %]'
PAIR_TIP = '<b>[% "pair_id" %]</b> [% "changed" %] of [% "chips" %] chips changed'
OUTLINE = Entry("", (0, 0, 0, 0), (255, 127, 0, 255), {})


def layer_style(name: str) -> str | None:
    """The QML of a layer, or None for a layer that has no style of ours."""
    match name:
        case "chips":
            graded = {"type": "graduatedSymbol", "attr": CHIP_SCORE, "graduatedMethod": "GraduatedColor"}
            return _qml(graded, _chip_entries(), ("ranges", "range"), CHIP_TIP)
        case "locations":
            classed = {"type": "categorizedSymbol", "attr": "class"}
            return _qml(classed, LOCATION_ENTRIES, ("categories", "category"), CELL_TIP)
        case "grid":
            return _qml({"type": "singleSymbol"}, [OUTLINE], None, '[% "chip_id" %]')
        case "pairs":
            return _qml({"type": "singleSymbol"}, [OUTLINE], None, PAIR_TIP)
    return None


def _qml(
    renderer: dict[str, str], entries: Sequence[Entry], legend: tuple[str, str] | None, map_tip: str
) -> str:
    root = ET.Element(
        "qgis", version="3.22.0", labelsEnabled="0", styleCategories="Symbology|Labeling|MapTips"
    )
    drawn = ET.SubElement(root, "renderer-v2", renderer, forceraster="0", symbollevels="0", enableorderby="0")
    lines = ET.SubElement(drawn, legend[0]) if legend else None
    symbols = ET.SubElement(drawn, "symbols")
    for index, entry in enumerate(entries):
        number = str(index)
        if legend and lines is not None:
            ET.SubElement(lines, legend[1], entry.match, label=entry.label, symbol=number, render="true")
        symbol = ET.SubElement(symbols, "symbol", type="fill", name=number, alpha="1", clip_to_extent="1")
        layer = ET.SubElement(
            symbol, "layer", {"class": "SimpleFill", "enabled": "1", "pass": "0", "locked": "0"}
        )
        options = ET.SubElement(layer, "Option", type="Map")
        for key, value in _fill(entry).items():
            ET.SubElement(options, "Option", type="QString", name=key, value=value)
    ET.SubElement(root, "mapTip").text = map_tip
    return "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n" + ET.tostring(
        root, encoding="unicode"
    )


def _fill(entry: Entry) -> dict[str, str]:
    return {
        "color": ",".join(str(channel) for channel in entry.fill),
        "style": "solid",
        "outline_color": ",".join(str(channel) for channel in entry.outline),
        "outline_style": "solid",
        "outline_width": f"{entry.width_mm:g}",
        "outline_width_unit": "MM",
        "joinstyle": "miter",
    }
