"""Identity of input files: what they are known by, locally, in archives and on servers."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import rasterio

from deltavlm.geo.identity import (
    address_digest,
    content_identity,
    current_identity,
    identify,
    is_same,
    stable_address,
)
from deltavlm.geo.pair import RasterPair, ReadOptions, open_pair
from tests.object_server import Objects, served
from tests.rasters import noise, write_raster

V4 = "X-Amz-Algorithm=A&X-Amz-Credential={0}%2Fs3&X-Amz-Date={0}&X-Amz-Expires=9&X-Amz-Signature={0}"
SIGNED = {
    "aws": "https://host/x.tif?scene=1&" + V4,
    "google": "https://host/x.tif?" + V4.replace("Amz", "Goog") + "&scene=1",
    "cloudfront": "https://host/x.tif?Expires={0}&Signature={0}~_&Key-Pair-Id=K{0}&scene=1",
    "azure": "https://host/x.tif?sv=2022&st={0}&se={0}&sr=b&sp=r&sig={0}%3D",
    "in an archive": "/vsizip/{{/vsicurl/https://host/a.zip?sv=1&sig={0}}}/x.tif",
    "encoded": "/vsicurl?url=https%3A%2F%2Fhost%2Fx.tif%3Fsv%3D1%26sig%3D{0}",
}


@pytest.fixture
def objects(monkeypatch: pytest.MonkeyPatch) -> Iterator[Objects]:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    monkeypatch.setenv("GDAL_HTTP_MAX_RETRY", "0")
    with served() as objects:
        yield objects


@pytest.mark.parametrize("url", SIGNED.values(), ids=SIGNED.keys())
def test_a_renewed_signature_is_no_other_address(url: str) -> None:
    address = stable_address(url.format("20260101"))
    assert address == stable_address(url.format("20270202"))
    assert address != stable_address(url.format("20260101").replace("x.tif", "y.tif"))
    assert "2026" not in address


@pytest.mark.parametrize(
    "url",
    [
        "https://host/cog?scene={0}",
        "https://{0}:pw@host/x.tif",
        "https://me:{0}@host/x.tif",
        "https://host/x.tif#{0}",
        "https://host/x.tif?sp={0}",  # a name of Azure's in an address that is not signed
        "https://host/x.tif?sig={0}",
        "https://host/x.tif?sv=1&sig=2&scene={0}",
        "/vsizip/{{/vsicurl/https://host/a.zip?sv=1&sig=2}}/{0}.tif",
        "zip+https://host/a.zip?sv=1&sig=2!{0}.tif",
        "/vsicurl?url=https%3A%2F%2Fhost%2Fcog%3Fscene%3D{0}",
        "/vsicurl?header.Key={0}&url=https%3A%2F%2Fhost%2Fx.tif",
    ],
)
def test_all_else_is_a_part_of_the_address(url: str) -> None:
    assert stable_address(url.format("a")) != stable_address(url.format("b"))


def test_digests_need_their_key() -> None:
    digest = address_digest(b"key", "https://host/cog?scene=1", "b")
    assert digest == address_digest(b"key", "https://host/cog?scene=1&sv=1&sig=2", "b")
    assert digest != address_digest(b"another", "https://host/cog?scene=1", "b")
    assert digest != address_digest(b"key", "https://host/cog?scene=2", "b")
    assert address_digest(b"key", "ab", "c") != address_digest(b"key", "a", "bc")


def test_a_local_file_is_known_by_size_and_time(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    path.write_bytes(b"one")
    first = identify(str(path))
    assert first is not None
    assert first == identify(f"file://{path}")
    assert first.keys() == {"bytes", "changed_ns", "inode"}
    os.utime(path, ns=(1, 1))
    assert not is_same(first, identify(str(path)))
    os.utime(path, ns=(1, int(first["changed_ns"])))
    assert is_same(first, identify(str(path)))
    (tmp_path / "y.tif").write_bytes(b"two")
    os.utime(tmp_path / "y.tif", ns=(1, int(first["changed_ns"])))
    (tmp_path / "y.tif").rename(path)
    replaced = identify(str(path))
    assert not is_same(first, replaced)
    assert is_same(first, {key: value for key, value in (replaced or {}).items() if key != "inode"})
    assert identify(str(tmp_path / "missing.tif")) is None
    assert identify(str(tmp_path)) is None


def test_a_file_in_an_archive_is_known_by_the_archive(tmp_path: Path) -> None:
    image = write_raster(tmp_path / "x.tif", noise(3, 8, 8))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(image, "x.tif")
    (tmp_path / "odd.name").write_bytes((tmp_path / "a.zip").read_bytes())
    for name in ("a.zip", "odd.name"):
        expected = identify(str(tmp_path / name))
        assert expected is not None
        for location in (f"/vsizip/{tmp_path}/{name}/x.tif", f"/vsizip/{{{tmp_path}/{name}}}/x.tif"):
            assert identify(location) == expected
    assert identify(f"zip://{tmp_path}/a.zip!x.tif") == identify(str(tmp_path / "a.zip"))


def test_an_object_is_known_by_what_its_server_tells(objects: Objects) -> None:
    objects.contents = {"x.tif": b"one", "y.tif": b"two", "a.zip": b"archive"}
    one, two = (current_identity(f"{objects.url}/{name}") for name in ("x.tif", "y.tif"))
    assert one is not None
    assert (one["bytes"], one.keys()) == (3, {"bytes", "etag"})
    assert not is_same(one, two)
    assert current_identity(f"/vsicurl/{objects.url}/x.tif?token=1") == one
    assert current_identity(f"/vsizip/vsicurl/{objects.url}/a.zip/in/x.tif") == current_identity(
        f"{objects.url}/a.zip"
    )
    objects.headers = {"ETag": "", "Last-Modified": "Sat, 28 Nov 2026 22:00:00 GMT"}
    dated = current_identity(f"{objects.url}/x.tif")
    assert dated == {"bytes": 3, "modified": "Sat, 28 Nov 2026 22:00:00 GMT"}
    assert is_same(one, dated)
    assert not is_same(dated, {**dated, "modified": "Sat, 28 Nov 2026 23:00:00 GMT"})
    assert is_same({"etag": "a", "modified": "1"}, {"etag": "a", "modified": "2"})


def test_a_server_that_fails_tells_nothing(objects: Objects) -> None:
    objects.contents = {"x.tif": b"one"}
    assert current_identity(f"{objects.url}/missing.tif") is None
    objects.status = 503
    assert current_identity(f"{objects.url}/x.tif") is None
    assert current_identity("http://127.0.0.1:1/x.tif") is None
    assert is_same(None, {"bytes": 3})


def test_a_virtual_raster_is_known_by_its_sources_too(tmp_path: Path) -> None:
    for name in ("before", "after", "source"):
        write_raster(tmp_path / f"{name}.tif", noise(3, 8, 8))
    vrt = tmp_path / "x.vrt"
    bands = "".join(
        f'<VRTRasterBand dataType="Byte" band="{band}"><SimpleSource><SourceFilename relativeToVRT="1">'
        f"source.tif</SourceFilename><SourceBand>{band}</SourceBand></SimpleSource></VRTRasterBand>"
        for band in (1, 2, 3)
    )
    with rasterio.open(tmp_path / "source.tif") as source:
        transform = ", ".join(map(str, source.transform.to_gdal()))
        srs = source.crs.to_string()
    vrt.write_text(
        f'<VRTDataset rasterXSize="8" rasterYSize="8"><SRS>{srs}</SRS>'
        f"<GeoTransform>{transform}</GeoTransform>{bands}</VRTDataset>"
    )
    pair = RasterPair(str(tmp_path / "before.tif"), str(vrt))
    with open_pair(pair, ReadOptions(allow_vrt=True)) as reader:
        assert {Path(file).name for file in reader.files[1]} == {"x.vrt", "source.tif"}
        assert reader.changed_file() is None
        (tmp_path / "source.tif.aux.xml").write_text("<PAMDataset/>")  # QGIS, when it shows the image
        assert reader.changed_file() is None
        os.utime(tmp_path / "source.tif", (1, 1))
        assert reader.changed_file() == str(tmp_path / "source.tif")


def test_a_small_file_is_known_by_its_content(tmp_path: Path) -> None:
    path = tmp_path / "aoi.geojson"
    path.write_text("one")
    first = content_identity(path)
    os.utime(path, (1, 1))
    assert content_identity(path) == first
    path.write_text("two")
    assert content_identity(path) != first
    assert content_identity(tmp_path / "missing") is None
    database = b"SQLite format 3\0" + bytes(84)
    (tmp_path / "a.gpkg").write_bytes(database + b"rows")
    (tmp_path / "b.gpkg").write_bytes(database[:24] + b"\1" + database[25:] + b"rows")  # shown in QGIS
    (tmp_path / "c.gpkg").write_bytes(database + b"ROWS")
    one, two, three = (content_identity(tmp_path / f"{name}.gpkg") for name in "abc")
    assert one == two != three
