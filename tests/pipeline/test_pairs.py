"""Lists of pairs: what they say, and what they are told when they are wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import shapely

from deltavlm.errors import InputError
from deltavlm.pipeline.pair_lists import parse_pairs, read_pairs
from deltavlm.pipeline.pairs import Pair, file_names, pairs_of_folders, shard, with_ids

HERE = Path("data")


def parsed(text: str) -> tuple[Pair, ...]:
    return parse_pairs(text, "list", HERE).pairs


def test_a_csv_in_any_order_with_more_than_is_needed() -> None:
    found = parse_pairs(
        "\ufeffAfter, id ,cloud,before,date,\n"
        "b.tif,one,3,a.tif,2024-05-31\n"
        "\n"
        "https://h/d.tif,,,/vsizip/x.zip/c.tif,2024\n",
        "list.csv",
        HERE,
    )
    assert found.notes == ("list.csv: ignored columns: cloud",)
    assert found.pairs == (
        Pair("one", "data/a.tif", "data/b.tif", None, "2024-05-31", None, 2),
        Pair("d", "/vsizip/x.zip/c.tif", "https://h/d.tif", None, "2024", None, 4),
    )


def test_csv_json_lines_and_stac_say_the_same(tmp_path: Path) -> None:
    square = "POLYGON ((3 45, 4 45, 4 46, 3 46, 3 45))"
    shape = {"type": "Polygon", "coordinates": [[[3, 45], [4, 45], [4, 46], [3, 46], [3, 45]]]}
    csv = f'before;after;id;before_date;after_date;aoi\na.tif;b.tif;x;2020-01-01;2021-01;"{square}"\n'
    line = {"before": "a.tif", "after": "b.tif", "id": "x", "before_date": "2020-01-01", "date": "2021-01"}
    item = {
        "id": "x",
        "type": "Feature",
        "geometry": None,
        "properties": {"start_datetime": "2020-01-01", "end_datetime": "2021-01", "aoi": shape},
        "assets": {"before": {"href": "a.tif"}, "after": {"href": "b.tif"}},
    }
    dated = item | {
        "properties": {"start_datetime": "1999", "end_datetime": "1999", "aoi": shape},
        "assets": {
            "before": {"href": "a.tif", "datetime": "2020-01-01"},
            "after": {"href": "b.tif", "datetime": "2021-01"},
        },
    }
    texts = [
        csv,
        csv.replace(";", "\t"),
        csv.replace(";id;", ";pair_id;"),
        json.dumps(line | {"aoi": shape}) + "\n",
        json.dumps(line | {"aoi": json.dumps(shape)}, indent=1),
        json.dumps({"type": "FeatureCollection", "features": [item]}, indent=1),
        json.dumps({"type": "FeatureCollection", "features": [dated]}),
    ]
    for text in texts:
        path = tmp_path / "list"
        path.write_text(text)
        (pair,) = read_pairs(path).pairs
        assert isinstance(pair.aoi, shapely.Polygon)
        assert pair.aoi.equals(shapely.from_wkt(square))
        assert (pair.id, pair.before, pair.after) == ("x", str(tmp_path / "a.tif"), str(tmp_path / "b.tif"))
        assert (pair.before_date, pair.after_date) == ("2020-01-01", "2021-01")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no pairs"),
        ("before,after\n", "holds no pairs; give a line or an item"),
        ("befor,after\na,b\n", "line 1: there is no column 'before'; is 'befor' meant?"),
        ("before,after,after\na,b,c\n", "two columns 'after'"),
        ("before,after\na,b\na\n", "line 3, after: is empty"),
        ("before,after\na,b,c\n", "line 2: has 3 columns, but the header 2"),
        ('before,after\n"a,b\n', "is not valid CSV"),
        ("before,after,date\na,b,31.5.2024\n", "line 2, date: '31.5.2024' is not a date in ISO 8601"),
        ("before,after,before_date\na,b,2024-13\n", "line 2, before_date: '2024-13'"),
        ("before,after,aoi\na,b,POLYGON((1 2\n", "line 2, aoi: is neither WKT nor a GeoJSON geometry"),
        ("before,after,aoi\na,b,POINT(1 2)\n", "aoi: has no area"),
        ('{"before": "a", "after": "b", "aoi": {"type": "Square"}}\n', "aoi: is neither WKT nor a GeoJSON"),
        (
            'before,after,aoi\na,b,"POLYGON((5e5 1,5e5 2,6e5 2,5e5 1))"\n',
            "aoi: is not in longitude and latitude",
        ),
        ('{"before": "a", "after": "b"}\n{"before": \n', "line 2: is not valid JSON"),
        ('{"before": "a", "afer": "b"}\n', "line 1: has no 'after'; is 'afer' meant?"),
        ('{"before": "a", "after": 1.5}\n', "line 1, after: 1.5 is not text"),
        ('{"before": "a\\u0000", "after": "b"}\n', "characters that cannot be printed"),
        ('{"before": "a\\ud800", "after": "b"}\n', "characters that cannot be printed"),
        ('{"before": "a", "after": "b"}\n7\n', "line 2: is not an object"),
        ("[1]", "is a JSON list"),
        ('{\n"type": x}', "line 2 column 9"),
        ('{"type": "FeatureCollection"}', "has no list 'features'"),
        (
            '{"type": "FeatureCollection", "features": [{"assets": {"before": {"href": "a"}}}]}',
            "item 1: has no asset 'after' with a href, only 'before'",
        ),
        ("id,before,after\nx,a,b\ny,a,b\nx,c,d\n", "lines 2 and 4: both have the id 'x'"),
    ],
)
def test_a_mistake_is_told_with_its_place(text: str, words: str) -> None:
    with pytest.raises(InputError) as told:
        parsed(text)
    assert words in str(told.value)
    assert str(told.value).startswith("list")
    assert "\n" not in str(told.value)


def test_a_file_of_another_encoding_or_none_at_all(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_bytes(b"before,after\n\xff,b\n")
    with pytest.raises(InputError, match="is not UTF-8"):
        read_pairs(tmp_path / "list.csv")
    with pytest.raises(InputError, match="no such file; check the name"):
        read_pairs(tmp_path / "nothing.csv")


@pytest.mark.parametrize(
    ("href", "links", "expected"),
    [
        ("./a%20b.tif", [], "{}/a b.tif"),
        ("a b.tif", [], "{}/a b.tif"),
        ("file://{}/a%20b.tif", [], "{}/a b.tif"),
        ("FILE://localhost{}/a%20b.tif", [], "{}/a b.tif"),
        ("a%2520b.tif", [], "{}/a%20b.tif"),
        ("c%20d.tif", [], "{}/c%20d.tif"),  # there is a file of this name
        ("https://h/a%20b.tif?sig=%2F", [], "https://h/a%20b.tif?sig=%2F"),
        ("./a%20b.tif", [{"rel": "self", "href": "https://h/items/i.json"}], "{}/a b.tif"),
        ("../x%20y.tif", [{"rel": "self", "href": "https://h/items/i.json"}], "https://h/x%20y.tif"),
        ("x%20y.tif", [{"rel": "self", "href": "file://{}/items/i.json"}], "{}/items/x y.tif"),
        ("x%20y.tif", [{"rel": "self", "href": "./i.json"}], "{}/x y.tif"),
    ],
)
def test_a_href_is_a_url(tmp_path: Path, href: str, links: list[dict[str, str]], expected: str) -> None:
    """Hrefs in percent-encoding were taken for names of files."""
    for name in ("a b.tif", "c%20d.tif"):
        (tmp_path / name).touch()
    assets = {date: {"href": href.format(tmp_path)} for date in ("before", "after")}
    links = [{key: value.format(tmp_path) for key, value in link.items()} for link in links]
    item = {"type": "Feature", "id": "i", "properties": {}, "links": links, "assets": assets}
    text = json.dumps({"type": "FeatureCollection", "features": [item]})
    (pair,) = parse_pairs(text, "items.json", tmp_path).pairs
    assert pair.before == pair.after == expected.format(tmp_path)
    if not links:
        (pair,) = parse_pairs(
            json.dumps({date: href.format(tmp_path) for date in assets}), "l", tmp_path
        ).pairs
        assert pair.before == expected.format(tmp_path)


def test_an_aoi_may_be_a_layer(tmp_path: Path) -> None:
    (tmp_path / "areas.gpkg").touch()
    for name in ("areas.gpkg", "areas.gpkg:communes", "none.gpkg"):
        row = json.dumps({"before": "b.tif", "after": "a.tif", "aoi": name})
        (pair,) = parse_pairs(row, "list.jsonl", tmp_path).pairs
        assert pair.aoi == tmp_path / name


def test_an_aoi_that_is_no_geometry_is_a_file() -> None:
    (pair,) = parsed("before,after,aoi\na,b,area (1).gpkg\n")
    assert pair.aoi == HERE / "area (1).gpkg"


def test_pairs_without_an_id_get_the_stem_of_after_and_it_is_their_own() -> None:
    lines = ["x/1.tif", "a/after.tif", "b/after.tif", "c/b/after.tif", "2.tif"]
    text = "before,after,id\n" + "".join(f"q,{after},\n" for after in lines) + "q,z.tif,2\n"
    assert [pair.id for pair in parsed(text)] == ["1", "a_after", "b_after", "b_after_2", "2_2", "2"]


def test_parts_are_all_pairs_once() -> None:
    pairs = with_ids([Pair("", f"{n}", f"{n}.tif") for n in range(7)], "list, lines")
    parts = [shard(pairs, index, 3) for index in (1, 2, 3)]
    assert [[pair.id for pair in part] for part in parts] == [["0", "3", "6"], ["1", "4"], ["2", "5"]]


def test_names_of_files_are_names_and_differ() -> None:
    def names(*ids: str) -> dict[str, str]:
        return file_names([Pair(one, "a", "b") for one in ids], ".gpkg")

    assert names("a/b", "c") == {"a/b": "a_b.gpkg", "c": "c.gpkg"}
    for ids in (("a/b", "a_b"), ("X", "x")):
        with pytest.raises(InputError, match="would be one file"):
            names(*ids)
    for bad in ("..", ".hidden", "é" * 100):
        with pytest.raises(InputError, match="cannot be the name of a file"):
            names(bad)


def test_two_folders_are_matched_by_name(tmp_path: Path) -> None:
    for name in (
        "A/1.png",
        "A/sub/2.tif",
        "A/3.png",
        "A/.4.png",
        "A/1.png.aux.xml",
        "B/1.tif",
        "B/sub/2.tif",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "B/5.jpg").touch()
    found = pairs_of_folders(tmp_path / "A", tmp_path / "B")
    assert [(pair.id, Path(pair.before).name, Path(pair.after).name) for pair in found.pairs] == [
        ("1", "1.png", "1.tif"),
        ("sub/2", "2.tif", "2.tif"),
    ]
    assert [[Path(name).name for name in names] for names in found.unmatched] == [["3.png"], ["5.jpg"]]
    (tmp_path / "A/1.tif").touch()
    with pytest.raises(InputError, match="have the same name"):
        pairs_of_folders(tmp_path / "A", tmp_path / "B")
    with pytest.raises(InputError, match="no image has the same name in both"):
        pairs_of_folders(tmp_path / "A/sub", tmp_path / "B")
    with pytest.raises(InputError, match="is not a folder"):
        pairs_of_folders(tmp_path / "C", tmp_path / "B")
