"""Malicious input files: VRTs, service descriptions, GeoTIFF tags, TIFF headers."""

from __future__ import annotations

import struct
from pathlib import Path

import rasterio

from tests.rasters import noise, write_raster


def raw_vrt(target: str, side: int = 32, subclass: str = "VRTRawRasterBand") -> str:
    """A VRT whose pixels are the bytes of any file."""
    return f"""<VRTDataset rasterXSize="{side}" rasterYSize="{side}">
  <SRS>EPSG:32631</SRS><GeoTransform>500000, 0.5, 0, 5000000, 0, -0.5</GeoTransform>
  <VRTRasterBand dataType="Byte" band="1" subClass="{subclass}">
    <SourceFilename relativeToVRT="0">{target}</SourceFilename>
    <ImageOffset>0</ImageOffset><PixelOffset>1</PixelOffset><LineOffset>{side}</LineOffset>
  </VRTRasterBand>
</VRTDataset>"""


def vrt_of(target: str, width: int, height: int, *, relative: bool = False) -> str:
    """A VRT of one band of another raster, as gdalbuildvrt writes it."""
    return f"""<VRTDataset rasterXSize="{width}" rasterYSize="{height}">
  <SRS>EPSG:32631</SRS><GeoTransform>500000, 0.5, 0, 5000000, 0, -0.5</GeoTransform>
  <VRTRasterBand dataType="Byte" band="1">
    <SimpleSource>
      <SourceFilename relativeToVRT="{relative:d}">{target}</SourceFilename><SourceBand>1</SourceBand>
      <SrcRect xOff="0" yOff="0" xSize="{width}" ySize="{height}"/>
      <DstRect xOff="0" yOff="0" xSize="{width}" ySize="{height}"/>
    </SimpleSource>
  </VRTRasterBand>
</VRTDataset>"""


def wms(url: str) -> str:
    """A description of a web map service."""
    return f"""<GDAL_WMS><Service name="TMS"><ServerUrl>{url}/${{z}}/${{x}}/${{y}}.png</ServerUrl></Service>
  <DataWindow><UpperLeftX>0</UpperLeftX><UpperLeftY>10</UpperLeftY><LowerRightX>10</LowerRightX>
  <LowerRightY>0</LowerRightY><TileLevel>1</TileLevel></DataWindow>
  <Projection>EPSG:4326</Projection><BandsCount>3</BandsCount></GDAL_WMS>"""


def tagged(path: Path, domain: str, **tags: str) -> Path:
    """A valid GeoTIFF of 1100 px with these tags in the given metadata domain."""
    write_raster(path, noise(1, 1100, 1100), tiled=True, compress="deflate")
    with rasterio.open(path, "r+") as raster:
        raster.update_tags(ns=domain, **tags)
    return path


def bare_tiff(path: Path, width: int, height: int, rows_per_strip: int, tile: int | None = None) -> Path:
    """A TIFF of a few hundred bytes whose header declares this size: one strip, or one tile, of 16 bytes."""
    blocks = (
        [(273, 4, 8), (278, 4, rows_per_strip), (279, 4, 16)]
        if tile is None
        else [(322, 4, tile), (323, 4, tile), (324, 4, 8), (325, 4, 16)]
    )
    tags = sorted(
        [(256, 4, width), (257, 4, height), (258, 3, 8), (259, 3, 8), (262, 3, 1), (277, 3, 1), *blocks]
    )
    entries = [struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags]
    head = struct.pack("<2sHI", b"II", 42, 24) + bytes(16)
    path.write_bytes(head + struct.pack("<H", len(tags)) + b"".join(entries) + bytes(4))
    return path
