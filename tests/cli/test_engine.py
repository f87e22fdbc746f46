"""Flags of `--engine`, as far as no cluster is needed for them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tests.cli.conftest import Run, one_line
from tests.conftest import Scene


def test_without_ray_the_extra_is_named(run: Run, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "ray" else find(name))
    result = run("analyze", *scene.args, "--engine", "ray")
    assert result.exit_code == 2
    assert 'pip install "deltavlm[ray]"' in one_line(result)


@pytest.mark.parametrize("flag", [("--ray-address", "auto"), ("--actors", "2"), ("--actor-cpus", "2")])
def test_flags_of_ray_without_ray(run: Run, scene: Scene, flag: tuple[str, str]) -> None:
    result = run("analyze", *scene.args, *flag)
    assert result.exit_code == 2
    assert "--engine ray" in one_line(result)


def test_no_cluster_at_the_address(run: Run, scene: Scene) -> None:
    pytest.importorskip("ray")
    result = run("analyze", *scene.args, "--engine", "ray", "--ray-address", "nosuch:1")
    assert result.exit_code == 2
    assert "--ray-address nosuch:1" in result.stderr.splitlines()[-1]
    assert not list(Path.cwd().iterdir())
