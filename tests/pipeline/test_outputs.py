"""Output files of a job: names, checks before any work, locks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deltavlm.errors import ConfigError, InputError, OutputError
from deltavlm.files import lock
from deltavlm.pipeline.job import OutputOptions
from deltavlm.pipeline.journal.file import COMMIT, journal_path
from deltavlm.pipeline.outputs import OutputFiles, check_outputs, is_complete, output_paths
from tests.conftest import Scene
from tests.jobs import job_into
from tests.pairs import write_pairs

pytestmark = pytest.mark.usefixtures("empty_folder")


@pytest.mark.parametrize(
    ("path", "layer", "polygons"),
    [
        ("out.gpkg", None, None),  # a layer of its own
        ("out.gpkg", "chips", "out.changes.gpkg"),
        ("out.geojson", None, "out.changes.geojson"),
        ("a.b.PARQUET", None, "a.b.changes.PARQUET"),
        ("out.geojson", "changes", None),
        ("out.gpkg", "changes", None),
    ],
)
def test_the_file_of_the_polygons(path: str, layer: Any, polygons: str | None) -> None:
    files = OutputFiles.of(OutputOptions(path=Path("f") / path, layer=layer, polygons=True))
    expected = {} if polygons is None else {"polygons": Path("f") / polygons}
    assert files.by_name() == expected
    assert OutputFiles.of(OutputOptions(path=Path("f") / path, layer=layer)).by_name() == {}


def test_every_file_is_checked_and_none_is_touched() -> None:
    def check(*, may_replace: bool = False, **files: Path) -> None:
        OutputFiles(Path("out.geojson"), **files).check(may_replace=may_replace)

    existing_tif = Path("there.tif")
    existing_tif.write_bytes(b"mine")
    polygons = Path("out.changes.geojson")
    polygons.write_bytes(b"mine")
    check(mask=Path("m.tif"), probability=Path("p.tif"))
    existing: list[dict[str, Any]] = [
        {"mask": existing_tif},
        {"probability": existing_tif},
        {"polygons": polygons},
    ]
    for files in existing:
        with pytest.raises(OutputError, match="exists already"):
            check(**files)
        check(may_replace=True, **files)
    assert (existing_tif.read_bytes(), polygons.read_bytes()) == (b"mine", b"mine")
    assert len(list(Path().iterdir())) == 2


def test_files_that_a_killed_run_had_begun_to_rename_may_be_replaced() -> None:
    mask = Path("m.tif")
    mask.touch()
    files = OutputFiles(Path("out.gpkg"), mask=mask)
    with pytest.raises(OutputError, match="exists already"):
        files.check(may_replace=False)
    journal_path(Path("out.gpkg")).write_text(json.dumps({COMMIT: [str(mask.absolute())]}) + "\n")
    assert files.interrupted_renames == {str(mask.absolute())}
    files.check(may_replace=False)


def test_all_files_are_locked() -> None:
    files = OutputFiles(Path("out.gpkg"), mask=Path("m.tif"), polygons=Path("c.gpkg"))
    with files.locked():
        for path in (Path("out.gpkg"), Path("m.tif"), Path("c.gpkg")):
            with pytest.raises(OutputError, match=f"{path}: another run is writing it"), lock(path):
                pass
    with files.locked():
        pass
    assert not list(Path().iterdir())


def test_an_output_of_a_folder_is_complete_unless_it_is_to_be_replaced() -> None:
    path = Path("p0.gpkg")
    assert not is_complete(path, OutputOptions())
    path.touch()
    assert is_complete(path, OutputOptions())
    assert is_complete(path, OutputOptions(retry_failed=True))  # no chip of it failed
    assert not is_complete(path, OutputOptions(overwrite=True))
    journal_path(path).touch()
    assert is_complete(path, OutputOptions())
    assert not is_complete(path, OutputOptions(retry_failed=True))


def test_outputs_of_a_folder_are_named_by_the_ids(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "data", 2)
    pairs.write_text(pairs.read_text().replace("p1,", "a/b,"))
    assert output_paths(job_into("each/", pairs)) == {
        "p0": Path("each/p0.gpkg"),
        "a/b": Path("each/a_b.gpkg"),
    }
    pairs.write_text(pairs.read_text().replace("a/b,", "P0,"))
    with pytest.raises(InputError, match="would be one file"):
        output_paths(job_into("each/", pairs))


def test_a_retry_needs_a_journal(scene: Scene) -> None:
    for job in (job_into("out.gpkg", scene, retry_failed=True), job_into(None, scene, retry_failed=True)):
        with pytest.raises(ConfigError, match="there is no journal of a run into"):
            check_outputs(job)
    journal_path(Path("out.gpkg")).touch()
    check_outputs(job_into("out.gpkg", scene, retry_failed=True))
