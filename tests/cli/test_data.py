"""`deltavlm data`: what is printed where, and the exit codes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import ROOT, Run, one_line

MINI = ROOT / "sample_data" / "changechat_mini"


def test_check_of_a_whole_set(run: Run) -> None:
    result = run("data", "check", MINI)
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["synthetic_test.json", "40", "records", "caption", "40"]
    assert lines[-1] == f"80 pictures named in {MINI / 'images'}: 0 missing, 0 unreadable, 0 of another size"
    assert result.stderr == f"{MINI}: nothing is amiss\n"
    told = json.loads(run("data", "check", MINI, "--json", "-q", "--full").stdout)
    assert told["files"][0] == {
        "name": "synthetic_test.json",
        "records": 40,
        "expected": None,
        "tasks": {"caption": 40},
    }
    assert (told["faults"], told["notes"], told["pictures"]["named"]) == ([], [], 80)


def test_check_ends_with_3_and_names_what_is_amiss(run: Run) -> None:
    Path("set").mkdir()
    shutil.copy(MINI / "synthetic_test_count.json", "set/changechat_105k_test_count.json")
    result = run("data", "check", "set")
    assert result.exit_code == 3
    assert result.stdout.splitlines()[0] == "changechat_105k_test_count.json  40 of 1,929 records  count 40"
    *talk, error = result.stderr.splitlines()
    assert error == "Error: set: amiss are 8 files, 80 images; --json names all"
    assert any("and 77 more" in line for line in talk)
    assert any("LEVIR-CC-Dataset" in line for line in talk)
    told = json.loads(run("data", "check", "set", "--json").stdout)
    assert len(told["faults"]) == 88
    result = run("data", "check", "set", "-q")
    assert result.exit_code == 3
    one_line(result)


@pytest.mark.parametrize(
    ("args", "what"),
    [
        (["nosuch"], "is not a folder"),
        ([ROOT / "docs"], "no file SET_SPLIT.json"),
        ([MINI, "--size", "0"], "--size"),
        ([], "Missing argument 'DIR'"),
    ],
)
def test_check_of_bad_input_is_one_line(run: Run, args: list[object], what: str) -> None:
    result = run("data", "check", *args)
    assert result.exit_code == 2
    assert what in one_line(result)
