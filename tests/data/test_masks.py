"""Counts and cells of small masks drawn by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deltavlm.data.masks import (
    BUILDING,
    LEVIR_MCI,
    ROAD,
    ClassMap,
    MaskRules,
    measure_mask,
    parse_class_map,
    read_mask,
)
from deltavlm.errors import ConfigError, InputError
from deltavlm.tasks.count import Counts
from deltavlm.tasks.locate import LABELS, Cells


def drawn(*rows: str) -> np.ndarray:
    """`.` background, `r` road, `b` building; a square of 9 x 9 has cells of 3 x 3."""
    return np.array([[".rb".index(char) for char in row] for row in rows], np.uint8)


CORNERS = drawn(
    "b........",
    ".b.......",
    "..b......",
    "...b.....",
    ".........",
    ".........",
    "......rrr",
    "......r.r",
    "......rrr",
)


def test_pixels_that_touch_at_a_corner_are_one_object_or_four() -> None:
    counts, cells = measure_mask(CORNERS, MaskRules(connectivity=8))
    assert counts == Counts(1, 1)
    assert cells == Cells(("bottom-right",), ("top-left", "center-center"))
    assert measure_mask(CORNERS, MaskRules(connectivity=4)) == (Counts(1, 4), cells)


def test_small_objects_are_neither_counted_nor_located() -> None:
    mask = drawn(*["b........", ".........", "........."] * 2, "......bb.", ".........", ".........")
    assert measure_mask(mask)[0] == Counts(0, 3)
    counts, cells = measure_mask(mask, MaskRules(min_area_px=2))
    assert (counts, cells.buildings) == (Counts(0, 1), ("bottom-right",))
    assert measure_mask(mask, MaskRules(min_area_px=3)) == (Counts(0, 0), Cells())


def test_the_three_cell_rules_differ() -> None:
    """A road along the top from the left into the right cell by one pixel, thickest in the middle."""
    mask = drawn("..rrrrr..", "...rrr...", ".........", *["........."] * 6)
    named = {
        rule: measure_mask(mask, MaskRules(cell_rule=rule, cell_share=0.3))[1].roads
        for rule in ("any", "share", "centroid")
    }
    assert named == {
        "any": ("top-left", "top-center", "top-right"),
        "share": ("top-center",),
        "centroid": ("top-center",),
    }
    assert measure_mask(mask, MaskRules(cell_rule="share", cell_share=0.1))[1].roads == named["any"]
    assert measure_mask(mask, MaskRules(cell_rule="share", cell_share=0.9))[1].roads == (
        "top-center",
    )  # the largest
    assert measure_mask(mask, MaskRules(cell_rule="share", cell_share=0.0))[1].roads == named["any"]


def test_a_centroid_may_lie_in_a_cell_without_a_pixel() -> None:
    """A ring around the center: "any" names eight cells, "centroid" the ninth."""
    mask = np.zeros((9, 9), np.uint8)
    mask[1:8, 1:8] = BUILDING
    mask[2:7, 2:7] = 0
    assert measure_mask(mask, MaskRules(cell_rule="centroid"))[1].buildings == ("center-center",)
    assert measure_mask(mask, MaskRules(cell_rule="any"))[1].buildings == tuple(
        label for label in LABELS if label != "center-center"
    )


def test_each_object_has_its_own_centroid() -> None:
    mask = drawn("bb.....bb", *["........."] * 7, "........b")
    assert measure_mask(mask, MaskRules(cell_rule="centroid"))[1].buildings == (
        "top-left",
        "top-right",
        "bottom-right",
    )


@pytest.mark.parametrize("rule", ["any", "share", "centroid"])
@pytest.mark.parametrize("size", [(256, 256), (9, 9), (100, 250)])
def test_the_cell_of_a_single_pixel_contains_it(rule: str, size: tuple[int, int]) -> None:
    """All rules agree on one pixel, also beside the edge of a cell: 85 | 86 of 256."""
    rows, cols = (sorted({0, n - 1, *(round(n * k / 3) + d for k in (1, 2) for d in (-1, 0))}) for n in size)
    for row in rows:
        for col in cols:
            mask = np.zeros(size, np.uint8)
            mask[row, col] = ROAD
            expected = LABELS[
                3 * sum(row >= round(size[0] * k / 3) for k in (1, 2))
                + sum(col >= round(size[1] * k / 3) for k in (1, 2))
            ]
            assert measure_mask(mask, MaskRules(cell_rule=rule)) == (Counts(1, 0), Cells((expected,)))  # type: ignore[arg-type]


def test_a_road_and_a_building_that_touch_are_two_objects() -> None:
    assert measure_mask(drawn("rb.", "rb.", "..."))[0] == Counts(1, 1)
    assert measure_mask(drawn("...", "...", "...")) == (Counts(0, 0), Cells())


def save(path: Path, pixels: np.ndarray, mode: str | None = None) -> Path:
    image = Image.fromarray(pixels)
    if mode == "P":
        image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    elif mode is not None:
        image = image.convert(mode)
    image.save(path)
    return path


GREY = np.array([[0, 128], [255, 0]], np.uint8)
CODES = [[0, 1], [2, 0]]


@pytest.mark.parametrize("mode", [None, "RGB", "RGBA", "LA"])
def test_gray_levir_mci_labels_with_any_number_of_channels(tmp_path: Path, mode: str | None) -> None:
    assert read_mask(save(tmp_path / "m.png", GREY, mode)).tolist() == CODES


def test_colored_levir_mci_labels(tmp_path: Path) -> None:
    colours = np.array([[(0, 0, 0), (255, 255, 0)], [(255, 0, 0), (0, 0, 0)]], np.uint8)
    assert read_mask(save(tmp_path / "m.png", colours)).tolist() == CODES


def test_codes_palettes_and_16_bit(tmp_path: Path) -> None:
    small = np.array(CODES, np.uint8)
    classes = parse_class_map("road=1, building=2")
    assert read_mask(save(tmp_path / "a.png", small), classes).tolist() == CODES
    assert read_mask(save(tmp_path / "b.png", small, "P"), classes).tolist() == CODES
    large = parse_class_map("road=300,building=65535,background=7")
    pixels = np.array([[7, 300], [65535, 0]], np.uint16)
    assert read_mask(save(tmp_path / "c.png", pixels), large).tolist() == CODES


def test_a_class_may_have_several_values(tmp_path: Path) -> None:
    path = save(tmp_path / "m.png", np.array([[3, 4, 9]], np.uint8))
    assert read_mask(path, parse_class_map("road=3,road=4,background=9")).tolist() == [[1, 1, 0]]


@pytest.mark.parametrize(
    ("pixels", "classes", "what"),
    [
        (np.array([[0, 7, 7]], np.uint8), LEVIR_MCI, "has the value 7 in 2 pixels"),
        (np.full((1, 1, 3), (0, 255, 16), np.uint8), LEVIR_MCI, "has the value #00ff10 in 1 pixel,"),
        (np.array([[128]], np.uint8), parse_class_map("road=1"), "the value 128"),
        (np.array([[True]]), parse_class_map("road=1"), "the value 255"),
    ],
)
def test_an_unknown_value_is_an_error_with_the_file_name(
    tmp_path: Path, pixels: np.ndarray, classes: ClassMap, what: str
) -> None:
    path = save(tmp_path / "m.png", pixels)
    with pytest.raises(InputError) as caught:
        read_mask(path, classes)
    assert str(caught.value).startswith(f"{path} ")
    assert what in str(caught.value)


def test_files_that_are_not_masks(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is missing"):
        read_mask(tmp_path / "none.png")
    (tmp_path / "m.png").write_text("<html>")
    with pytest.raises(InputError, match="not an image"):
        read_mask(tmp_path / "m.png")
    whole = save(tmp_path / "n.png", np.tile(GREY, (64, 64))).read_bytes()
    (tmp_path / "n.png").write_bytes(whole[:60])
    with pytest.raises(InputError, match="cannot be read"):
        read_mask(tmp_path / "n.png")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "road",
        "road=",
        "rod=1",
        "road=-1",
        "road=#ff",
        "road=#gggggg",
        "road=1,building=1",
        "road=0",
        "road=#010101,building=1",
        "road=99999999",
    ],
)
def test_invalid_class_maps(text: str) -> None:
    with pytest.raises(ConfigError, match="class map"):
        parse_class_map(text)


@pytest.mark.parametrize("seed", range(8))
def test_laws_of_random_masks(seed: int) -> None:
    """Mirrored masks have mirrored cells; 4-connectivity never has fewer objects; "share" is in "any"."""
    rng = np.random.default_rng(seed)
    mask = rng.choice([0, ROAD, BUILDING], p=[0.8, 0.1, 0.1], size=(30, 60)).astype(np.uint8)
    eight, four = (measure_mask(mask, MaskRules(connectivity=near))[0] for near in (8, 4))
    assert four.roads >= eight.roads > 0
    assert four.buildings >= eight.buildings > 0
    wide = measure_mask(mask, MaskRules(min_area_px=3))[1]
    narrow = measure_mask(mask, MaskRules(min_area_px=3, cell_rule="share", cell_share=0.1))[1]
    assert {*narrow.roads} <= {*wide.roads}
    for rule in ("any", "share", "centroid"):
        rules = MaskRules(min_area_px=3, cell_rule=rule, cell_share=0.07)
        cells, mirrored = measure_mask(mask, rules)[1], measure_mask(mask[:, ::-1], rules)[1]
        swap = {"left": "right", "right": "left", "center": "center"}
        expected = {f"{label.split('-')[0]}-{swap[label.split('-')[1]]}" for label in cells.roads}
        assert {*mirrored.roads} == expected
        assert cells.roads
