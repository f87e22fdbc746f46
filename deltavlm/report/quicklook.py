"""Quicklook of a pair as PNG: before, after, and after with the changes outlined, side by side."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import shapely
from PIL import Image, ImageDraw, ImageFont
from rasterio.features import rasterize

from deltavlm.messages import pluralize
from deltavlm.pipeline.outputs_reader import Row
from deltavlm.report.colours import CLASS_COLOURS, ramp
from deltavlm.report.images import OpenImages
from deltavlm.report.pairs import ReportPair, score_of

__all__ = ["quicklook_png"]

PAPER, INK, MUTED, BLANK = (255, 255, 255), (28, 34, 48), (98, 106, 120), (214, 213, 208)
FILL_OPACITY = 90  # of 255, of polygons
GAP_PX = 12
MAX_ASPECT = 3  # height / width of a panel; a taller pair gets narrower panels
SMALL_PX = 400  # a pair whose panel would be smaller is magnified to this

Font = ImageFont.ImageFont | ImageFont.FreeTypeFont


def quicklook_png(pair: ReportPair, opened: OpenImages, width_px: int = 2400) -> bytes:
    """Draw the quicklook of a pair whose images are open, at most `width_px` wide.

    Raises:
        RasterError: an image cannot be read.
    """
    assert pair.geobox is not None
    panel_px = (width_px - 4 * GAP_PX) // 3
    aspect = pair.geobox.height / pair.geobox.width
    long_side_px = max(round(panel_px * max(1.0, aspect) * min(1.0, MAX_ASPECT / aspect)), 16)
    panels = [_fill_nodata(image) for image in opened.overview(long_side_px)]
    if panels[0].width < panel_px and max(panels[0].size) < SMALL_PX:
        factor = min(panel_px / panels[0].width, SMALL_PX / max(panels[0].size))
        size = round(panels[0].width * factor), round(panels[0].height * factor)
        panels = [panel.resize(size, Image.Resampling.NEAREST) for panel in panels]
    width, height = panels[0].size
    panels.append(panels[1].copy())
    _outline_changes(panels[2], pair, width / pair.geobox.width)
    font = ImageFont.load_default(size=max(13, min(22, width // 32)))
    line_height = round(font.size * 1.9)  # type: ignore[union-attr]  # Pillow's font has a size with FreeType
    sheet = Image.new("RGB", (3 * width + 4 * GAP_PX, height + 2 * line_height + GAP_PX), PAPER)
    draw = ImageDraw.Draw(sheet)
    changed = sum(bool(chip.get("changed")) for chip in pair.chips)
    polygons = f", {pluralize(len(pair.changes), 'polygon')}" if pair.has_polygons else ""
    titles = (
        f"before {pair.before.date}".strip(),
        f"after {pair.after.date}".strip(),
        f"{changed} of {pluralize(len(pair.chips), 'chip')} changed{polygons}",
    )
    for index, (panel, title) in enumerate(zip(panels, titles, strict=True)):
        x = GAP_PX + index * (width + GAP_PX)
        draw.text((x, line_height / 2), title, INK, font, anchor="lm")
        sheet.paste(panel, (x, line_height))
    legend_y = line_height + height + line_height / 2
    if pair.gsd_m:
        _scale_bar(draw, (GAP_PX, legend_y), width / 2, pair.gsd_m * pair.geobox.width / width, font)
    shown = {_class_of(change) for change in pair.changes}
    classes = [name for name in CLASS_COLOURS if name in shown]
    _legend(draw, (GAP_PX + 2 * (width + GAP_PX), legend_y), width, classes, font)
    stream = io.BytesIO()
    sheet.save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _fill_nodata(image: Image.Image) -> Image.Image:
    """Image in RGB, with transparent pixels in grey."""
    if image.mode != "RGBA":
        return image.convert("RGB")
    background = Image.new("RGB", image.size, BLANK)
    background.paste(image, mask=image.getchannel("A"))
    return background


def _outline_changes(panel: Image.Image, pair: ReportPair, scale: float) -> None:
    """Outline the changed chips in the colours of their scores, the highest on top; polygons over them."""
    draw = ImageDraw.Draw(panel)
    size = pair.chip_px * scale
    width_px = max(1, min(4, round(size / 40)))
    changed = [entry for entry in zip(pair.chips, pair.windows, strict=True) if entry[0].get("changed")]
    for chip, (x, y, width, height) in sorted(changed, key=lambda entry: score_of(entry[0])):
        x0, y0 = x * scale, y * scale
        box = (x0, y0, max(x0 + 1, (x + width) * scale - 1), max(y0 + 1, (y + height) * scale - 1))
        if size > 14:
            draw.rectangle(box, outline=(0, 0, 0), width=width_px + 2)
            inner = (box[0] + 1, box[1] + 1, box[2] - 1, box[3] - 1)
            draw.rectangle(inner, outline=ramp(score_of(chip)), width=width_px)
        else:
            draw.rectangle(box, fill=ramp(score_of(chip)))
    _draw_polygons(panel, pair, scale)


def _draw_polygons(panel: Image.Image, pair: ReportPair, scale: float) -> None:
    """Fill and outline the polygons of change in the colours of their classes."""
    shapes = [
        (_class_of(change), shapely.transform(pair.shape(change), lambda points: points * scale))
        for change in pair.changes
    ]
    shapes = [(name, shape) for name, shape in shapes if not shape.is_empty]
    draw, line_px = ImageDraw.Draw(panel), max(2, round(panel.width / 300))
    for name, colour in CLASS_COLOURS.items():
        filled = [shape for each, shape in shapes if each == name]
        if filled:
            mask = rasterize(filled, panel.size[::-1], default_value=FILL_OPACITY, dtype="uint8")
            panel.paste(colour, mask=Image.fromarray(mask))
    for name, shape in shapes:
        for polygon in shape.geoms:
            for ring in (polygon.exterior, *polygon.interiors):
                draw.line([*ring.coords], (0, 0, 0), line_px + 3, joint="curve")
                draw.line([*ring.coords], CLASS_COLOURS[name], line_px, joint="curve")


def _class_of(change: Row) -> str:
    name = str(change.get("class"))
    return name if name in CLASS_COLOURS else "other"


def _scale_bar(
    draw: ImageDraw.ImageDraw, position: tuple[float, float], max_px: float, metres_per_px: float, font: Font
) -> None:
    """Scale bar: the longest of 1, 2, 5, 10, 20, ... metres that fits into `max_px`."""
    max_m = metres_per_px * max_px
    power = 10.0 ** math.floor(math.log10(max_m))
    length_m = next((step * power for step in (5, 2) if step * power <= max_m), power)
    label = f"{length_m / 1000:g} km" if length_m >= 1000 else f"{length_m:g} m"
    x, y = position
    end = x + length_m / metres_per_px
    draw.line([(x, y - 5), (x, y + 5), (end, y + 5), (end, y - 5)], INK, 2)
    draw.text((end + 10, y), label, MUTED, font, anchor="lm")


def _legend(
    draw: ImageDraw.ImageDraw,
    position: tuple[float, float],
    width: float,
    classes: Sequence[str],
    font: Font,
) -> None:
    """Colour ramp of scores from 0 to 1, and the colours of classes as far as they fit into `width`."""
    x, y = position
    end, length_px = x + width, min(220.0, width / 3)
    draw.text((x, y), "score 0", MUTED, font, anchor="lm")
    x += draw.textlength("score 0 ", font)
    for step in range(round(length_px)):
        draw.line([(x + step, y - 6), (x + step, y + 6)], ramp(step / length_px))
    draw.text((x + length_px + 8, y), "1", MUTED, font, anchor="lm")
    x += length_px + 8 + draw.textlength("1   ", font)
    for name in classes:
        if x + 20 + draw.textlength(name, font) > end:
            break
        draw.rectangle((x, y - 6, x + 12, y + 6), CLASS_COLOURS[name], (0, 0, 0))
        draw.text((x + 20, y), name, MUTED, font, anchor="lm")
        x += 20 + draw.textlength(f"{name}   ", font)
