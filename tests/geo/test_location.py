"""Locations: one spelling, what is not opened, and what is opened as a local file."""

from __future__ import annotations

import os
import socket
import zipfile
from pathlib import Path

import pytest

from deltavlm.errors import RasterError
from deltavlm.geo.location import check_exists, is_local, is_remote, normalize_location
from deltavlm.geo.source import open_source
from tests.geo.reading import opened
from tests.rasters import noise, write_raster


@pytest.mark.parametrize(
    "spelling", ["{}", "file://{}", "FILE://{}", "File://localhost{}", "file:{}", "fIlE:{}"]
)
def test_every_spelling_of_a_path_is_that_path(tmp_path: Path, spelling: str) -> None:
    path = write_raster(tmp_path / "an image.tif", noise(1))
    for name in (str(path), str(path).replace(" ", "%20") if ":" in spelling else str(path)):
        assert normalize_location(spelling.format(name)) == str(path)
    with open_source(spelling.format(path)) as source:
        assert source.location == str(path)


def test_a_file_of_the_encoded_name_is_not_decoded(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a%20b.tif", noise(1))
    assert normalize_location(f"file://{path}") == str(path)


@pytest.mark.parametrize(
    ("location", "normal"),
    [
        ("HTTPS://Example.org/A.tif?Sig=B", "https://Example.org/A.tif?Sig=B"),
        ("S3://Bucket/A.tif", "s3://Bucket/A.tif"),
        ("ZIP+HTTPS://h/a.zip!A.tif", "zip+https://h/a.zip!A.tif"),
        ("/vsizip//vsicurl/https://h/a.zip/a.tif", "/vsizip//vsicurl/https://h/a.zip/a.tif"),
        ("/vsiswift/c/a.tif", "/vsiswift/c/a.tif"),
        ("/vsis3_streaming/b/a.tif", "/vsis3_streaming/b/a.tif"),
        (
            "/vsicurl?max_retry=1&url=https%3A%2F%2Fh%2Fa.tif",
            "/vsicurl?max_retry=1&url=https%3A%2F%2Fh%2Fa.tif",
        ),
    ],
)
def test_remote_locations(location: str, normal: str) -> None:
    assert normalize_location(location) == normal
    assert is_remote(location)
    assert not is_local(location)
    check_exists(location)


@pytest.mark.parametrize(
    "location",
    [
        *("GTIFF_RAW:{}", "GTIFF_DIR:1:{}", "gtiff_dir:1:{}", "JPEG_SUBFILE:0,9,{}", "MEM:::DATAPOINTER=1"),
        *("vrt://{}", "VRT://{}", "derived_subdataset:LOGAMPLITUDE:{}", "NETCDF:{}:band", "jpip://h/a.jp2"),
        *(
            "/vsicached?file={}",
            "/vsisubfile/0_9,{}",
            "/vsisparse/{}",
            "/vsicrypt/key=a,file={}",
            "/vsistdin/",
        ),
        *("/vsizip/vsisparse/{}", "/vsizip//vsisubfile/0,{}", "/vsizip/{{/vsicrypt/key=a,file={}}}/a.tif"),
        *("/vsicurl/file://{}", "/vsicurl/{}", "/vsicurl?url=file%3A%2F%2F{}", "/vsigzip//vsicached?file={}"),
        *("zip+vrt://{}", "<VRTDataset>http://h/a.tif</VRTDataset>", "/VSICURL/https://h/a.tif"),
    ],
)
def test_what_gdal_would_read_in_its_own_way(tmp_path: Path, location: str) -> None:
    """GDAL's other ways to a file, by which what lies beside it, or in it, is not looked at."""
    path = write_raster(tmp_path / "image.tif", noise(1))
    with pytest.raises(RasterError, match=r"; (give a path, a URL|check the name)") as refused:
        opened(location.format(path), path).__enter__()
    assert "\n" not in str(refused.value)


def test_a_local_name_is_never_a_prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """GDAL would take these names for a page of another file, or for a member of an archive."""
    monkeypatch.chdir(tmp_path)
    for name in ("GTIFF_DIR:1:image.tif", "zip:image.tif", "a!b.tif", "a?b.tif", "a#b.tif"):
        path = write_raster(tmp_path / name, noise(1))
        for location in (name, str(path)):
            with open_source(location) as source:
                assert source.dataset.width == 160


def test_pipes_devices_and_sockets_are_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = write_raster(tmp_path / "image.tif", noise(1))
    pipe = tmp_path / "pipe.tif"
    os.mkfifo(pipe)
    (tmp_path / "link.tif").symlink_to(pipe)
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.tif")
        for location, kind in (
            (str(pipe), "a pipe"),
            (f"file://{pipe}", "a pipe"),
            ("link.tif", "a pipe"),
            (f"/vsizip/{pipe}/a.tif", "a pipe"),
            (f"/vsizip/{{{pipe}}}/a.tif", "a pipe"),
            (f"/vsigzip/{pipe}", "a pipe"),
            (f"zip://{pipe}!a.tif", "a pipe"),
            ("/dev/zero", "a device"),
            ("socket.tif", "a socket"),
        ):
            with pytest.raises(RasterError, match=f"is {kind}, which is not opened; give a file"):
                opened(image, location).__enter__()


@pytest.mark.parametrize("ending", [".msk", ".ovr", ".aux.xml", ".aux"])
def test_pipes_beside_an_image_are_not_opened(tmp_path: Path, ending: str) -> None:
    image = write_raster(tmp_path / "image.tif", noise(1))
    os.mkfifo(f"{image}{ending}" if ending != ".aux" else image.with_suffix(".aux"))
    with pytest.raises(RasterError, match="is a pipe, and would be read as a part of"):
        opened(image, image).__enter__()


@pytest.mark.parametrize(
    "location", ["/vsizip/{}/image.tif", "zip://{}!image.tif", "/vsizip/{{{}}}/image.tif"]
)
def test_files_beside_an_image_in_an_archive_are_not_read(
    tmp_path: Path, location: str, caplog: pytest.LogCaptureFixture
) -> None:
    image = write_raster(tmp_path / "image.tif", noise(1))
    mask = write_raster(tmp_path / "mask.tif", noise(1)[:1] * 0)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(image, "image.tif")
        archive.write(mask, "image.tif.msk")
    with opened(image, location.format(tmp_path / "a.zip")) as reader:
        (chip, *_) = reader.chips(64)
        assert reader.read(chip).valid.all()
    (message,) = caplog.messages
    assert message.endswith("in the archive are not read (image.tif.msk); unpack the archive if they matter")
