"""Untrusted rasters and areas of interest open no other file and contact no server.

Nearly all of these make plain GDAL (3.10 in rasterio, 3.12 in pyogrio) open something else, some despite a
list of allowed drivers.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import geopandas
import pytest
import shapely

from deltavlm.errors import RasterError
from tests.cli.conftest import Run
from tests.conftest import Scene
from tests.faults.crafted import raw_vrt, tagged, vrt_of, wms
from tests.geo.reading import mosaic, opened, read_all
from tests.rasters import noise, write_raster

SECRET = b"the content of a file that is not an image" * 99


@pytest.fixture
def listener(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A server that must not be contacted: no connection is pending at the end of the test."""
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    monkeypatch.setenv("GDAL_HTTP_TIMEOUT", "1")
    monkeypatch.setenv("GDAL_HTTP_MAX_RETRY", "0")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)
        yield server
        with pytest.raises(TimeoutError):
            server.accept()


@pytest.fixture
def url(listener: socket.socket) -> str:
    return f"http://127.0.0.1:{listener.getsockname()[1]}/x"


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_bytes(SECRET)
    return path


def assert_refused(path: Path, message: str, **options: object) -> None:
    for pair in (
        (path, path),
        (f"file://{path}", path),
        (write_raster(path.with_name("valid.tif"), noise(1)), path),
    ):
        with pytest.raises(RasterError, match=message) as caught:
            opened(*pair, **options).__enter__()
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["evil.tif", "evil.vrt", "evil.png"])
def test_a_vrt_is_refused_under_any_name(tmp_path: Path, secret: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text(raw_vrt(str(secret)))
    assert_refused(path, r"is a VRT, .*`allow_vrt=True`, or make a GeoTIFF of it \(gdal_translate\)")


def test_a_vrt_inside_another_file(tmp_path: Path, secret: Path) -> None:
    """GDAL finds it after other bytes, such as a comment at the start of a JPEG."""
    path = tmp_path / "evil.jpg"
    path.write_bytes(b"\xff\xd8\xff\xfe\x10\x10" + raw_vrt(str(secret)).encode())
    assert_refused(path, "is a VRT")


def test_service_descriptions_are_refused(tmp_path: Path, url: str) -> None:
    path = tmp_path / "evil.tif"
    for text in (wms(url), f'<?xml version="1.0"?>{wms(url)}', f"<WMS_Capabilities>{url}</WMS_Capabilities>"):
        path.write_text(text)
        assert_refused(path, "is XML and no image")
    path.write_text(vrt_of(f"/vsicurl/{url}", 9, 9))
    assert_refused(path, "is a VRT")


@pytest.mark.parametrize(
    "location", ["vrt://{}", "DERIVED_SUBDATASET:LOGAMPLITUDE:{}", "{vrt}", "MEM:::DATAPOINTER=1"]
)
def test_locations_that_describe_a_dataset(tmp_path: Path, secret: Path, location: str) -> None:
    before = write_raster(tmp_path / "before.tif", noise(1))
    with pytest.raises(RasterError, match=r"not read;|prefix of GDAL|no such file|cannot be looked at"):
        opened(location.format(before, vrt=raw_vrt(str(secret))), before).__enter__()


@pytest.mark.parametrize("ending", [".msk", ".MSK", ".ovr", ".OVR"])
def test_sidecar_masks_and_overviews(tmp_path: Path, secret: Path, ending: str) -> None:
    """GDAL opens them with any driver, even when the image itself may only be a GeoTIFF."""
    path = write_raster(tmp_path / "image.tif", noise(1, 64, 64), tiled=True)
    sidecar = Path(f"{path}{ending}")
    sidecar.write_text(raw_vrt(str(secret), 64))
    assert_refused(path, "is no TIFF, and would be read as a part of")
    tagged(sidecar, "OVERVIEWS", OVERVIEW_FILE=raw_vrt(str(secret)))
    assert_refused(path, r"its tags \(OVERVIEWS\) name another file")


def test_an_erdas_sidecar(tmp_path: Path, secret: Path) -> None:
    """GDAL opens a `.aux` with these first bytes in any format."""
    path = write_raster(tmp_path / "image.tif", noise(1, 64, 64), tiled=True)
    path.with_suffix(".aux").write_text("\\documentclass{article}, which LaTeX has written")
    with opened(path, path) as reader:
        assert len(reader.chips(64)) == 1
    path.with_suffix(".aux").write_text("EHFA_HEADER_TAG" + raw_vrt(str(secret), 64))
    assert_refused(path, r"image\.aux: is no Erdas Imagine file, and would be read as a part of")


GRID = "+proj=utm +zone=31 +ellps=bessel +nadgrids={} +units=m"


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("image.tif", {"GEOTIFF_KEYS_FLAVOR": "ESRI_PE"}),
        ("big.tif", {"GEOTIFF_KEYS_FLAVOR": "ESRI_PE", "BIGTIFF": "YES", "ENDIANNESS": "BIG"}),
        ("image.png", {"driver": "PNG"}),
        ("image.img", {"driver": "HFA"}),
        ("image.dat", {"driver": "ENVI"}),
        ("image.jp2", {"driver": "JP2OpenJPEG"}),
    ],
)
def test_a_grid_file_named_by_the_crs(tmp_path: Path, name: str, options: dict[str, str]) -> None:
    """PROJ would open it, and hang on a pipe, as soon as GDAL reads the CRS."""
    grid = tmp_path / "grid.gsb"
    path = write_raster(tmp_path / name, noise(1, 64, 64), crs=GRID.format(grid), **options)
    os.mkfifo(grid)
    with pytest.raises(RasterError, match="its CRS names a grid file"):
        opened(path, path).__enter__()


def test_a_grid_file_named_in_a_vrt(tmp_path: Path) -> None:
    image = write_raster(tmp_path / "image.tif", noise(1))
    path = tmp_path / "mosaic.vrt"
    path.write_text(vrt_of(str(image), 160, 96).replace("EPSG:32631", GRID.format("none.gsb")))
    assert_refused(path, r"its CRS names a grid file \('none\.gsb'\)", allow_vrt=True)


def test_web_mercator_names_no_file(tmp_path: Path) -> None:
    """Its definitions have `+nadgrids=@null`."""
    path = write_raster(tmp_path / "image.png", noise(1, 64, 64), crs="EPSG:3857", driver="PNG")
    with opened(path, path) as reader:
        assert reader.geobox.crs.to_epsg() == 3857


@pytest.mark.parametrize(
    ("domain", "keys"),
    [
        ("OVERVIEWS", ["OVERVIEW_FILE"]),
        ("Overviews", ["Overview_File"]),
        ("GEOLOCATION", ["X_DATASET", "Y_DATASET"]),
    ],
)
def test_tags_that_name_other_files(tmp_path: Path, url: str, domain: str, keys: list[str]) -> None:
    """A GeoTIFF alone: GDAL would read overviews or geolocation arrays from the files named in its tags."""
    path = tagged(tmp_path / "image.tif", domain, **dict.fromkeys(keys, vrt_of(f"/vsicurl/{url}", 9, 9)))
    assert_refused(path, "name another file to read", scale="pct:2,98")


def test_a_vrt_of_images_is_read_if_allowed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pixels = noise(1)
    image = write_raster(tmp_path / "image.tif", pixels)
    for target, relative in ((str(image), False), ("image.tif", True)):
        path = tmp_path / "mosaic.vrt"
        path.write_text(vrt_of(target, 160, 96, relative=relative))
        caplog.clear()
        with opened(path, image, allow_vrt=True) as reader:
            read_pixels = mosaic(reader, read_all(reader))
        assert (read_pixels[0] == pixels).all()
        assert caplog.messages == [f"{path}: a VRT, which reads {image}"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{raw}", "with a part 'VRTRawRasterBand'"),
        ("{file}", "a source of this VRT cannot be read"),
        ("{nested}", r"nested\.tif: is a VRT"),
        ("{http}", "with a source 'http://"),
        ("{ok}<!-- -->", "with comments or declarations"),
        ("{missing}", "no such file"),
        ("{ok}{ok}", "is no valid VRT"),
        ("<VRTDataset", "is no valid VRT"),
        ('<VRTDataset rasterXSize="9" rasterYSize="9"><Group name="/"/></VRTDataset>', "with a part 'group'"),
    ],
)  # fmt: skip
def test_a_vrt_is_refused_for_its_sources(
    tmp_path: Path, secret: Path, url: str, text: str, message: str
) -> None:
    image = write_raster(tmp_path / "image.tif", noise(1))
    (tmp_path / "nested.tif").write_text(vrt_of(str(image), 160, 96))
    sources = {
        "raw": raw_vrt(str(secret)),
        "file": vrt_of(str(secret), 9, 9),
        "nested": vrt_of("nested.tif", 160, 96, relative=True),
        "http": vrt_of(url, 9, 9),
        "missing": vrt_of("nosuch.tif", 9, 9, relative=True),
        "ok": vrt_of(str(image), 160, 96),
    }
    path = tmp_path / "mosaic.vrt"
    path.write_text(text.format(**sources))
    assert_refused(path, message, allow_vrt=True)


def test_the_option_allow_vrt(run: Run, scene: Scene, tmp_path: Path) -> None:
    vrts = []
    for image in (scene.before, scene.after):
        vrts.append(tmp_path / f"{image.stem}.vrt")
        vrts[-1].write_text(vrt_of(str(image), 160, 96))
    for command in ("analyze", "grid"):
        result = run(command, *vrts, "-o", f"{command}.geojson")
        assert result.exit_code == 2
        assert "--allow-vrt" in result.stderr.splitlines()[-1]
        result = run(command, *vrts, "-o", f"{command}.geojson", "--allow-vrt")
        assert result.exit_code == 0, result.stderr
        assert f"a VRT, which reads {scene.before}" in result.stderr


# --- areas of interest ------------------------------------------------------------------------------------

SQUARE = shapely.box(2.9, 44.9, 3.1, 45.2)


def write_area(name: str, path: Path, **members: object) -> Path:
    geometry = json.loads(shapely.to_geojson(SQUARE))
    path.write_text(json.dumps({"type": name, "geometry": geometry, "properties": None} | members))
    return path


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return write_raster(tmp_path / "image.tif", noise(1))


@pytest.mark.parametrize(
    "crs",
    [{"type": "link", "properties": {"href": "{}"}}, {"type": "url", "properties": {"url": "{}"}}],
)
def test_the_crs_of_an_area_is_not_fetched(
    tmp_path: Path, image: Path, url: str, crs: dict[str, object]
) -> None:
    path = write_area(
        "Feature", tmp_path / "area.geojson", crs=json.loads(json.dumps(crs).replace("{}", url))
    )
    with pytest.raises(RasterError, match=r"area\.geojson: cannot be read \(its CRS"):
        opened(image, image, aoi=path).__enter__()


def test_areas_that_refer_to_other_sources(tmp_path: Path, image: Path, url: str) -> None:
    path = tmp_path / "area.geojson"
    for text in (
        f'<OGRVRTDataSource><OGRVRTLayer name="a"><SrcDataSource>/vsicurl/{url}</SrcDataSource></OGRVRTLayer>'
        "</OGRVRTDataSource>",
        json.dumps(
            {"type": "gdal_streamed_alg", "command_line": f"gdal vector pipeline read /vsicurl/{url}"}
        ),
        f'<?xml version="1.0"?><ogr:FeatureCollection xmlns:ogr="o" schemaLocation="o {url}"/>',
        f"WFS:{url}",
    ):
        path.write_text(text)
        with pytest.raises(RasterError, match=r"area\.geojson: .*; give polygons"):
            opened(image, image, aoi=path).__enter__()


@pytest.mark.parametrize(
    "name", ["EPSG:32631", "urn:ogc:def:crs:EPSG::32631", "urn:ogc:def:crs:OGC:1.3:CRS84", None]
)
def test_areas_in_every_supported_format(tmp_path: Path, image: Path, name: str | None) -> None:
    frame = geopandas.GeoSeries([SQUARE], crs=4326)
    if name and "32631" in name:
        frame = frame.to_crs(32631)
    crs = {} if name is None else {"crs": {"type": "name", "properties": {"name": name}}}
    features = json.loads(frame.to_json())["features"]
    collection = tmp_path / "one.geojson"
    collection.write_text(json.dumps({"type": "FeatureCollection", "features": features} | crs))
    lines = tmp_path / "lines.geojsonl"
    lines.write_text("".join("\x1e" + json.dumps(features[0] | crs) + "\r\n" for _ in range(2)))
    paths = [collection, lines]
    for suffix in ("gpkg", "fgb", "shp"):
        paths.append(tmp_path / f"area.{suffix}")
        frame.to_file(paths[-1])
    for path in paths:
        with opened(image, image, aoi=path) as reader:
            assert len(reader.chips(32)) == 15
