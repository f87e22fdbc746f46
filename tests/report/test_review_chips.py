"""Training set of a reviewed output."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deltavlm.errors import InputError
from deltavlm.pipeline.outputs_reader import Row
from deltavlm.report.build import open_report
from deltavlm.report.images import ImageOptions
from deltavlm.report.review_chips import export_chips, reviewed_polygons
from tests.conftest import Scene
from tests.jobs import job_into, run_job
from tests.scripted_model import ScriptedModel


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


ACCEPTED, OTHER_CLASS, REJECTED, OPEN = ({"verdict": each} for each in ("accept", "road", "reject", None))


@pytest.mark.parametrize(
    ("changed", "verdict", "changes", "expected"),
    [
        (True, None, [ACCEPTED, OTHER_CLASS, REJECTED], [ACCEPTED, OTHER_CLASS]),
        (True, "accept", [ACCEPTED], [ACCEPTED]),
        (True, "accept", [ACCEPTED, OPEN], "a polygon has no verdict"),
        (True, "accept", [], "without polygons"),
        (True, "reject", [OPEN, REJECTED], []),
        (True, "reject", [ACCEPTED], "verdicts contradict"),
        (True, None, [OPEN], "not reviewed"),
        (True, None, [], "not reviewed"),
        (False, "accept", [], []),
        (False, "reject", [], "a change was missed"),
        (False, "accept", [ACCEPTED], "verdicts contradict"),
        (False, None, [REJECTED], []),
    ],
)
def test_polygons_that_a_chip_truly_has(
    changed: bool, verdict: str | None, changes: list[Row], expected: list[Row] | str
) -> None:
    assert reviewed_polygons({"changed": changed, "verdict": verdict}, changes) == expected


def write_review(path: str, rows: list[tuple[str, str, str]]) -> Path:
    review = [{"layer": layer, "id": name, "verdict": verdict} for layer, name, verdict in rows]
    Path(path).write_text(json.dumps({"review": review}))
    return Path(path)


def exported(review: Path, folder: str) -> Counter[str]:
    return export_chips(
        open_report(Path("out.gpkg"), ImageOptions(), review=review), Path(folder), "train"
    ).left_out


def read(path: str) -> Any:
    return np.asarray(Image.open(path))


def test_images_and_masks_of_reviewed_chips(scene: Scene, bright: ScriptedModel) -> None:
    run_job(job_into("out.gpkg", scene, polygons=True, overlap_px=0), bright)
    quiet = "r00000_c00000"
    rows = [("changes", "1", "accept"), ("chips", quiet, "accept"), ("chips", "r00000_c00032", "reject")]
    left_out = exported(write_review("review.json", rows), "set")
    assert left_out == {"not reviewed": 12, "a change was missed": 1}
    names = sorted(path.name for path in Path("set/train/label").iterdir())
    assert names == [f"out_{quiet}.png", f"out_{scene.changed_chip}.png"]
    house = np.zeros((32, 32), np.uint8)
    house[8:18, 6:16] = 255  # px 70 to 80 and 40 to 50 of the pair
    np.testing.assert_array_equal(read(f"set/train/label/out_{scene.changed_chip}.png"), house)
    assert not read(f"set/train/label/out_{quiet}.png").any()
    after = read(f"set/train/B/out_{scene.changed_chip}.png")
    assert (after[house > 0] == 255).all()
    exported(write_review("other.json", [("changes", "1", "road")]), "roads")
    assert {*np.unique(read(f"roads/train/label/out_{scene.changed_chip}.png"))} == {0, 128}


def test_a_review_without_a_known_chip(scene: Scene, bright: ScriptedModel) -> None:
    run_job(job_into("out.gpkg", scene, polygons=True, overlap_px=0), bright)
    with pytest.raises(
        InputError, match=r"no chip is reviewed so that its truth is known \(.*1 a change was missed"
    ):
        exported(write_review("one.json", [("chips", "r00000_c00032", "reject")]), "set")
