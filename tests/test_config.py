"""YAML into frozen dataclasses and back; mistakes name the file, the key and the nearest one."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltavlm.config import dump, from_mapping, load, shipped_config, to_mapping
from deltavlm.errors import ConfigError


@dataclass(frozen=True)
class Part:
    width: int = 8
    rate: float = 0.5


@dataclass(frozen=True)
class Whole:
    name: str
    part: Part = field(default_factory=Part)
    mode: Literal["fast", "slow", 0] = "fast"
    sizes: tuple[int, ...] = ()
    pair: tuple[int, str] = (1, "a")
    limit: int | None = None
    folder: Path | None = None
    weights: dict[str, float] = field(default_factory=dict)
    on: bool = False

    def __post_init__(self) -> None:
        if self.limit == 13:
            raise ValueError("limit 13 is unlucky")


LAUGHS = "\n".join(
    ["- &a0 [x, x, x, x, x, x, x, x, x, x]"]
    + [f"- &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (LAUGHS, "more than 100,000 values, with those that aliases repeat"),
        ("a: &a {k: v}\nb: &b {<<: [" + ", ".join(["*a"] * 9) + "]}", "unknown key 'a'"),
        ("&a [*a]", "more than 100,000 values"),
        ("&a {k: *a}", "more than 100,000 values"),
        ("[" * 5000, "nested too deeply"),
        (f"limit: {'9' * 5000}", "not valid YAML: Exceeds the limit"),
        (f"part: {{rate: 0x{'f' * 5000}}}", "part: rate: expected a number, got a number of 20000 bits"),
        (f"limit: [0x{'f' * 5000}]", "limit: expected a whole number, got [a number of 20000 bits]"),
        ("name: 2024-13-45", "not valid YAML: month must be in 1..12"),
        (f"limit: {'x' * 10_000}", "expected a whole number, got 'xxxx"),
        (f"{'x' * 900}: 1", "unknown key 'xxxx"),
        ("name: a\nname: " + "x" * 2**21, "larger than 2.1 MB"),
    ],
)
def test_a_small_file_of_much_is_refused_in_one_line(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "whole.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(path, Whole)
    message = str(caught.value)
    assert words in message
    assert len(message) < 300
    assert "\n" not in message


def test_aliases_within_reason_are_read(tmp_path: Path) -> None:
    path = tmp_path / "whole.yaml"
    path.write_text("name: a\npart: &p {width: 3}\nweights: {x: &w 1, y: *w}")
    assert load(path, Whole) == Whole("a", Part(3), weights={"x": 1.0, "y": 1.0})


@given(
    st.builds(
        Whole,
        name=st.text(st.characters(exclude_categories=["Cs"])),
        part=st.builds(Part, st.integers(), st.floats(allow_nan=False)),
        mode=st.sampled_from(["fast", "slow", 0]),
        sizes=st.lists(st.integers()).map(tuple),
        limit=st.none() | st.integers(min_value=14),
        folder=st.none() | st.just(Path("a/b")),
        weights=st.dictionaries(st.sampled_from(["x", "y"]), st.floats(allow_nan=False)),
        on=st.booleans(),
    )
)
def test_what_is_dumped_is_loaded(tmp_path_factory: pytest.TempPathFactory, value: Whole) -> None:
    path = tmp_path_factory.mktemp("config") / "whole.yaml"
    path.write_text(dump(value), encoding="utf-8")
    assert load(path, Whole) == value
    assert from_mapping(Whole, to_mapping(value), "here") == value


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"nane": "x"}, ["unknown key 'nane'", "'name'"]),
        ({}, ["'name' is missing"]),
        ({"name": 3}, ["name", "expected text", "3"]),
        ({"name": "x", "part": {"widht": 3}}, ["part", "'widht'", "'width'"]),
        ({"name": "x", "part": 3}, ["part", "expected keys"]),
        ({"name": "x", "part": {"width": True}}, ["part", "width", "whole number"]),
        ({"name": "x", "part": {"width": 1.5}}, ["width", "whole number"]),
        ({"name": "x", "part": {"rate": "quick"}}, ["rate", "a number", "'quick'"]),
        ({"name": "x", "mode": "fats"}, ["mode", "'fats'", "'fast'"]),
        ({"name": "x", "mode": False}, ["mode", "False"]),
        ({"name": "x", "sizes": 3}, ["sizes", "list"]),
        ({"name": "x", "sizes": [1, "b"]}, ["sizes[1]", "'b'"]),
        ({"name": "x", "pair": [1]}, ["pair", "2 values"]),
        ({"name": "x", "limit": "many"}, ["limit", "'many'"]),
        ({"name": "x", "limit": 13}, ["limit 13 is unlucky"]),
        ({"name": "x", "weights": [1]}, ["weights", "expected keys"]),
        ({"name": "x", "weights": {"a": None}}, ["weights.a", "nothing"]),
        ([1], ["expected keys"]),
    ],
)
def test_mistakes(values: Any, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        from_mapping(Whole, values, "conf.yaml")
    message = str(caught.value)
    assert message.startswith("conf.yaml")
    for word in words:
        assert word in message


def test_a_number_with_an_exponent_is_a_number(tmp_path: Path) -> None:
    """YAML 1.1 reads `1e-3` as text, because it has no dot."""
    path = tmp_path / "part.yaml"
    path.write_text("rate: 1e-3\n")
    assert load(path, Part).rate == 0.001


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("width: 1\nwidth: 2\n", ["line 2", "'width'", "repeated"]),
        ("width: [1\n", ["not valid YAML"]),
        ("width: !!python/object/apply:os.getcwd []\n", ["not valid YAML"]),
        ("\x00", ["not valid YAML"]),
    ],
)
def test_broken_yaml(tmp_path: Path, text: str, words: list[str]) -> None:
    path = tmp_path / "part.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(path, Part)
    for word in [str(path), *words]:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file; check the name"):
        load(tmp_path / "none.yaml", Part)
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load(binary, Part)


def test_an_empty_file_is_all_defaults(tmp_path: Path) -> None:
    path = tmp_path / "part.yaml"
    path.touch()
    assert load(path, Part) == Part()


def test_shipped() -> None:
    assert shipped_config("questions.yaml").is_file()
    with pytest.raises(ConfigError, match=r"did you mean 'questions\.yaml'"):
        shipped_config("question.yaml")


def test_shipped_is_found_beside_the_modules_of_an_installed_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deltavlm" / "configs").mkdir(parents=True)
    installed = tmp_path / "deltavlm" / "configs" / "questions.yaml"
    installed.touch()
    monkeypatch.setattr("deltavlm.config._PACKAGE", tmp_path / "deltavlm")
    assert shipped_config("questions.yaml") == installed
