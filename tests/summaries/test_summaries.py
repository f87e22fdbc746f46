"""Totals by area: every chip counts once, chips not analyzed are counted apart, and caveats apply."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import shapely
from rasterio.crs import CRS

from deltavlm.errors import ConfigError, InputError
from deltavlm.geo.features import Feature
from deltavlm.geo.measure import areas_m2
from deltavlm.geo.output_files import SUFFIXES
from deltavlm.geo.sinks import open_sink
from deltavlm.pipeline.outputs_reader import output_paths_in
from deltavlm.pipeline.schema import PAIRS, with_pair_columns
from deltavlm.summaries.area_kinds import (
    areas_from_file,
    areas_from_grid,
    areas_from_h3,
    areas_from_pairs,
    make_areas,
)
from deltavlm.summaries.areas import OUTSIDE, Areas, single_area
from deltavlm.summaries.caveats import caveats
from deltavlm.summaries.document import document
from deltavlm.summaries.render import Items, Table, Text, to_html, to_markdown
from deltavlm.summaries.results import Results, read_results
from deltavlm.summaries.summary import summarize
from deltavlm.summaries.totals import AreaSummary, as_row, summarize_areas, summarize_chips
from tests.summaries.outputs import CHIPS, GRID, RUN, STATUSES, UTM, chip, written


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return written(tmp_path_factory.mktemp("summaries") / "out.gpkg")


def districts(path: Path, split: float = 500_450.0, **columns: Any) -> Path:
    """Two areas that share a border, and one far away."""
    shapes = [
        shapely.box(499_000, 5_390_000, split, 5_401_000),
        shapely.box(split, 5_390_000, 502_000, 5_401_000),
        shapely.box(700_000, 5_390_000, 702_000, 5_401_000),
    ]
    attributes = columns or {"code": [1, 2, 3], "Name": ["West", "East", "Far"]}
    geopandas.GeoDataFrame(attributes, geometry=shapes, crs=32633).to_file(path, layer="communes")
    return path


# --- reading ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_gives_the_same_totals(tmp_path: Path, results: Results, suffix: str) -> None:
    reread = written(tmp_path / f"out{suffix}")
    area, other = summarize_chips(results), summarize_chips(reread)
    assert as_row(area).keys() == as_row(other).keys()
    for name, value in as_row(area).items():
        assert as_row(other)[name] == (pytest.approx(value, rel=1e-4) if isinstance(value, float) else value)
    assert reread.runs == (RUN,)


@pytest.mark.parametrize(
    ("column", "value"),
    [("status", "active"), ("changed", "maybe"), ("changed_score", 57.0), ("changed_score", "high")],
)
def test_layers_of_others_that_are_called_chips_are_refused(
    tmp_path: Path, column: str, value: object
) -> None:
    """They were summarized as chips that are neither analyzed nor failed."""
    row = {"chip_id": "r00000_c00000", "status": "answered", "changed": True, "changed_score": 0.5}
    frame = geopandas.GeoDataFrame([row | {column: value}], geometry=[shapely.box(0, 0, 1, 1)], crs=4326)
    frame.to_file(tmp_path / "chips.gpkg", layer="chips")
    with pytest.raises(InputError, match=rf"has '{value}' in its column '{column}', so it is no output"):
        read_results([tmp_path / "chips.gpkg"])


def test_chips_are_polygons_and_outputs_count_once(tmp_path: Path) -> None:
    row = {"chip_id": "r00000_c00000", "status": "answered", "changed": True, "changed_score": 0.5}
    points = geopandas.GeoDataFrame([row], geometry=[shapely.Point(1, 1)], crs=4326)
    points.to_file(tmp_path / "points.gpkg", layer="chips")
    with pytest.raises(InputError, match="has a Point where chips have polygons"):
        read_results([tmp_path / "points.gpkg"])
    (tmp_path / "each").mkdir()
    written(tmp_path / "each" / "a.gpkg")
    with pytest.raises(InputError, match=r"a\.gpkg: is given twice"):
        output_paths_in([tmp_path / "each", tmp_path / "each" / ".." / "each" / "a.gpkg"])


def test_areas_of_an_unknown_kind(results: Results) -> None:
    with pytest.raises(InputError, match=r"`by=gird`: no such file; did you mean 'grid'\?"):
        make_areas(results, "gird")
    with pytest.raises(InputError, match=r"`by=towns\.gpkg`: no such file; known are pair, grid, h3"):
        make_areas(results, "towns.gpkg")


def test_several_outputs_are_combined(tmp_path: Path) -> None:
    for name, features in (("a.gpkg", GRID[:30]), ("b.geojson", GRID[30:])):
        written(tmp_path / name, features)
    total = summarize_chips(read_results([tmp_path / "a.gpkg", tmp_path / "b.geojson"]))
    assert total.chips == len(GRID)
    assert total.looked_at_km2 == pytest.approx(0.36, rel=1e-3)
    written(tmp_path / "pixels.gpkg", GRID[:1], crs=None)
    with pytest.raises(InputError, match=r"pixels\.gpkg: has no CRS and others have one"):
        read_results([tmp_path / "a.gpkg", tmp_path / "pixels.gpkg"])


def test_outputs_in_several_crss_are_combined_in_degrees(tmp_path: Path) -> None:
    """They were transformed to the CRS of the first, which may not lead to where the others are."""
    south = [Feature(shapely.box(-5e4, -5e4, 5e4, 5e4), {"chip_id": "a", "status": "answered"})]
    written(tmp_path / "utm.gpkg", GRID[:6])
    written(tmp_path / "pole.gpkg", south, CRS.from_epsg(3031))
    for names in (("utm.gpkg", "pole.gpkg"), ("pole.gpkg", "utm.gpkg")):
        results = read_results([tmp_path / name for name in names])
        bounds = results.chips.total_bounds
        assert bounds == pytest.approx((-180, -90, 180, 48.75), abs=0.01)
        assert np.nanmax(results.areas_m2) == pytest.approx(1e10, rel=0.07)


def test_foreign_files_are_a_one_line_error(tmp_path: Path) -> None:
    (tmp_path / "empty.gpkg").write_bytes(b"")
    (tmp_path / "broken.gpkg").write_bytes(b"SQLite format 3\0" + bytes(100))
    (tmp_path / "page.geojson").write_text('{"type": "FeatureCollection"}')
    (tmp_path / "list.csv").write_text("a,b\n")
    (tmp_path / "short.parquet").write_bytes(b"PAR1nothing")
    points = geopandas.GeoDataFrame({"name": ["x"]}, geometry=[shapely.Point(0, 0)], crs=4326)
    points.to_file(tmp_path / "other.geojson")
    points.to_file(tmp_path / "other.gpkg", layer="towns")
    for name, words in {
        "none.gpkg": "no such file",
        "empty.gpkg": "is empty",
        "broken.gpkg": "cannot be read",
        "page.geojson": "cannot be read",
        "list.csv": "is none of",
        "short.parquet": "cannot be read",
        "other.geojson": "has no column 'chip_id'",
        "other.gpkg": r"has no layer 'chips' \(it has towns\); give an output",
    }.items():
        with pytest.raises(InputError, match=words) as caught:
            read_results([tmp_path / name])
        assert str(caught.value).startswith(str(tmp_path / name))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "run", ["text", [1], {"inputs": []}, {"inputs": {"grid": 3}}, {"questions": {"a": 1}}]
)
def test_an_invalid_provenance_counts_as_missing(tmp_path: Path, run: Any) -> None:
    path = tmp_path / "out.geojson"
    written(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"deltavlm": run}))
    results = read_results([path])
    assert results.runs == ({},)
    assert any("has no provenance" in caveat for caveat in caveats(results, summarize_chips(results)))


def test_counts_that_are_no_numbers(tmp_path: Path) -> None:
    path = tmp_path / "out.geojson"
    written(path)
    path.write_text(path.read_text().replace('"new_roads": 1', '"new_roads": "many"'))
    with pytest.raises(InputError, match="column 'new_roads' has values that are no numbers"):
        read_results([path])


# --- areas ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["grid", "small grid", "h3", "file"])
def test_every_chip_counts_once(tmp_path: Path, results: Results, kind: str) -> None:
    """Sums over areas are the totals, for every kind of areas."""
    areas = {
        "grid": lambda: areas_from_grid(results, 450),
        "small grid": lambda: areas_from_grid(results, 70),
        "h3": lambda: areas_from_h3(results, 9),
        "file": lambda: areas_from_file(results, districts(tmp_path / "areas.gpkg")),
    }[kind]()
    rows, total = summarize_areas(results, areas), summarize_chips(results)
    assert len(rows) > 1
    for name in ("chips", "looked_at", "nodata", "failed", "changed", "unsure"):
        assert sum(getattr(area, name) or 0 for area in rows) == getattr(total, name)
    for name in ("new_buildings", "new_roads", "changed_km2", "looked_at_km2"):
        assert sum(getattr(area, name) or 0 for area in rows) == pytest.approx(getattr(total, name), rel=1e-6)
    assert total.chips == total.looked_at + total.nodata + total.failed


def test_a_chip_on_a_border_is_divided(tmp_path: Path, results: Results) -> None:
    """The border is at 4.6 chips: the fifth chip is counted in the west, which has 0.6 of its ground."""
    areas = areas_from_file(results, districts(tmp_path / "areas.gpkg", split=500_460))
    rows = {area.name: area for area in summarize_areas(results, areas)}
    assert {name: area.chips for name, area in rows.items()} == {"West": 5 * 6, "East": 7 * 6}
    assert areas.empty_count == 1
    assert rows["West"].area_km2 == pytest.approx(1.46 * 11, rel=2e-3)
    answered_steps = [
        step for step in range(72) if step % 12 < 5 and STATUSES[step % 6] in ("answered", "cascaded")
    ]
    assert rows["West"].looked_at == len(answered_steps)
    shares = [0.6 if step % 12 == 4 else 1 for step in answered_steps]
    assert rows["West"].looked_at_km2 == pytest.approx(sum(shares) * 0.01, rel=2e-3)
    roads = sum(
        share * (step % 3)
        for share, step in zip(shares, answered_steps, strict=True)
        if step * 37 % 100 > 50  # called changed
    )
    assert rows["West"].new_roads == pytest.approx(roads, rel=1e-3)
    top = max((step for step in answered_steps if step * 37 % 100 > 50), key=lambda step: step * 37 % 100)
    assert rows["West"].top_chips[0].caption == f"caption {top}"


def test_a_district_smaller_than_a_chip_has_its_part(tmp_path: Path) -> None:
    """By centres of chips it was wholly changed or left out: here the centre of neither chip lies in it."""
    chips = [
        Feature(each.geometry, {**each.properties, "changed": changed, "new_buildings": 2})
        for each, changed in ((chip(0, 0, 0), True), (chip(1, 1, 0), False))
    ]
    results = written(tmp_path / "out.gpkg", chips)
    shape = shapely.box(500_090, 5_399_950, 500_140, 5_399_960)  # 10 m of the first chip, 40 m of the second
    geopandas.GeoDataFrame({"name": ["Lane"]}, geometry=[shape], crs=32633).to_file(tmp_path / "lane.gpkg")
    lane, outside = summarize_areas(results, areas_from_file(results, tmp_path / "lane.gpkg"))
    assert (lane.name, lane.chips, outside.name, outside.chips) == ("Lane", 0, OUTSIDE, 2)
    assert lane.changed_share == pytest.approx(0.2, abs=1e-3)
    assert lane.looked_at_share == pytest.approx(1, abs=1e-3)
    assert lane.new_buildings == pytest.approx(2 * 100 / 10_000, rel=1e-2)  # of the changed chip
    assert lane.new_buildings + outside.new_buildings == pytest.approx(2)


def test_grid_cells_are_named_by_their_corner(results: Results) -> None:
    areas = areas_from_grid(results, 400)
    assert set(areas.names) == {f"E{x} N{y}" for x in (500000, 500400, 500800) for y in (5399200, 5399600)}
    assert areas_m2(areas.shapes) == pytest.approx(160_000, rel=2e-3)
    assert areas.names[areas.area_of_chip[0]] == "E500000 N5399600"


def test_wide_results_get_squares_of_equal_area(tmp_path: Path) -> None:
    chips = [
        Feature(shapely.box(lon, lat, lon + 0.1, lat + 0.1), {"chip_id": str(lon), "status": "nodata"})
        for lon, lat in ((-60, 70), (0, 0), (50, -40))
    ]
    areas = areas_from_grid(written(tmp_path / "world.gpkg", chips, CRS.from_epsg(4326)), 10_000)
    assert areas.kind.endswith("EPSG:6933")
    assert areas_m2(areas.shapes) == pytest.approx(1e8, rel=1e-3)
    assert np.bincount(areas.chip_parts.rows, areas.chip_parts.shares) == pytest.approx([1, 1, 1])


def test_a_chip_on_the_180th_meridian(tmp_path: Path) -> None:
    """A bug put its centre at longitude 0, between its halves at 180 and -180 degrees."""
    crs = CRS.from_epsg(3832)  # in metres, centred on the Pacific
    x = 3_339_584.7  # where 180 degrees are
    chips = [Feature(shapely.box(x - 60, 0, x + 40, 100), {"chip_id": "a", "status": "nodata"})]
    results = written(tmp_path / "fiji.gpkg", chips, crs)
    assert abs(results.centres[0][0]) > 179.9
    assert results.areas_m2[0] == pytest.approx(10_000, rel=0.02)
    assert all(
        shape.geom_type == "Polygon" or len(shape.geoms) <= 2 for shape in areas_from_h3(results, 3).shapes
    )
    assert areas_from_grid(results).shapes[0].area < 1


def test_chips_outside_of_all_areas_have_a_row(tmp_path: Path, results: Results) -> None:
    half = geopandas.GeoDataFrame(geometry=[shapely.box(500_000, 0, 500_300, 9e6)], crs=32633)
    half.to_file(tmp_path / "half.geojson")
    rows = summarize_areas(results, areas_from_file(results, tmp_path / "half.geojson"))
    assert [(area.name, area.chips) for area in rows] == [("area 1", 18), (OUTSIDE, 54)]


def test_names_of_areas(tmp_path: Path, results: Results) -> None:
    path = districts(tmp_path / "a.gpkg", code=["w", "e", "f"], Name=["West\n", None, "Far"])
    assert sorted(areas_from_file(results, path).names) == ["West", "area 2"]
    assert sorted(areas_from_file(results, path, name_field="code").names) == ["e", "w"]
    with pytest.raises(ConfigError, match="has no column 'cod'; did you mean 'code'"):
        areas_from_file(results, path, name_field="cod")
    with pytest.raises(ConfigError, match="has no column 'x'; known are code, Name"):
        areas_from_file(results, path, name_field="x")


def test_invalid_areas_are_refused(tmp_path: Path, results: Results) -> None:
    geopandas.GeoDataFrame(geometry=[shapely.Point(0, 0)], crs=4326).to_file(tmp_path / "points.geojson")
    far = geopandas.GeoDataFrame(geometry=[shapely.box(0, 0, 1, 1)], crs=4326)
    far.to_file(tmp_path / "far.geojson")
    with pytest.raises(InputError, match="holds no polygons"):
        areas_from_file(results, tmp_path / "points.geojson")
    with pytest.raises(InputError, match="no area has a chip in it"):
        areas_from_file(results, tmp_path / "far.geojson")
    with pytest.raises(InputError, match=r"has no layer 'x' \(it has communes\)"):
        areas_from_file(results, districts(tmp_path / "areas.gpkg"), "x")
    with pytest.raises(InputError, match="has one pair only"):
        areas_from_pairs(results)
    with pytest.raises(ConfigError, match="give a larger one"):
        by_grid_of_many()
    pixels = written(tmp_path / "pixels.gpkg", crs=None)
    for refused in (
        lambda: areas_from_grid(pixels),
        lambda: areas_from_h3(pixels),
        lambda: areas_from_file(pixels, tmp_path),
    ):
        with pytest.raises(InputError, match="has no CRS, so its chips lie in no area"):
            refused()


def by_grid_of_many() -> None:
    """Make a grid with too many cells, without that many chips."""
    import deltavlm.summaries.area_kinds as module

    class Many:
        has_crs = True
        chips = range(2_000)
        centres = np.stack([np.linspace(0, 1, 2_000), np.linspace(0, 1, 2_000)], axis=1)
        lonlat = shapely.box(*(centres - 1e-5).T, *(centres + 1e-5).T)

    limit, module.MAX_AREAS = module.MAX_AREAS, 1_000
    try:
        module.areas_from_grid(Many(), 1)  # type: ignore[arg-type]
    finally:
        module.MAX_AREAS = limit


# --- totals and caveats -----------------------------------------------------------------------------------


def test_without_a_crs_there_are_counts_only(tmp_path: Path) -> None:
    total = summarize_chips(written(tmp_path / "pixels.gpkg", crs=None))
    assert (total.chips, total.changed_km2, total.looked_at_km2, total.overlap) == (72, None, None, None)
    assert total.changed_share == pytest.approx(total.changed / total.looked_at)


def test_ground_in_two_chips_counts_once(tmp_path: Path) -> None:
    """Chips at a stride of half their size, of an output without `ground_share`: their names tell."""
    chips = [chip(1, col / 2, 0) for col in range(41)]
    chips = [Feature(each.geometry, {**each.properties, "changed": True}) for each in chips]
    results = written(tmp_path / "out.gpkg", chips)
    total = summarize_chips(results)
    assert total.overlap == pytest.approx(41 / 21, rel=1e-3)
    assert total.looked_at_km2 == pytest.approx(0.21, rel=2e-3)
    assert total.new_roads == pytest.approx(21)  # one a chip
    halved = [
        Feature(each.geometry, {**each.properties, "status": "answered" if number % 2 == 0 else "error"})
        for number, each in enumerate(chips)
    ]
    total = summarize_chips(written(tmp_path / "halved.gpkg", halved))  # answered chips lie edge to edge
    assert (total.overlap, total.looked_at_km2) == pytest.approx((1, 0.21), rel=2e-3)
    assert total.new_roads == pytest.approx(21)
    unnamed = [Feature(each.geometry, {**each.properties, "chip_id": "a"}) for each in chips]
    results = written(tmp_path / "unnamed.gpkg", unnamed)
    total = summarize_chips(results)
    assert (total.new_roads, total.overlap) == (41, None)
    assert any("41 chips it is not known how much" in sentence for sentence in caveats(results, total))


def test_pairs_of_the_same_ground_do_not_overlap(tmp_path: Path) -> None:
    with open_sink(tmp_path / "many.gpkg", (with_pair_columns(CHIPS),), UTM, {}) as sink:
        for pair in ("p0", "p1", "p2"):
            columns = {"pair_id": pair, "ground_share": 1.0}
            rows = [Feature(feature.geometry, {**feature.properties, **columns}) for feature in GRID]
            sink.write("chips", rows)
    results = read_results([tmp_path / "many.gpkg"])
    total = summarize_chips(results)
    assert total.overlap == pytest.approx(1)
    assert total.looked_at_km2 == pytest.approx(3 * 0.36, rel=2e-3)
    by = summarize_areas(results, areas_from_pairs(results))
    assert [(area.name, area.chips) for area in by] == [("p0", 72), ("p1", 72), ("p2", 72)]
    text = " ".join(caveats(results, total))
    assert "over 3 pairs" in text
    assert "has no provenance" in text


def test_pairs_that_could_not_be_opened_are_a_caveat(tmp_path: Path) -> None:
    """They have no chips, so no other figure shows that they are missing."""
    texts = {}
    for name in ("many.gpkg", "many.geojson"):
        with open_sink(
            tmp_path / name, (with_pair_columns(CHIPS), PAIRS), UTM, RUN | {"pairs": "list.csv"}
        ) as sink:
            rows = [Feature(feature.geometry, {**feature.properties, "pair_id": "good"}) for feature in GRID]
            sink.write("chips", rows)
            for pair, status in (("good", "answered"), ("bad", "failed")):
                sink.write("pairs", [Feature(shapely.Polygon(), {"pair_id": pair, "status": status})])
        results = read_results([tmp_path / name])
        texts[name] = " ".join(caveats(results, summarize_chips(results)))
    assert "Pairs that could not be opened and were not analyzed: 1 (bad)." in texts["many.gpkg"]
    assert "does not record which pairs could not be opened" in texts["many.geojson"]


def test_caveats_follow_from_the_output(tmp_path: Path, results: Results) -> None:
    text = " ".join(caveats(results, summarize_chips(results)))
    assert "Not analyzed: 36 of 72 chips (12 without enough data, 24" in text
    assert "were not asked for counts" in text
    assert "synthetic scenes" in text
    assert "probabilities where one chip in five has changed" in text  # `training.calibrate.CHANGED_SHARE`
    assert not any(words in text for words in ("limited", "Scale", "overlap:", "models", "covers"))
    run = RUN | {
        "model": RUN["model"] | {"name": "mine", "training_gsd_m": 5.0},
        "options": RUN["options"] | {"limit": 7},
        "inputs": RUN["inputs"] | {"alignment": {"overlap_share": 0.25}, "bbox": [0, 0, 1, 1]},
    }
    other = written(tmp_path / "other.gpkg", run=run)
    text = " ".join(caveats(other, summarize_chips(other)))
    assert "limited to 7 chips" in text
    assert "covers 25.0% of the earlier" in text
    assert "touch the area of interest" in text
    assert "Scale (mine): a pixel is 0.5 m, the model was trained at 5 m" in text
    assert "synthetic scenes" not in text
    evidence = {"name": "helper", "chip_px": 256, "training_gsd_m": 8.0}
    model = run["model"] | {"training_gsd_m": None, "evidence": evidence}
    told = written(tmp_path / "told.gpkg", run=run | {"model": model})
    text = " ".join(caveats(told, summarize_chips(told)))
    assert "Scale (helper): a pixel is 0.5 m, the model was trained at 8 m" in text
    assert "Scale (mine)" not in text
    combined = read_results([results.paths[0], tmp_path / "other.gpkg"])
    assert "Scale (mine)" in " ".join(caveats(combined, summarize_chips(combined)))
    twice = read_results([tmp_path / "other.gpkg"] * 2)
    assert len(caveats(twice, summarize_chips(twice))) == len({*caveats(twice, summarize_chips(twice))})
    assert summarize_chips(twice).top_chips[0].chip_id.startswith("other r")


@pytest.mark.parametrize("number", range(12))
def test_one_is_singular(tmp_path: Path, number: int) -> None:
    """Of outputs with one chip each, of every status and with most caveats."""
    feature = GRID[number]
    unparsed = (
        {"changed": None, "ground_share": None} if number == 1 else {"conflicts": ["unchanged_but_mask"]}
    )
    chip = Feature(feature.geometry, {**feature.properties, **unparsed, "changed_score": 0.5})
    run = RUN | {"options": RUN["options"] | {"limit": 1}}
    results = written(tmp_path / "one.gpkg", [chip], run=run)
    title, blocks = document(summarize(results, areas_from_grid(results, 1000)))
    text = " ".join([title, to_markdown(title, blocks)])
    assert "1 chip" in text
    assert not re.search(r"(?<![\d,.])1 (\w+ )?(chips|areas|pairs)\b", text)


def test_areas_smaller_than_chips_are_a_caveat(results: Results) -> None:
    small, large = (summarize_areas(results, areas_from_grid(results, side)) for side in (50, 500))
    words = "Areas are smaller than chips"
    assert any(caveat.startswith(words) for caveat in caveats(results, summarize_chips(results), small))
    assert not any(caveat.startswith(words) for caveat in caveats(results, summarize_chips(results), large))


def test_nothing_at_all(tmp_path: Path) -> None:
    empty = written(tmp_path / "empty.gpkg", [])
    total = summarize_chips(empty)
    assert (total.chips, total.changed_share, total.mean_score, total.top_chips) == (0, None, None, ())
    title, blocks = document(summarize(empty, single_area(empty)))
    assert "0 of 0 analyzed chips" in to_markdown(title, blocks)
    assert summarize_areas(empty, areas_from_grid(empty)) == []


# --- pages ------------------------------------------------------------------------------------------------

HARM = "<script>alert(1)</script> a|b *c* [d](http://e.org) `f`\n# g"


def test_text_in_a_document_is_escaped() -> None:
    blocks = [Text(HARM), Items([HARM]), Table(["a", "b"], [[HARM, "1"]])]
    html = to_html(HARM, blocks)
    assert "<script>" not in html
    assert html.count("&lt;script&gt;") == 5
    markdown = to_markdown(HARM, blocks)
    assert "<script>" not in markdown.replace("\\<", "")
    assert "[d](" not in markdown
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    assert [line.replace("\\|", "").count("|") for line in rows] == [3, 3, 3]


def test_the_document_has_all_sections(tmp_path: Path, results: Results) -> None:
    areas = areas_from_file(
        results, districts(tmp_path / "areas.gpkg", code=[1, 2, 3], Name=["We<b>st", "East", "F"])
    )
    summary = summarize(results, areas)
    title, blocks = document(summary)
    html = to_html(title, blocks)
    for words in (
        "Changes",
        "By area: area",
        "Confidence",
        "Not analyzed",
        "Caveats",
        "Provenance",
        "f" * 16,
    ):
        assert words in html
    assert "We&lt;b&gt;st" in html
    assert f"{summary.total.changed} of {summary.total.looked_at} analyzed chips" in html
    assert html.count("<path") == 2
    urls = [value for value in html.replace("http://www.w3.org/2000/svg", "").split('"') if "//" in value]
    assert urls == []  # nothing is asked of anybody
    assert "default-src 'none'" in html
    markdown = to_markdown(title, blocks)
    assert "| East |" in markdown
    assert "<svg" not in markdown


def test_without_areas_the_map_shows_chips(results: Results) -> None:
    areas = single_area(results)
    html = to_html(*document(summarize(results, areas)))
    assert html.count("<path") == len(GRID)
    grey = summarize_chips(results).nodata + summarize_chips(results).failed
    assert len(re.findall('<path [^>]*"#bbbbbb"', html)) == grey > 0


def test_values_are_plain(results: Results) -> None:
    rows: list[AreaSummary] = summarize_areas(results, areas_from_grid(results))
    assert json.loads(json.dumps([as_row(area) for area in rows]))
    assert isinstance(areas_from_grid(results), Areas)


def test_the_top_chips_are_first_those_without_conflicts(tmp_path: Path) -> None:
    chips = [chip(step, step, 0) for step in range(24)]
    changed = [each for each in chips if each.properties.get("changed")]
    best = max(changed, key=lambda each: float(str(each.properties["changed_score"])))
    chips[chips.index(best)] = Feature(
        best.geometry, {**best.properties, "conflicts": ["unchanged_but_cells", "unchanged_but_mask"]}
    )
    results = written(tmp_path / "out.gpkg", chips)
    total = summarize_chips(results, top_count=len(changed))
    assert (total.conflicting, total.conflicts) == (1, {"unchanged_but_cells": 1, "unchanged_but_mask": 1})
    scores = [each.score for each in total.top_chips]
    assert scores[-1] == max(scores)
    assert scores[:-1] == sorted(scores[:-1], reverse=True)
    assert any("unchanged_but_cells 1, unchanged_but_mask 1" in each for each in caveats(results, total))
