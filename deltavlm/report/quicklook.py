"""A picture of a result at a glance: before, after, and the changed chips marked, side by side."""

from __future__ import annotations

import io
import math

from PIL import Image, ImageDraw, ImageFont

from deltavlm.report.colours import ramp
from deltavlm.report.images import OpenScene
from deltavlm.report.scenes import Scene, score_of

__all__ = ["quicklook_png"]

PAPER, INK, MUTED, BLANK = (255, 255, 255), (28, 34, 48), (98, 106, 120), (214, 213, 208)
GAP_PX = 12
HIGHEST = 3  # times as high as wide, before a long strip is made narrower


def quicklook_png(scene: Scene, seen: OpenScene, width_px: int = 2400) -> bytes:
    """A PNG, at most `width_px` wide. Raises: RasterError where an image cannot be read."""
    assert scene.grid is not None
    room = (width_px - 4 * GAP_PX) // 3
    tall = scene.grid.height / scene.grid.width
    longest = max(round(room * max(1.0, tall) * min(1.0, HIGHEST / tall)), 16)
    panels = [_on_paper(one) for one in seen.overview(longest)]
    if panels[0].width < room and max(panels[0].size) < 400:  # a small pair is shown larger
        grown = min(room / panels[0].width, 400 / max(panels[0].size))
        size = round(panels[0].width * grown), round(panels[0].height * grown)
        panels = [one.resize(size, Image.Resampling.NEAREST) for one in panels]
    width, height = panels[0].size
    panels.append(panels[1].copy())
    _mark(panels[2], scene, width / scene.grid.width)
    font = ImageFont.load_default(size=max(13, min(22, width // 32)))
    line = round(font.size * 1.9)  # type: ignore[union-attr]  # Pillow's own font has a size where FreeType is
    sheet = Image.new("RGB", (3 * width + 4 * GAP_PX, height + 2 * line + GAP_PX), PAPER)
    pen = ImageDraw.Draw(sheet)
    changed = sum(bool(chip.get("changed")) for chip in scene.chips)
    heads = (
        f"before {scene.before.taken}".strip(),
        f"after {scene.after.taken}".strip(),
        f"{changed} of {len(scene.chips)} chips changed",
    )
    for index, (panel, head) in enumerate(zip(panels, heads, strict=True)):
        left = GAP_PX + index * (width + GAP_PX)
        pen.text((left, line / 2), head, INK, font, anchor="lm")
        sheet.paste(panel, (left, line))
    foot = line + height + line / 2
    if scene.gsd_m:
        _scale(pen, (GAP_PX, foot), width / 2, scene.gsd_m * scene.grid.width / width, font)
    _legend(pen, GAP_PX + 2 * (width + GAP_PX), foot, width, font)
    stream = io.BytesIO()
    sheet.save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _on_paper(picture: Image.Image) -> Image.Image:
    """Without transparency: what has no data is grey."""
    if picture.mode != "RGBA":
        return picture.convert("RGB")
    paper = Image.new("RGB", picture.size, BLANK)
    paper.paste(picture, mask=picture.getchannel("A"))
    return paper


def _mark(panel: Image.Image, scene: Scene, scale: float) -> None:
    """Outline the changed chips in the colours of their scores, the surest last, and polygons of change."""
    pen = ImageDraw.Draw(panel)
    size = scene.chip_px * scale
    line = max(1, min(4, round(size / 40)))
    marked = [pair for pair in zip(scene.chips, scene.windows, strict=True) if pair[0].get("changed")]
    for chip, (x, y, width, height) in sorted(marked, key=lambda pair: score_of(pair[0])):
        left, top = x * scale, y * scale
        box = (left, top, max(left + 1, (x + width) * scale - 1), max(top + 1, (y + height) * scale - 1))
        if size > 14:
            pen.rectangle(box, outline=(0, 0, 0), width=line + 2)
            inner = (box[0] + 1, box[1] + 1, box[2] - 1, box[3] - 1)
            pen.rectangle(inner, outline=ramp(score_of(chip)), width=line)
        else:
            pen.rectangle(box, fill=ramp(score_of(chip)))
    for change in scene.changes:
        for ring in scene.rings(change):
            points = [(x * scale, y * scale) for x, y in ring]
            pen.line(points, (0, 0, 0), 3)
            pen.line(points, (125, 249, 255), 1)


def _scale(
    pen: ImageDraw.ImageDraw, at: tuple[float, float], most_px: float, gsd_m: float, font: object
) -> None:
    """The longest of 1, 2, 5, 10, ... metres that fits into `most_px`."""
    metres = gsd_m * most_px
    power = 10.0 ** math.floor(math.log10(metres))
    length = next((step * power for step in (5, 2) if step * power <= metres), power)
    told = f"{length / 1000:g} km" if length >= 1000 else f"{length:g} m"
    x, y = at
    right = x + length / gsd_m
    pen.line([(x, y - 5), (x, y + 5), (right, y + 5), (right, y - 5)], INK, 2)
    pen.text((right + 10, y), told, MUTED, font, anchor="lm")  # type: ignore[arg-type]


def _legend(pen: ImageDraw.ImageDraw, x: float, y: float, width: float, font: object) -> None:
    length = min(220.0, width / 3)
    pen.text((x, y), "score 0", MUTED, font, anchor="lm")  # type: ignore[arg-type]
    x += pen.textlength("score 0 ", font)  # type: ignore[arg-type]
    for step in range(round(length)):
        pen.line([(x + step, y - 6), (x + step, y + 6)], ramp(step / length))
    pen.text((x + length + 8, y), "1", MUTED, font, anchor="lm")  # type: ignore[arg-type]
