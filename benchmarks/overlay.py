"""Overlay of an output on its two images, side by side, for looking at the answers.

    python benchmarks/overlay.py before.tif after.tif out.gpkg picture.png [--width 700]

The earlier image is on the left, the later one on the right. The outline of a chip goes from grey (0) to red
(1) with `changed_score`, named cells are shaded, and changed chips have their captions.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # draw with this checkout, not an installed copy

import numpy as np  # noqa: E402
import pyogrio  # noqa: E402
from PIL import Image, ImageDraw, ImageFont  # noqa: E402

from deltavlm.geo.pair import RasterPair, ReadOptions, open_pair  # noqa: E402


def read_pair(pair: RasterPair, *, allow_no_crs: bool) -> tuple[list[Image.Image], object]:
    """Read both dates in full, as the model saw them. Returns the images and the transform of the pixels."""
    with open_pair(pair, ReadOptions(allow_no_crs=allow_no_crs)) as reader:
        size = 256
        shape = (reader.geobox.height, reader.geobox.width, 3)
        arrays = [np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)]
        for chip in reader.chips(size, 0):
            pixels = reader.read(chip)
            col, row, width, height = chip.window
            for array, date in zip(arrays, (pixels.before, pixels.after), strict=True):
                array[row : row + height, col : col + width] = date.transpose(1, 2, 0)[:height, :width]
        return [Image.fromarray(array) for array in arrays], reader.geobox.transform


def draw_overlay(
    pair: RasterPair,
    output: Path,
    picture: Path,
    *,
    width: int,
    allow_no_crs: bool = False,
    captions: bool = True,
) -> None:
    """Write the overlay of an output as an image; `width` is that of one of the two panels, px."""
    images, transform = read_pair(pair, allow_no_crs=allow_no_crs)
    chips = pyogrio.read_dataframe(output, layer="chips")
    cells = pyogrio.read_dataframe(output, layer="locations")
    inverse = ~transform  # type: ignore[operator]
    scale = width / images[0].width
    panels = [
        image.resize((width, round(image.height * scale)), Image.Resampling.LANCZOS) for image in images
    ]
    font = ImageFont.load_default(size=max(11, min(17, round(15 * scale * 256 / 230))))

    def points(shape: object) -> list[tuple[float, float]]:
        return [tuple(v * scale for v in inverse * (x, y)) for x, y, *_ in shape.exterior.coords]  # type: ignore[attr-defined,misc]

    shade = Image.new("RGBA", panels[1].size)
    paint = ImageDraw.Draw(shade)
    for _, cell in cells.iterrows():
        colour = (255, 60, 40, 70) if cell["class"] == "building" else (255, 210, 0, 70)
        paint.polygon(points(cell.geometry), fill=colour)
    panels[1] = Image.alpha_composite(panels[1].convert("RGBA"), shade).convert("RGB")
    pen = ImageDraw.Draw(panels[1])
    for _, chip in chips.iterrows():
        score = (
            0.0 if chip.changed_score is None or np.isnan(chip.changed_score) else float(chip.changed_score)
        )
        colour = (int(150 + 105 * score), int(150 - 110 * score), int(150 - 120 * score))
        corners = points(chip.geometry)
        pen.line([*corners, corners[0]], fill=colour, width=3 if score >= 0.5 else 1)
        if chip.changed is True and captions:
            x, y = min(p[0] for p in corners) + 5, min(p[1] for p in corners) + 4
            line_length = max(12, int((max(p[0] for p in corners) - x) / (font.size * 0.53)))
            text = "\n".join(textwrap.wrap(f"{score:.2f} {chip.caption}", line_length))
            pen.multiline_text(
                (x, y), text, font=font, fill=(255, 255, 255), stroke_width=2, stroke_fill=(0, 0, 0)
            )
    gap = 6
    sheet = Image.new("RGB", (2 * width + gap, panels[0].height), (255, 255, 255))
    sheet.paste(panels[0], (0, 0))
    sheet.paste(panels[1], (width + gap, 0))
    sheet.save(picture, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("before", "after"):
        parser.add_argument(name)
    for name in ("output", "picture"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--width", type=int, default=700, help="pixels of one of the two panels")
    parser.add_argument("--allow-no-crs", action="store_true")
    parser.add_argument("--no-captions", action="store_true")
    args = parser.parse_args()
    draw_overlay(
        RasterPair(args.before, args.after),
        args.output,
        args.picture,
        width=args.width,
        allow_no_crs=args.allow_no_crs,
        captions=not args.no_captions,
    )


if __name__ == "__main__":
    main()
