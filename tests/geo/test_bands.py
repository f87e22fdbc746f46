"""Bands are chosen as asked, by their names, by color interpretation, and else by a guess that is told."""

from __future__ import annotations

import pytest

from deltavlm.errors import ConfigError
from deltavlm.geo.bands import BandChoice, choose_bands

RGB = ["red", "green", "blue"]


@pytest.mark.parametrize(
    ("labels", "chosen", "bands"),
    [
        (["blue", "green", "red", "undefined"], None, (3, 2, 1)),
        ([*RGB, "alpha"], None, (1, 2, 3)),
        (["gray"], None, (1, 1, 1)),
        (["gray", "alpha"], None, (1, 1, 1)),
        (["alpha", "gray"], None, (2, 2, 2)),
        ([*RGB, "undefined"], (4, 1, 2), (4, 1, 2)),
        (RGB, (2,), (2, 2, 2)),
    ],
)
def test_labelled_and_chosen_bands(
    labels: list[str], chosen: tuple[int, ...] | None, bands: tuple[int, ...]
) -> None:
    assert choose_bands(labels, chosen) == BandChoice(bands)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("labels", "bands"),
    [
        (["gray", "undefined", "undefined", "undefined"], (1, 2, 3)),
        (["alpha", "gray", "undefined", "undefined"], (2, 3, 4)),
        (["gray", "undefined"], (1, 1, 1)),
    ],
)
def test_bands_that_are_a_guess(labels: list[str], bands: tuple[int, ...]) -> None:
    choice = choose_bands(labels)
    assert (choice.rgb, choice.is_guess) == (bands, True)
    assert choice.note


@pytest.mark.parametrize("chosen", [(1, 2), (0, 1, 2), (1, 2, 4), ()])
def test_missing_bands(chosen: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="bands"):
        choose_bands(RGB, chosen)


@pytest.mark.parametrize(
    ("names", "bands"),
    [
        ("blue green red nir", (3, 2, 1)),
        ("coastal_blue blue green_i green yellow red rededge nir", (6, 4, 2)),  # PlanetScope, 8 bands
        ("Coastal,Blue,Green,Yellow,Red,Red Edge,NIR1,NIR2", (5, 3, 2)),  # WorldView-2
        ("B02 B03 B04 B08", (3, 2, 1)),
        ("B2 B3 B4 B8", (3, 2, 1)),
        ("B1 B2 B3 B4 B5 B6 B7 B8 B8A B9 B11 B12", (4, 3, 2)),
        ("SR_B2 SR_B3 SR_B4 SR_B5", (3, 2, 1)),
        ("SR_B1 SR_B2 SR_B3 SR_B4 SR_B5 SR_B6 SR_B7", (4, 3, 2)),  # Landsat 8
        ("SR_B1 SR_B2 SR_B3 SR_B4 SR_B5 SR_B7", (3, 2, 1)),  # Landsat 4 to 7
        ("sr_band2 sr_band3 sr_band4", (3, 2, 1)),
        (
            "T33UUP_20240501T100559_B02_10m T33UUP_20240501T100559_B03_10m T33UUP_20240501T100559_B04_10m",
            (3, 2, 1),
        ),
        ("sur_refl_b01 sur_refl_b02 sur_refl_b03 sur_refl_b04", (1, 4, 3)),  # MODIS
        ("Band 1 - Blue,Band 2 - Green,Band 3 - Red,Band 4 - NIR", (3, 2, 1)),
        ("Near-Infra-Red,RED,Green,BLUE", (2, 3, 4)),
        ("Blau,Grün,Rot,Nahes Infrarot", (3, 2, 1)),
        ("bleu vert rouge", (3, 2, 1)),
        ("B G R", (3, 2, 1)),
        ("red_edge red_std green blue red", (5, 3, 4)),
        ("SCL,Blue (490 nm),Green (560 nm),Red (665 nm)", (4, 3, 2)),
    ],
)
def test_names_decide_where_labels_do_not(names: str, bands: tuple[int, int, int]) -> None:
    each = names.split("," if "," in names else " ")
    choice = choose_bands(["gray"] + ["undefined"] * (len(each) - 1), names=each)
    assert (choice.rgb, choice.is_guess) == (bands, False)
    assert choice.note is not None
    assert "by their names" in choice.note


@pytest.mark.parametrize(
    "names",
    [
        ("Band 1", "Band 2", "Band 3"),
        (
            "B1",
            "B2",
            "B3",
            "B4",
        ),  # of one sensor blue, green, red, near infrared, of another coastal blue, ...
        ("nir", "red", "green"),
        ("red_2019", "green_2019", "blue_2019", "red_2024", "green_2024", "blue_2024"),
        ("infrared", "green", "blue"),
        (None, None, None),
    ],
)
def test_names_that_do_not_tell(names: tuple[str | None, ...]) -> None:
    choice = choose_bands(["gray"] + ["undefined"] * (len(names) - 1), names=names)
    assert (choice.rgb, choice.is_guess) == ((1, 2, 3), True)
    assert choice.note is not None
    assert "no bands are named or labelled red, green and blue" in choice.note
    assert choice.note.startswith("no bands are named or labelled red, green and blue (") == bool(names[0])


@pytest.mark.parametrize(
    ("file_name", "bands"),
    [("LE07_L1TP.tif", (3, 2, 1)), ("LC08_L1TP.tif", (4, 3, 2)), ("s2_stack.tif", (4, 3, 2))],
)
def test_the_file_name_tells_sensors_apart(file_name: str, bands: tuple[int, int, int]) -> None:
    names = ["B1", "B2", "B3", "B4"]
    assert choose_bands(["gray"] * 4, names=names, file_name=file_name).rgb == bands


def test_names_precede_labels_and_a_contradiction_is_told() -> None:
    """GDAL labels any three 8-bit bands red, green, blue."""
    assert choose_bands(RGB, names=RGB) == BandChoice((1, 2, 3))
    choice = choose_bands(RGB, names=["B02", "B03", "B04"])
    assert (choice.rgb, choice.is_guess) == ((3, 2, 1), True)
    assert choice.note is not None
    assert "labels 1,2,3" in choice.note


@pytest.mark.parametrize(
    ("labels", "model"),
    [
        (["cyan", "magenta", "yellow", "black"], "CMYK"),
        (["Y", "Cb", "Cr"], "YCbCr"),
        (["coastal", "yellow"], None),
    ],
)
def test_colors_that_are_no_rgb(labels: list[str], model: str | None) -> None:
    if model is None:
        choose_bands(labels)
    else:
        with pytest.raises(ConfigError, match=f"its colors are {model}; convert it to RGB"):
            choose_bands(labels)
        assert choose_bands(labels, [1]).rgb == (1, 1, 1)
