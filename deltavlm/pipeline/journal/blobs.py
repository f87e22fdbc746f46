"""Blobs, such as the mask of a chip: bytes in a file beside the journal, at addresses in its lines."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

__all__ = ["BLOB_KEYS", "Blob", "BlobFile", "blob_path", "check_address"]

BLOB_KEYS = ("mask", "valid")  # keys of a chip's line that point to blobs

BlobAddress = tuple[int, int, int]  # offset, size in bytes, CRC-32


def blob_path(journal: Path) -> Path:
    """`out.gpkg.journal.jsonl` -> `out.gpkg.journal.masks`."""
    return journal.with_suffix(".masks")


@dataclass(eq=False, slots=True)
class Blob:
    """Bytes of a chip: in memory until they are written, then their address in the blob file.

    Chips with identical pixels share one.
    """

    data: bytes | None = None
    address: BlobAddress | None = None


@dataclass
class BlobFile:
    """Open file of blobs, appended to and read at random."""

    path: Path
    stream: IO[bytes] = field(repr=False)

    def write(self, blobs: Iterable[Blob]) -> None:
        """Append the blobs that are still in memory. Raises: OSError."""
        offset = self.stream.seek(0, os.SEEK_END)
        for blob in blobs:
            if blob.data is not None and blob.address is None:
                self.stream.write(blob.data)
                blob.address = (offset, len(blob.data), zlib.crc32(blob.data))
                offset += len(blob.data)
                blob.data = None
        self.stream.flush()

    def read(self, blob: Blob) -> bytes:
        if blob.data is not None:
            return blob.data
        assert blob.address is not None
        self.stream.seek(blob.address[0])
        return self.stream.read(blob.address[1])

    def is_intact(self, line: Mapping[str, Any]) -> bool:
        """True if every blob that a line points to is there, with its size and checksum.

        Raises: ValueError for an address that is none.
        """
        end = self.stream.seek(0, os.SEEK_END)
        for key in BLOB_KEYS:
            if key in line:
                offset, size, crc = check_address(line[key], key)
                if offset + size > end:
                    return False
                if zlib.crc32(self.read(Blob(address=(offset, size, crc)))) != crc:
                    return False
        return True


def check_address(value: Any, key: str) -> BlobAddress:
    """Address of a blob in a line. Raises: ValueError."""
    numbers = value if isinstance(value, list) else []
    if len(numbers) != 3 or not all(type(number) is int and 0 <= number < 2**62 for number in numbers):
        raise ValueError(f"{key!r} is not where a mask is kept")
    return numbers[0], numbers[1], numbers[2]
