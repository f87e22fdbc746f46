"""Convert YAML files to and from frozen dataclasses, with errors that suggest the nearest key.

Values are checked against the annotations of the dataclass: `int`, `float`, `bool`, `str`, `Path`, `Literal`,
`X | None`, `tuple[X, ...]`, `tuple[X, Y]`, `list[X]`, `dict[str, X]` and dataclasses inside dataclasses.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Iterable, Mapping
from contextlib import suppress
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from deltavlm.errors import ConfigError
from deltavlm.files import describe_read_error, read_text
from deltavlm.messages import pluralize, preview

__all__ = [
    "dump",
    "from_mapping",
    "load",
    "parse_yaml",
    "read_yaml",
    "shipped_config",
    "suggest",
    "to_mapping",
]

T = TypeVar("T")

MAX_YAML_BYTES = 2 * 2**20
MAX_VALUES = 100_000  # of a YAML file; those that ship have less than 200
_PACKAGE = Path(__file__).resolve().parent


def shipped_config(name: str, key: str | None = None) -> Path:
    """Path of `configs/<name>`, in a source checkout as well as in an installed package.

    Raises: ConfigError naming the configurations that exist, with a `key` only those that have it.
    """
    folders = [folder for folder in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if folder.is_dir()]
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    paths = [path for folder in folders for path in folder.glob("*.yaml")]
    names = sorted(path.name for path in paths if key is None or key in read_yaml(path))
    raise ConfigError(f"no shipped config {name!r}{suggest(name, names)}")


def suggest(name: object, names: Iterable[str]) -> str:
    """End of a message about an unknown name: the most similar valid name, else all of them.

    >>> suggest("devise", ["device", "limit"]), suggest("x", ["device", "limit"])
    ("; did you mean 'device'?", '; known are device, limit')
    """
    names = list(names)
    matches = get_close_matches(name, names, n=1) if isinstance(name, str) else ()
    if matches:
        return f"; did you mean {matches[0]!r}?"
    return f"; known are {', '.join(names)}" if names else ""


def load(path: Path, kind: type[T]) -> T:
    """Read a dataclass `kind` from a YAML file; missing keys keep their defaults.

    Raises: ConfigError naming file, key and value.
    """
    return from_mapping(kind, read_yaml(path), source=str(path))


def read_yaml(path: Path) -> Any:
    """Content of a YAML file.

    Raises: ConfigError if it is missing, too large, not YAML, or repeats a key.
    """
    try:
        text = read_text(path, MAX_YAML_BYTES)
    except OSError as error:
        raise ConfigError(describe_read_error(path, error)) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"cannot read {path}: not UTF-8 text") from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, source: str) -> Any:
    """Content of YAML text; `source` begins the message.

    Raises: ConfigError if it is not YAML, repeats a key, or has too many values, aliases counted in full.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"{source}{line}: not valid YAML: {reason}") from error
    except RecursionError as error:
        raise ConfigError(f"{source}: not valid YAML: nested too deeply") from error
    except ValueError as error:  # a number of too many digits, the 31st of February
        raise ConfigError(f"{source}: not valid YAML: {error}") from error


def from_mapping(kind: type[T], values: Any, source: str) -> T:
    """Build a dataclass `kind` from nested plain values; messages begin with `source`.

    Raises: ConfigError for an unknown or missing key, or a value of the wrong type.
    """
    if not dataclasses.is_dataclass(kind):
        raise ValueError(f"{kind!r} is not a dataclass")
    if values is None:
        values = {}
    if not isinstance(values, Mapping):
        raise ConfigError(f"{source}: expected keys with values, got {preview(values)}")
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init}
    for key in values:
        if key not in fields:
            raise ConfigError(f"{source}: unknown key {preview(key)}{suggest(key, fields)}")
    hints = _hints_of(kind)
    arguments = {key: _value(hints[key], value, f"{source}: {key}") for key, value in values.items()}
    for name, field in fields.items():
        has_default = field.default is not dataclasses.MISSING
        if name not in arguments and not has_default and field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{source}: {name!r} is missing")
    try:
        return kind(**arguments)
    except ValueError as error:  # a rule of the dataclass itself, from its __post_init__
        raise ConfigError(f"{source}: {error}") from error


@lru_cache(maxsize=256)  # a journal has a record for each of thousands of pairs
def _hints_of(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def to_mapping(value: Any) -> Any:
    """Convert a dataclass to nested plain values for YAML or JSON, in field order."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_mapping(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
    if isinstance(value, Mapping):
        return {str(key): to_mapping(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_mapping(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def dump(value: Any) -> str:
    """Convert a dataclass to YAML text; `load` gives an equal value."""
    return yaml.safe_dump(to_mapping(value), sort_keys=False, allow_unicode=False)


def _value(hint: Any, value: Any, source: str) -> Any:
    """Convert `value` to the type of the annotation `hint`."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin is Literal:
        # 0 == False in Python, so compare the types too
        if not any(value == choice and type(value) is type(choice) for choice in args):
            names = [str(choice) for choice in args]
            raise ConfigError(f"{source}: {preview(value)} is not a choice{suggest(value, names)}")
        return value
    if origin in (Union, types.UnionType):
        return _union(args, value, source)
    if origin in (tuple, list):
        return _sequence(origin, args, value, source)
    if origin in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{source}: expected keys with values, got {preview(value)}")
        return {str(key): _value(args[1], item, f"{source}.{key}") for key, item in value.items()}
    if dataclasses.is_dataclass(hint):
        return from_mapping(hint, value, source) if isinstance(hint, type) else value
    return _scalar(hint, value, source)


def _union(args: tuple[Any, ...], value: Any, source: str) -> Any:
    if value is None and type(None) in args:
        return None
    errors = []
    for choice in args:
        if choice is not type(None):
            try:
                return _value(choice, value, source)
            except ConfigError as error:
                errors.append(error)
    raise errors[0]


def _sequence(origin: Any, args: tuple[Any, ...], value: Any, source: str) -> Any:
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{source}: expected a list, got {preview(value)}")
    if origin is tuple and not (len(args) == 2 and args[1] is Ellipsis):
        if len(value) != len(args):
            raise ConfigError(f"{source}: expected {pluralize(len(args), 'value')}, got {len(value)}")
        hints = args
    else:
        hints = (args[0],) * len(value)
    return origin(
        _value(hint, item, f"{source}[{index}]")
        for index, (hint, item) in enumerate(zip(hints, value, strict=True))
    )


def _scalar(hint: Any, value: Any, source: str) -> Any:
    if hint is bool and isinstance(value, bool):
        return value
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if hint is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        with suppress(ValueError, OverflowError):  # YAML 1.1 reads 1e-3 as text, because it has no dot
            return float(value)
    if hint is str and isinstance(value, str):
        return value
    if hint is Path and isinstance(value, (str, Path)):
        return Path(value)
    if hint not in (bool, int, float, str, Path):
        raise ValueError(f"{source}: no rule for the annotation {hint!r}")
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}
    hint_quotes = " (put it in quotes?)" if hint is str and value is not None else ""
    raise ConfigError(f"{source}: expected {names[hint]}, got {preview(value)}{hint_quotes}")


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a repeated key, where PyYAML silently keeps the last, and aliases that multiply
    into more than MAX_VALUES values (or contain themselves): a few lines could stand for billions."""

    def construct_document(self, node: yaml.Node) -> Any:
        self._count_values(node, {})
        return super().construct_document(node)

    def _count_values(self, node: yaml.Node, counts: dict[yaml.Node, int]) -> int:
        """Number of values under a node, each alias counted in full; `counts` has those of earlier nodes."""
        if node not in counts:
            counts[node] = MAX_VALUES  # until it is known: a node inside itself has no end
            parts = node.value if isinstance(node.value, list) else []
            children = [child for part in parts for child in (part if isinstance(part, tuple) else (part,))]
            counts[node] = 1 + sum(self._count_values(child, counts) for child in children)
        if counts[node] > MAX_VALUES:
            problem = f"more than {MAX_VALUES:,} values, with those that aliases repeat"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return counts[node]

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = set()
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode):
                if key_node.value in keys and key_node.value != "<<":
                    problem = f"the key {preview(key_node.value)} is repeated"
                    raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
                keys.add(key_node.value)
        return super().construct_mapping(node, deep=deep)
