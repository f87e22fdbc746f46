"""Python API: what the command line does, the library does in one call."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pytest

import deltavlm
from deltavlm import analyze, load_model, open_pair
from deltavlm.errors import ConfigError, InputError, OutputError, PartialFailure
from deltavlm.geo.pair import ReadOptions
from deltavlm.model.kinds import KINDS
from deltavlm.pipeline.evidence import EvidencedModel
from deltavlm.pipeline.job import AnalyzeOptions
from deltavlm.pipeline.pairs import Pair
from deltavlm.pipeline.run_result import RunResult
from deltavlm.tasks.questions import QuestionSpec
from tests.conftest import CHIP, Scene
from tests.scripted_model import ScriptedModel
from tests.text_reader import KIND, text_reader

ROOT = Path(__file__).resolve().parent.parent
OPTIONS = AnalyzeOptions(chip_px=CHIP)


def test_one_pair(scene: Scene, model: ScriptedModel, tmp_path: Path) -> None:
    output = tmp_path / "changes.gpkg"
    progress: list[int] = []
    result = analyze(
        *scene.args,
        output=output,
        model=model,
        options=OPTIONS,
        on_progress=lambda result: progress.append(result.chips),
    )
    assert isinstance(result, RunResult)
    assert (result.chips, result.changed, result.failed, result.failures) == (15, 1, 0, [])
    assert result.output == output
    assert progress[-1] == 15
    (chip,) = result.most_changed
    assert chip.chip_id == scene.changed_chip
    assert chip.lonlat is not None
    assert -180 <= chip.lonlat[0] <= 180
    table = pyogrio.read_dataframe(output, layer="chips")
    assert list(table.chip_id[table.changed]) == [scene.changed_chip]
    assert "pair_id" not in table
    result.raise_if_partial()
    assert [path.name for path in tmp_path.glob("changes*")] == ["changes.gpkg"]


def test_a_list_of_pairs_into_one_output(scene: Scene, model: ScriptedModel, tmp_path: Path) -> None:
    before, after = scene.args
    pairs = [Pair("first", before, after), (before, after)]
    result = analyze(pairs, output=tmp_path / "all.gpkg", model=model, options=OPTIONS)
    assert list(result.pairs) == ["first", "after"]
    assert (result.chips, result.changed) == (30, 2)
    assert {chip.pair for chip in result.most_changed} == {"first", "after"}
    table = pyogrio.read_dataframe(tmp_path / "all.gpkg", layer="pairs")
    assert list(table.pair_id) == ["first", "after"]


def test_a_folder_of_outputs_holds_what_a_run_over_each_pair_gives(
    scene: Scene, model: ScriptedModel, tmp_path: Path
) -> None:
    pairs = [Pair("one", *scene.args), Pair("missing", "nowhere.tif", scene.args[1])]
    result = analyze(pairs, output=f"{tmp_path}/each/", model=model, options=OPTIONS)
    assert [path.name for path in (tmp_path / "each").iterdir()] == ["one.gpkg"]
    assert [pair.status for pair in result.pairs.values()] == ["answered", "failed"]
    with pytest.raises(
        PartialFailure, match=r"1 of 2 pairs failed, the first because: missing: nowhere\.tif"
    ):
        result.raise_if_partial()
    alone = analyze(*scene.args, output=tmp_path / "alone.gpkg", model=model, options=OPTIONS)
    assert alone.changed == result.changed == 1
    again = analyze(pairs[:1], output=f"{tmp_path}/each/", model=model, options=OPTIONS)
    assert (again.outputs_skipped, again.chips, again.model) == (1, 0, None)


def test_polygons_and_rasters(scene: Scene, model: ScriptedModel, tmp_path: Path) -> None:
    result = analyze(
        *scene.args,
        output=tmp_path / "changes.gpkg",
        model=model,
        options=AnalyzeOptions(chip_px=CHIP, overlap_px=0),
        polygons=True,
        mask=tmp_path / "mask.tif",
    )
    assert result.polygons == len(pyogrio.read_dataframe(tmp_path / "changes.gpkg", layer="changes")) > 0
    assert result.files == {"mask": tmp_path / "mask.tif"}
    assert (tmp_path / "mask.tif").exists()


def test_options_reach_the_run(scene: Scene, tmp_path: Path) -> None:
    """The batch size was ignored, and chips of another size did not overlap where masks are blended."""
    model = ScriptedModel()
    options = AnalyzeOptions(chip_px=CHIP, batch_size=2)
    analyze(*scene.args, output=tmp_path / "out.gpkg", model=model, options=options)
    assert {*model.batches} == {2, 1}
    plain = analyze(*scene.args, output=tmp_path / "a.gpkg", model=model, options=OPTIONS)
    blended = analyze(*scene.args, output=tmp_path / "b.gpkg", model=model, options=OPTIONS, polygons=True)
    assert blended.chips > plain.chips


def test_an_interrupted_call_resumes(scene: Scene, tmp_path: Path) -> None:
    output = tmp_path / "out.geojson"

    def interrupt(result: RunResult) -> None:
        if result.chips >= 8:
            raise KeyboardInterrupt

    options = AnalyzeOptions(chip_px=CHIP)
    with pytest.raises(KeyboardInterrupt):
        analyze(*scene.args, output=output, model=Small(), options=options, on_progress=interrupt)
    assert not output.exists()
    second = Small()
    result = analyze(*scene.args, output=output, model=second, options=options)
    assert result.summary.resumed == 8
    assert sum(second.batches) == 7
    analyze(*scene.args, output=tmp_path / "unbroken.geojson", model=Small(), options=options)
    assert output.read_bytes() == (tmp_path / "unbroken.geojson").read_bytes()


class Small(ScriptedModel):
    """Model that prefers four chips in a batch."""

    def auto_batch_size(self) -> int:
        return 4


def test_mistakes_are_errors_before_any_work(scene: Scene, model: ScriptedModel, tmp_path: Path) -> None:
    output = tmp_path / "out.gpkg"
    with pytest.raises(InputError, match=r"nowhere\.tif"):
        analyze("nowhere.tif", scene.after, output=output, model=model)
    with pytest.raises(InputError, match="nonesuch"):
        analyze(*scene.args, output=output, model="nonesuch")
    with pytest.raises(OutputError, match="suffix"):
        analyze(*scene.args, output=tmp_path / "out.shp", model=model)
    with pytest.raises(ValueError, match="needs `after`"):
        analyze(scene.before, output=output, model=model)
    with pytest.raises(ValueError, match="only with a single image"):
        analyze([scene.args], scene.after, output=output, model=model)
    with pytest.raises(ValueError, match="at least one pair"):
        analyze([], output=output, model=model)
    with pytest.raises(ConfigError, match="many pairs cannot be one raster"):
        analyze([scene.args], output=output, model=model, mask=tmp_path / "mask.tif")
    with pytest.raises(ConfigError, match="cascade"):
        analyze(*scene.args, output=output, model=model, questions=[], options=AnalyzeOptions(cascade=True))
    for pairs, error in (
        (list(scene.args), "item 1 is"),
        ([(*scene.args, "2015")], "item 1 is"),
    ):
        with pytest.raises(TypeError, match=error):
            analyze(pairs, output=output, model=model)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="options as AnalyzeOptions"):
        analyze(*scene.args, output=output, model=model, options={"chip_px": 32})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="all as text or all as QuestionSpec"):
        analyze(*scene.args, output=output, model=model, questions=[7])  # type: ignore[list-item]
    with pytest.raises(ConfigError, match="dtype 'half' is not one of auto, fp32"):
        load_model("nano", dtype="half")
    output.write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        analyze(*scene.args, output=output, model=model)
    assert output.read_text() == "mine"
    assert model.batches == []


def test_questions_as_text(scene: Scene, model: ScriptedModel, tmp_path: Path) -> None:
    analyze(
        *scene.args, output=tmp_path / "out.gpkg", model=model, options=OPTIONS, questions=["Any new water?"]
    )
    table = pyogrio.read_dataframe(tmp_path / "out.gpkg", layer="chips")
    assert set(table.answer_question) == {"nothing to say"}


def test_a_result_has_a_short_repr(scene: Scene, model: ScriptedModel, tmp_path: Path) -> None:
    result = analyze(*scene.args, output=tmp_path / "out.gpkg", model=model, options=OPTIONS)
    assert repr(result) == f"<RunResult 15 chips, 1 changed, 0 failed, output {tmp_path / 'out.gpkg'}>"


def test_questions_of_two_kinds_are_refused(scene: Scene, model: ScriptedModel, tmp_path: Path) -> None:
    """Text between `QuestionSpec`s was dropped without a word."""
    mixed = [QuestionSpec("change", "change", "Changed?"), "Any new water?"]
    with pytest.raises(TypeError, match="all as text or all as QuestionSpec"):
        analyze(*scene.args, output=tmp_path / "out.gpkg", model=model, questions=mixed)
    assert model.history == []


def test_a_journal_of_another_version_is_refused_before_the_model_is_loaded(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(name: str) -> ScriptedModel:
        pytest.fail("the model was loaded")

    monkeypatch.setattr("deltavlm.model.kinds.load_model", load)
    (tmp_path / "out.gpkg.journal.jsonl").write_text('{"deltavlm_journal": 1}\n')
    with pytest.raises(OutputError, match=r"journal format 1, .* add `resume=False`"):
        analyze(*scene.args, output=tmp_path / "out.gpkg", model="nano")


def test_evidence_of_a_loaded_model(scene: Scene, model: ScriptedModel, tmp_path: Path) -> None:
    output = tmp_path / "out.gpkg"
    result = analyze(*scene.args, output=output, model=text_reader(), evidence=model, options=OPTIONS)
    assert result.changed == 0
    table = pyogrio.read_dataframe(output, layer="chips")
    assert list(table.chip_id[table.evidence_changed]) == [scene.changed_chip]
    both = EvidencedModel(text_reader(), model)
    analyze(*scene.args, output=tmp_path / "same.gpkg", model=both, options=OPTIONS)
    assert list(pyogrio.read_dataframe(tmp_path / "same.gpkg", layer="chips")) == list(table)


def test_evidence_by_name(
    scene: Scene, model: ScriptedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = text_reader()
    monkeypatch.setattr("deltavlm.model.kinds.KINDS", {**KINDS, **KIND})
    monkeypatch.setattr(
        "deltavlm.model.kinds.load_model", lambda name: reader if name.startswith("text:") else model
    )
    output, options = tmp_path / "out.gpkg", replace(OPTIONS, any_scale=True)
    analyze(*scene.args, output=output, model="text:any", evidence="nano", options=options, polygons=True)
    assert all("new building" in context.evidence for context in reader.contexts)
    assert "changes" in pyogrio.list_layers(output)[:, 0]


@pytest.mark.parametrize(
    ("names", "error"),
    [
        ({"model": "nano", "evidence": "nano"}, "nano reads its questions alone"),
        ({"model": "text:any", "evidence": "text:any"}, "is the model that answers"),
        ({"model": "text:any", "evidence": "text:other", "polygons": True}, "no mask head"),
        ({"model": "text:any", "evidence": "nosuch"}, "nosuch"),
    ],
)
def test_evidence_that_cannot_be_told(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: dict[str, Any], error: str
) -> None:
    def load(name: str) -> ScriptedModel:
        pytest.fail("the model was loaded")

    monkeypatch.setattr("deltavlm.model.kinds.KINDS", {**KINDS, **KIND})
    monkeypatch.setattr("deltavlm.model.kinds.load_model", load)
    with pytest.raises((ConfigError, InputError), match=error):
        analyze(*scene.args, output=tmp_path / "out.gpkg", **names)


def test_open_pair(scene: Scene) -> None:
    with open_pair(scene.before, scene.after, ReadOptions(), scale="none") as reader:
        chips = list(reader.chips(CHIP))
        pixels = reader.read(chips[0])
        assert reader.options.scale == "none"
        assert (len(chips), reader.geobox.crs is not None) == (15, True)
    assert pixels.before.shape == pixels.after.shape == (3, CHIP, CHIP)
    assert (pixels.before.dtype, pixels.valid.shape) == (np.uint8, (CHIP, CHIP))


def test_importing_the_package_loads_nothing_and_names_its_functions() -> None:
    code = (
        "import sys, deltavlm\n"
        "assert not {'torch', 'rasterio', 'numpy'} & {*sys.modules}\n"
        "from deltavlm import analyze\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    assert {"analyze", "load_model", "open_pair", "__version__"} <= {*dir(deltavlm)}
    with pytest.raises(AttributeError, match="nonesuch"):
        deltavlm.nonesuch  # noqa: B018
