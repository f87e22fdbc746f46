"""Vector features with typed properties, and the layers they belong to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from shapely.geometry.base import BaseGeometry

__all__ = ["Feature", "Field", "FieldType", "Layer"]

FieldType = Literal["str", "int", "float", "bool", "list", "json"]
"""Types of columns, all nullable. "list" is a list of strings, "json" any JSON value."""


@dataclass(frozen=True, slots=True)
class Field:
    """Column of a layer. `title` is its heading in a GIS, `description` its meaning, written to the file.

    Columns that a run fills in are read-only in a form; those left to people are `editable`.
    """

    name: str
    type: FieldType
    description: str = ""
    title: str = ""  # where it differs from the name with spaces
    choices: tuple[str, ...] = ()  # values that a form offers; none: free text
    editable: bool = False

    @property
    def alias(self) -> str:
        """Heading of the column in a GIS.

        >>> Field("changed_score", "float").alias
        'Changed score'
        """
        return self.title or self.name.replace("_", " ").capitalize()

    def cast(self, value: object) -> Any:
        """Value in the Python type of the field; None stays, and a float that is not finite becomes None."""
        if value is None or self.type == "json":
            return value
        if self.type == "list":
            return [str(item) for item in value]  # type: ignore[attr-defined]
        cast = {"str": str, "int": int, "float": float, "bool": bool}[self.type](value)
        return cast if self.type != "float" or math.isfinite(cast) else None


@dataclass(frozen=True, slots=True)
class Layer:
    """Named table of polygons with its columns, in order."""

    name: str
    fields: tuple[Field, ...]


@dataclass(frozen=True, slots=True)
class Feature:
    """Polygon in the CRS of the raster, and values of a layer's fields. Missing values and an empty polygon
    are written as null."""

    geometry: BaseGeometry
    properties: Mapping[str, object] = field(default_factory=dict)

    def row(self, layer: Layer) -> dict[str, Any]:
        """Values of the layer's fields, in its order.

        Raises:
            ValueError: a property that the layer does not have.
        """
        unknown = set(self.properties) - {column.name for column in layer.fields}
        if unknown:
            raise ValueError(f"layer {layer.name!r} has no fields {sorted(unknown)}")
        return {column.name: column.cast(self.properties.get(column.name)) for column in layer.fields}
