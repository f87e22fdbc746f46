"""What goes on the map: features with properties, and the layers that they belong to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from shapely.geometry.base import BaseGeometry

__all__ = ["Feature", "Field", "FieldType", "Layer"]

FieldType = Literal["str", "int", "float", "bool", "list", "json"]
"""Every type may be null. "list" is a list of strings; "json" is any JSON value."""


@dataclass(frozen=True, slots=True)
class Field:
    """A column; `description` is for those who open the file and wonder, `title` heads it in a GIS."""

    name: str
    type: FieldType
    description: str = ""
    title: str = ""  # where it is more than the name with spaces

    @property
    def alias(self) -> str:
        """What a GIS calls the column.

        >>> Field("changed_score", "float").alias
        'Changed score'
        """
        return self.title or self.name.replace("_", " ").capitalize()

    def cast(self, value: object) -> Any:
        """The value in the field's Python type; None stays, and a float that is not finite becomes None."""
        if value is None or self.type == "json":
            return value
        if self.type == "list":
            return [str(item) for item in value]  # type: ignore[attr-defined]
        cast = {"str": str, "int": int, "float": float, "bool": bool}[self.type](value)
        return cast if self.type != "float" or math.isfinite(cast) else None


@dataclass(frozen=True, slots=True)
class Layer:
    """A name and its columns, in order; its geometries are polygons."""

    name: str
    fields: tuple[Field, ...]


@dataclass(frozen=True, slots=True)
class Feature:
    """A polygon in the CRS of the raster, and the values of a layer's fields; those left out are null, and so
    is an empty polygon."""

    geometry: BaseGeometry
    properties: Mapping[str, object] = field(default_factory=dict)

    def row(self, layer: Layer) -> dict[str, Any]:
        """The values of the layer's fields in its order.

        Raises:
            ValueError: a property that the layer does not have.
        """
        unknown = set(self.properties) - {column.name for column in layer.fields}
        if unknown:
            raise ValueError(f"layer {layer.name!r} has no fields {sorted(unknown)}")
        return {column.name: column.cast(self.properties.get(column.name)) for column in layer.fields}
