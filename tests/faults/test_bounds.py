"""What is read has a bound: deep nesting, long numbers, files without an end. Each is refused in one line."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deltavlm.data.endpoint import ReplyLog, parse_reply
from deltavlm.data.examples import read_json
from deltavlm.errors import DeltaVLMError, ModelError
from deltavlm.files import read_text
from deltavlm.model import checkpoint
from deltavlm.model.folder import CONFIG, read_config
from deltavlm.model.tokenizer import load_codecs
from deltavlm.pipeline.journal.file import files_in_commit
from deltavlm.pipeline.pair_lists import parse_pairs, read_pairs
from deltavlm.pipeline.transcript import read_transcript
from deltavlm.scoring.predictions import read_predictions
from deltavlm.tasks.questions import load_questions
from deltavlm.training.config import load_config
from deltavlm.upstream.read import shards
from deltavlm.upstream.sizes import language_config
from tests.cli.conftest import Run, one_line
from tests.conftest import Scene
from tests.tiny import TINY

DEEP = "[" * 100_000
LONG = "9" * 5000
READERS: dict[str, Callable[[Path], Any]] = {
    "pairs.csv": read_pairs,
    "talk.jsonl": read_transcript,
    "answers.json": read_predictions,
    "set.json": read_json,
    "questions.yaml": load_questions,
    "run.yaml": load_config,
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize(
    "text", [DEEP, '{"a":' * 100_000, f"[{LONG}]", f'{{"id": {LONG}}}', '{"a": "' + "x" * 5000]
)
def test_deep_nesting_and_long_numbers_are_refused(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(DeltaVLMError) as caught:
        READERS[name](path)
    message = str(caught.value)
    assert name in message
    assert len(message) < 500
    assert "\n" not in message


@pytest.mark.parametrize("name", READERS)
def test_a_file_of_terabytes_is_refused(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / name
    with path.open("wb") as file:
        file.truncate(2**40)  # sparse
    for module in ("files.opening", "scoring.predictions", "data.examples", "config"):
        for limit in ("MAX_TEXT_BYTES", "MAX_DATASET_BYTES"):
            monkeypatch.setattr(f"deltavlm.{module}.{limit}", 1000, raising=False)
    monkeypatch.setattr(read_text, "__defaults__", (1000,))
    with pytest.raises(DeltaVLMError, match="larger than"):
        READERS[name](path)


@pytest.mark.parametrize(
    "aoi",
    [
        "GEOMETRYCOLLECTION(" * 100_000 + "POINT(1 1)" + ")" * 100_000,  # which overflows the stack of GEOS
        '{"type": "GeometryCollection", "geometries": [' * 100_000,
        '{"type": "FeatureCollection", "features": [' * 400 + "]}" * 400,
        '{"type": "Polygon", "coordinates": ' + "[" * 900 + "]" * 900 + "}",
    ],
)
def test_areas_in_areas_in_a_list_are_refused(aoi: str) -> None:
    cell = aoi.replace('"', '""')
    with pytest.raises(DeltaVLMError, match=r"is neither WKT nor a GeoJSON|has no area"):
        parse_pairs(f'before,after,aoi\na.tif,b.tif,"{cell}"\n', "pairs.csv", Path())


def test_replies_and_journals_of_deep_nesting_are_no_replies(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON"):
        parse_reply(DEEP)
    log = tmp_path / "replies.jsonl"
    log.write_text(DEEP + "\n")
    assert not ReplyLog(log).replies
    for text in (DEEP, '{"commit": 5}', '{"commit": [[]]}', "5", ""):
        log.write_text(text)
        assert files_in_commit(log) == set()


def test_json_of_published_models_has_bounds(tmp_path: Path) -> None:
    for text in (DEEP, LONG, '{"hidden_size": 1e400}'):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(DeltaVLMError, match="is not the configuration of a Llama"):
            language_config(tmp_path)
        (tmp_path / "model.safetensors.index.json").write_text(text)
        with pytest.raises(DeltaVLMError, match="is not an index of shards"):
            shards(tmp_path)


NUMBERS: list[tuple[str, str, object]] = [
    ("language", "layers", 10**9),
    ("language", "hidden", 10**12),
    ("language", "hidden", -1),
    ("language", "vocab", 2**62),
    ("language", "context", 10**30),
    ("language", "rms_eps", math.nan),
    ("language", "hidden", 32.5),
    ("language", "hidden", "32"),
    ("language", "hidden", True),
    ("vision", "depth", 10**9),
    ("vision", "image_px", 10**6),
    ("vision", "patch_px", 8),
    ("vision", "patch_px", 0),
    ("vision", "stages", [[8, 10**9], [16, 1]]),
    ("vision", "stages", [[8, 1]] * 100),
    ("vision", "mlp_ratio", math.inf),
    ("vision", "std", [0.0, 0.0, 0.0]),
    ("vision", "mean", [math.nan, 0.0, 0.0]),
    ("vision", "tower", "hf-hub:somebody/model"),
    ("vision", "tower", "local-dir:/srv/model"),
    ("vision", "tower", "hf_hub:somebody/model"),
    ("qformer", "layers", 10**9),
    ("qformer", "queries", 10**9),
    ("qformer", "max_text_tokens", 10**9),
    ("qformer", "anchored", 10**9),
    ("qformer", "dropout", 7.0),
    ("dense", "count_basis", 10**9),
    ("dense", "classes", ["none"] * 1000),
    ("calibration", "scale", math.nan),
    ("decoding", "beams", 10**9),
    ("decoding", "repetition_penalty", 0.0),
    ("", "chip_px", 0),
    ("", "training_gsd_m", math.nan),
    ("", "training_gsd_m", -1.0),
    ("", "name", "x" * 10_000),
    ("", "name", "two\nlines"),
    ("", "_name_or_path", "somebody/model"),
    ("", "auto_map", {"AutoModel": "somebody/model--code.Model"}),
]


@pytest.mark.parametrize(("section", "key", "value"), NUMBERS)
def test_a_config_that_no_model_has_is_refused(
    tmp_path: Path, section: str, key: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before a module is built or a tensor is read, and without a request to any server."""
    checkpoint.save_config(tmp_path, TINY)
    values = json.loads((tmp_path / CONFIG).read_text())
    (values[section] if section else values)[key] = value
    (tmp_path / CONFIG).write_text(json.dumps(values))
    monkeypatch.setattr(checkpoint, "build", lambda config: pytest.fail("a model was built"))
    with pytest.raises(ModelError) as caught:
        checkpoint.load(tmp_path)
    message = str(caught.value)
    assert key in message
    assert len(message) < 400 + len(str(tmp_path))
    assert "\n" not in message


@pytest.mark.parametrize(
    "text", [DEEP, LONG, '{"name": ' + LONG + "}", '{"name": "' + "x" * 2**20 + '"}', "\xff"]
)
def test_a_config_that_is_no_config_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / CONFIG).write_text(text, encoding="latin-1")
    with pytest.raises(ModelError, match=r"config\.json"):
        read_config(tmp_path)


def test_a_tokenizer_of_terabytes_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate(2**40)  # sparse
    with pytest.raises(ModelError, match=r"tokenizer\.json is larger than"):
        load_codecs(tmp_path)


def test_defaults_of_deep_nesting(run: Run, scene: Scene) -> None:
    for text in (f"a = {DEEP}", f"[analyze]\nlimit = {LONG}", "x" * 2**21):
        Path("d.toml").write_text(text)
        line = one_line(run("analyze", *scene.args, "--config", "d.toml"))
        assert "d.toml" in line
        assert len(line) < 500


@pytest.mark.parametrize(
    "args", [("--batch-size", LONG), ("--bands", f"{LONG},1,1"), ("--bbox", f"{LONG},0,1,1")]
)
def test_long_numbers_of_flags(run: Run, scene: Scene, args: tuple[str, str]) -> None:
    result = run("analyze", *scene.args, "-o", "o.gpkg", *args)
    assert result.exit_code == 2
    assert args[0] in one_line(result)
    assert len(one_line(result)) < 2100


def test_a_shard_of_long_numbers(run: Run) -> None:
    Path("pairs.csv").write_text("before,after\na.tif,b.tif\n")
    result = run("analyze", "--pairs", "pairs.csv", "--shard", f"{LONG}/{LONG}")
    assert (result.exit_code, "--shard" in one_line(result)) == (2, True)
