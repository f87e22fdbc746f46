"""Depth of geometries in well-known binary, in which collections may hold collections without end."""

from __future__ import annotations

from struct import error as StructError
from struct import unpack_from

__all__ = ["MAX_DEPTH", "check_depth"]

MAX_DEPTH = 32  # as GDAL; GEOS, which recurses, overflows the stack at some 10,000
POINT, LINES, POLYGONS = 1, (2, 8, 13), (3, 17)  # others are collections
HAS_Z, HAS_M, HAS_SRID = 0x80000000, 0x40000000, 0x20000000  # flags of extended WKB


def check_depth(wkb: bytes) -> None:
    """Check the depth of a geometry before GEOS reads it; damaged ones are left to GEOS.

    Raises: ValueError for more than MAX_DEPTH collections in each other.
    """
    at, left = 0, [1]  # geometries still to come, of each collection that is open
    try:
        while left:
            if left[-1] == 0:
                left.pop()
                continue
            left[-1] -= 1
            order = "<" if wkb[at] else ">"
            (code,) = unpack_from(f"{order}I", wkb, at + 1)
            kind, dimensions = (code & 0xFFFF) % 1000, (code & 0xFFFF) // 1000
            size = 8 * (2 + (bool(code & HAS_Z) + bool(code & HAS_M) or (0, 1, 1, 2)[dimensions]))
            at += 9 if code & HAS_SRID else 5
            if kind == POINT:
                at += size
                continue
            (count,) = unpack_from(f"{order}I", wkb, at)
            at += 4
            if kind in LINES:
                at += count * size
            elif kind in POLYGONS:
                for _ in range(count):
                    (points,) = unpack_from(f"{order}I", wkb, at)
                    at += 4 + points * size
            else:
                left.append(count)
                if len(left) > MAX_DEPTH:
                    raise ValueError(f"more than {MAX_DEPTH} geometry collections in each other")
    except (StructError, IndexError):  # it ends too early, or is of no known dimension
        return
