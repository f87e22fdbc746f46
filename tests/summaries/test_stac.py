"""STAC items are valid by the published schemas, checked offline, and agree with the output."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import shapely
from rasterio.crs import CRS
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT7

from deltavlm.errors import ConfigError, InputError
from deltavlm.geo.features import Feature
from deltavlm.geo.sinks import open_sink
from deltavlm.pipeline.schema import with_pair_columns
from deltavlm.summaries.results import Results, read_results
from deltavlm.summaries.stac import dump_item, result_item
from deltavlm.summaries.stac_model import model_item, model_item_name
from tests.summaries.outputs import CHIPS, GRID, RUN, UTM, written

STAC = "https://schemas.stacspec.org/v1.1.0/item-spec/json-schema"
EXTENSION_SCHEMAS = Path(__file__).with_name("schemas")
QUESTIONS = [{"name": name, "task": name} for name in ("caption", "change", "count", "location", "water")]
FULL = RUN | {
    "model": RUN["model"] | {"dtype": "bfloat16", "quantize": None},
    "questions": QUESTIONS,
    "versions": {"deltavlm": "0.1.0", "torch": "2.15.0+cpu"},
    "inputs": RUN["inputs"]
    | {"grid": {"width": 1200, "height": 600, "transform": [1, 0, 5e5, 0, -1, 5.4e6]}},
}
DATES = {"before_date": "2015", "after_date": "2024-02"}


def published() -> Iterator[tuple[str, Resource[Any]]]:
    """Schemas by URL: those of STAC and GeoJSON from pystac, those of the extensions from this folder."""
    core = files("pystac") / "validation" / "jsonschemas"
    spec = core / "stac-spec" / "v1.1.0"
    addresses = {
        **{
            f"https://geojson.org/schema/{name}.json": core / "geojson" / f"{name}.json"
            for name in ("Feature", "Geometry")
        },
        "https://schemas.stacspec.org/v1.1.0/item-spec/json-schema/item.json": spec / "item.json",
    }
    for name in (
        "bands",
        "basics",
        "common",
        "data-values",
        "datetime",
        "instrument",
        "licensing",
        "provider",
    ):
        addresses[f"https://schemas.stacspec.org/v1.1.0/item-spec/json-schema/{name}.json"] = (
            spec / f"{name}.json"
        )
    for file in EXTENSION_SCHEMAS.glob("*.json"):
        name, _, version = file.stem.partition("-")
        addresses[f"https://stac-extensions.github.io/{name}/v{version}/schema.json"] = file
    for address, file in addresses.items():
        yield address, DRAFT7.create_resource(json.loads(file.read_text(encoding="utf-8")))


REGISTRY: Registry[Any] = Registry().with_resources(list(published()))


def check(item: dict[str, Any]) -> None:
    """Validate an item by the schema of STAC, and of each extension that it names."""
    item = json.loads(dump_item(item))
    for address in (
        "https://schemas.stacspec.org/v1.1.0/item-spec/json-schema/item.json",
        *item["stac_extensions"],
    ):
        schema = REGISTRY[address].contents
        jsonschema.Draft7Validator(
            schema, registry=REGISTRY, format_checker=jsonschema.FormatChecker()
        ).validate(item)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return written(tmp_path_factory.mktemp("stac") / "out put.gpkg", run=FULL)


def test_items_are_valid_by_the_published_schemas(results: Results) -> None:
    item = result_item(results, results.paths[0].with_name("item.json"), **DATES)
    check(item)
    check(model_item(FULL))
    check(model_item(FULL, "https://example.org/weights.safetensors"))


@pytest.mark.parametrize("harm", ["bbox", "geometry", "datetime", "level", "code", "asset", "tasks", "role"])
def test_the_schemas_reject_invalid_items(results: Results, harm: str) -> None:
    """Guards against a schema that is not applied at all."""
    item = json.loads(dump_item(result_item(results, Path("item.json"), **DATES)))
    model = json.loads(dump_item(model_item(FULL)))
    match harm:
        case "bbox":
            del item["bbox"]
        case "geometry":
            item["geometry"]["coordinates"] = [1, 2]
        case "datetime":
            del item["properties"]["end_datetime"]
        case "level":
            item["properties"]["processing:level"] = 4
        case "code":
            item["properties"]["proj:code"] = 32633
        case "asset":
            del item["assets"]["changes"]["href"]
        case "tasks":
            model["properties"]["mlm:tasks"] = ["guessing"]
        case "role":
            del model["assets"]["weights"]["mlm:artifact_type"]
    with pytest.raises(jsonschema.ValidationError):
        check(model if harm in ("tasks", "role") else item)


def test_properties_of_the_item(results: Results) -> None:
    item = result_item(results, results.paths[0].with_name("item.json"), **DATES)
    properties = item["properties"]
    assert (properties["start_datetime"], properties["end_datetime"]) == (
        "2015-01-01T00:00:00Z",
        "2024-02-29T23:59:59Z",
    )
    assert (properties["proj:code"], properties["proj:shape"], properties["gsd"]) == (
        "EPSG:32633",
        [600, 1200],
        0.5,
    )
    assert (properties["deltavlm:chips"], properties["deltavlm:not_looked_at"]) == (72, 36)
    assert item["assets"]["changes"]["href"] == "./out%20put.gpkg"
    outline = shapely.from_geojson(json.dumps(item["geometry"]))
    assert outline.bounds == pytest.approx(item["bbox"])
    assert len(outline.exterior.coords) == 5
    images = [link["href"] for link in item["links"] if "mlm:name" not in link]
    assert images == ["a%20before.tif", "https://example.org/b.tif"]


def test_the_item_links_to_the_model(results: Results) -> None:
    item = result_item(results, Path("item.json"), **DATES)
    (link,) = [link for link in item["links"] if "mlm:name" in link]
    assert link["rel"] == "derived_from"
    assert link["href"] == item["assets"]["changes"]["processing:expression"]["expression"]
    assert link["href"] == f"./{model_item_name(FULL)}" == f"./nano-{'f' * 16}.json"
    model = model_item(FULL)
    assert link["mlm:name"] == model["properties"]["mlm:name"]
    assert model["properties"]["mlm:tasks"][-1] == "generative"


@pytest.mark.parametrize("name", ["my model/7b", "7b", "x", "..", "модель"])
def test_any_name_of_a_model_makes_a_valid_item(results: Results, name: str, tmp_path: Path) -> None:
    run = FULL | {"model": FULL["model"] | {"name": name}}
    check(model_item(run))
    check(result_item(replace(results, runs=(run,)), tmp_path / "item.json", **DATES))
    assert "/" not in model_item_name(run)


def test_dates_come_from_the_pairs(tmp_path: Path) -> None:
    path = tmp_path / "many.gpkg"
    with open_sink(path, (with_pair_columns(CHIPS),), UTM, FULL | {"pairs": "list.csv"}) as sink:
        for step, (before, after) in enumerate(
            (("2014", "2016-05-01"), ("2015-03", "2021-07-09T10:00:00+02:00"))
        ):
            pair_columns = {"pair_id": str(step), "before_date": before, "after_date": after}
            sink.write(
                "chips",
                [Feature(chip.geometry, chip.properties | pair_columns) for chip in GRID],
            )
    item = result_item(read_results([path]), tmp_path / "item.json")
    check(item)
    properties = item["properties"]
    assert (properties["start_datetime"], properties["end_datetime"]) == (
        "2014-01-01T00:00:00Z",
        "2021-07-09T08:00:00Z",
    )


def test_over_the_180th_meridian(tmp_path: Path) -> None:
    crs = CRS.from_epsg(3832)
    chips = [Feature(shapely.box(3_339_500, 0, 3_339_700, 200), {"chip_id": "a", "status": "nodata"})]
    item = result_item(written(tmp_path / "fiji.gpkg", chips, crs, FULL), tmp_path / "item.json", **DATES)
    check(item)
    west, _, east, _ = item["bbox"]
    assert west > 179.9
    assert east < -179.9
    assert item["geometry"]["type"] == "MultiPolygon"


def test_over_a_pole(tmp_path: Path) -> None:
    """Of a chip with the pole in it, two slivers without the pole were in the item."""
    chips = [Feature(shapely.box(-74_000, -64_000, 54_000, 64_000), {"chip_id": "a", "status": "nodata"})]
    results = written(tmp_path / "pole.gpkg", chips, CRS.from_epsg(3413), FULL)
    item = result_item(results, tmp_path / "item.json", **DATES)
    check(item)
    assert item["bbox"] == pytest.approx([-180, 89.1, 180, 90], abs=0.01)
    assert item["geometry"]["type"] == "Polygon"
    assert results.areas_m2[0] == pytest.approx(128_000**2 * 1.066, rel=0.001)  # true to scale at 70 degrees


def test_a_crs_without_longitudes_has_no_item(tmp_path: Path) -> None:
    crs = CRS.from_wkt('LOCAL_CS["a building site",UNIT["metre",1]]')
    chips = [Feature(shapely.box(0, 0, 100, 100), {"chip_id": "a", "status": "nodata"})]
    with pytest.raises(InputError, match="no chips with a location"):
        result_item(written(tmp_path / "a.gpkg", chips, crs, FULL), tmp_path / "item.json", **DATES)


def test_invalid_input_is_refused(tmp_path: Path, results: Results) -> None:
    with pytest.raises(InputError, match="give `before_date`"):
        result_item(results, tmp_path / "item.json")
    with pytest.raises(ConfigError, match="'May' is not a date"):
        result_item(results, tmp_path / "item.json", before_date="May", after_date="2024")
    with pytest.raises(ConfigError, match="'2024-13' is not a date"):
        result_item(results, tmp_path / "item.json", before_date="2024", after_date="2024-13")
    with pytest.raises(ConfigError, match="comes before the earlier one"):
        result_item(results, tmp_path / "item.json", before_date="2024", after_date="2015")
    for name, options, words in (
        ("pixels", {"crs": None}, "has no CRS"),
        ("lost", {"run": {}}, "does not say which model"),
        ("empty", {"chips": [], "run": FULL}, "has no chips"),
    ):
        results_of_case = written(tmp_path / f"{name}.gpkg", **options)
        with pytest.raises(InputError, match=words):
            result_item(results_of_case, tmp_path / "item.json", **DATES)
