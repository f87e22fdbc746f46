"""Functions of the Python API: analyze pairs into an output file, and open a pair."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from deltavlm.config import shipped_config
from deltavlm.files import names_folder
from deltavlm.geo.location import normalize_location
from deltavlm.geo.pair import PairReader, RasterPair, ReadOptions
from deltavlm.geo.pair import open_pair as open_raster_pair
from deltavlm.model.interface import ChangeModel
from deltavlm.model.kinds import follows_instructions, read_spec
from deltavlm.pipeline.answers import phrasebook_of
from deltavlm.pipeline.changes import ChangeOptions
from deltavlm.pipeline.conversation import questions_of
from deltavlm.pipeline.engine import LocalEngine
from deltavlm.pipeline.evidence import EvidencedModel, check_evidence
from deltavlm.pipeline.job import AnalyzeJob, AnalyzeOptions, OutputOptions
from deltavlm.pipeline.mask_codec import check_mask_head
from deltavlm.pipeline.pairs import Pair, PairList, with_ids
from deltavlm.pipeline.run import RunHooks, run
from deltavlm.pipeline.run_result import RunResult
from deltavlm.tasks.questions import QuestionSpec, load_questions

__all__ = ["analyze", "open_pair"]

Location = str | os.PathLike[str]
"""Path of a raster, or an https://, s3:// or /vsi... location."""


def analyze(
    before: Location | Sequence[Pair | tuple[Location, Location]] | PairList,
    after: Location | None = None,
    *,
    output: Location,
    model: str | ChangeModel = "nano",
    evidence: str | ChangeModel | None = None,
    questions: Sequence[QuestionSpec | str] | Location | None = None,
    options: AnalyzeOptions | None = None,
    read: ReadOptions | None = None,
    overwrite: bool = False,
    resume: bool = True,
    retry_failed: bool = False,
    polygons: bool | Literal["changed", "all"] = False,
    mask: Location | None = None,
    probability: Location | None = None,
    on_progress: Callable[[RunResult], None] | None = None,
) -> RunResult:
    """Ask a model what changed in each chip of a pair, or of many pairs, and write the answers as a map.

    The work is that of `deltavlm analyze`: results are kept in a journal next to the output until it is
    written, and the same call resumes an interrupted run. The output appears whole or not at all.

    Args:
        before: the earlier image, or a list of pairs: (before, after) tuples, or `Pair`s with an id, dates
            and an area of interest each. Locations are paths, https://, s3:// or /vsi...
        after: the later image; omitted for a list of pairs.
        output: .gpkg, .geojson, .geojsonl, .ndjson, .fgb or .parquet. For a list of pairs, a folder (it
            ends in "/", or exists) means one GeoPackage for each pair, and folders for rasters.
        model: name of a model, a checkpoint folder, or a model from `load_model`.
        evidence: another model that sees each chip first, such as "nano": `model`, which must read text, is
            told its counts, cells and probability of change, and chips have the columns `evidence_*`. Masks
            and the cascade are then those of this model.
        questions: questions as text, a question set, or its YAML file; default: caption, change, count and
            location. Text that means one of these is asked in its standard words, but for `hf:` and `openai:`
            models, which are asked it as it is.
        options: chip size and overlap in pixels, batching, limit, what to do with chips that fail.
        read: bands, scaling to 8 bit, alignment, bounding box and area of interest.
        overwrite: replace an existing output.
        resume: False discards the journal of an interrupted run.
        retry_failed: ask again about chips and pairs that failed, and write the output anew.
        polygons: write the layer `changes`, polygons of changed ground with class, area and score, where the
            chip is called changed; "all": also where the answer is no.
        mask: also write a GeoTIFF of classes, (height, width) uint8: 0 none, 1 building, 2 road, 3 other,
            255 nodata.
        probability: also write a GeoTIFF of probabilities, (3, height, width) uint8, a band each for
            building, road and other.
        on_progress: called with the result so far after each batch.

    Returns:
        Counts, the most changed chips, failures and files; of a folder, only those of outputs that were not
        complete already (`outputs_skipped`). Chips that fail do not raise, unless
        `options.on_error` is "fail"; `result.raise_if_partial()` raises for them.

    Raises:
        InputError: an image cannot be opened or does not overlap the other; the model is unknown.
        OutputError: the output exists, cannot be written, or is being written by another process.
        ConfigError: options contradict each other, the model has no mask head and masks are needed, or it
            cannot be told evidence.
        WriteError: writing fails, as on a full disk; the same call resumes.
    """
    if polygons not in (False, True, "changed", "all"):
        raise ValueError(f'analyze() needs polygons as True, False, "changed" or "all", not {polygons!r}')
    for name, value, kind in (("options", options, AnalyzeOptions), ("read", read, ReadOptions)):
        if value is not None and not isinstance(value, kind):
            raise TypeError(f"analyze() needs {name} as {kind.__name__}, not {value!r}")
    pairs = _pair_list(before, after)
    job = AnalyzeJob(
        pairs=pairs,
        questions=_question_set(questions, model),
        read=read or ReadOptions(),
        options=options or AnalyzeOptions(),
        output=OutputOptions(
            path=Path(output),
            per_pair=not pairs.is_single and names_folder(output),
            overwrite=overwrite,
            resume=resume,
            retry_failed=retry_failed,
            polygons=bool(polygons),
            changes=ChangeOptions(chips="all" if polygons == "all" else "changed"),
            mask=None if mask is None else Path(mask),
            probability=None if probability is None else Path(probability),
        ),
        evidence=evidence is not None or isinstance(model, EvidencedModel),
    )
    _check_models(model, evidence, masks=job.options.masks)
    engine = _engine(model, evidence, any_scale=job.options.any_scale)
    return run(job, engine, RunHooks() if on_progress is None else RunHooks(on_progress))


def open_pair(
    before: Location, after: Location, options: ReadOptions | None = None, **fields: Any
) -> AbstractContextManager[PairReader]:
    """Open two images of one place on a common pixel grid.

    The grid is that of `before`, cropped to the ground that both cover; `after` is warped onto it where it
    has another. In the `with`, `reader.geobox` is the grid and `reader.chips(size, overlap)` its chips, sizes
    in pixels; `reader.read(chip)` gives `before` and `after`, (3, size, size) uint8 RGB each, and `valid`,
    (size, size) bool.

    Args:
        before: path, https://, s3:// or /vsi... location of the earlier image.
        after: the same of the later one.
        options: bands, scaling, alignment, bounding box and area of interest.
        fields: single fields of `ReadOptions`, in place of those of `options`.

    Raises:
        InputError: an image cannot be opened, has no CRS, or does not overlap the other.
    """
    return open_raster_pair(
        RasterPair(os.fspath(before), os.fspath(after)), replace(options or ReadOptions(), **fields)
    )


def _pair_list(
    before: Location | Sequence[Pair | tuple[Location, Location]] | PairList, after: Location | None
) -> PairList:
    """Raises: ValueError where the arguments are neither one pair nor a list."""
    if isinstance(before, PairList):
        pairs = before
    elif isinstance(before, str | os.PathLike):
        if after is None:
            raise ValueError("analyze() needs `after`, the later image, or a list of pairs as `before`")
        return PairList.single(os.fspath(before), os.fspath(after))
    else:
        listed = [_pair(item, number) for number, item in enumerate(before, start=1)]
        pairs = PairList(with_ids(listed, "list of pairs, items"), "list of pairs")
    if after is not None:
        raise ValueError("analyze() takes `after` only with a single image as `before`")
    if not pairs.pairs:
        raise ValueError("analyze() needs at least one pair")
    return pairs


def _pair(item: Pair | tuple[Location, Location], number: int) -> Pair:
    """Raises: TypeError for anything but a `Pair` or (before, after)."""
    if isinstance(item, Pair):
        return item
    if isinstance(item, str | os.PathLike) or len(item) != 2:
        raise TypeError(f"analyze() needs (before, after) tuples or Pair objects; item {number} is {item!r}")
    before, after = (normalize_location(os.fspath(location)) for location in item)
    return Pair("", before, after, line=number)


def _question_set(
    questions: Sequence[QuestionSpec | str] | Location | None, model: str | ChangeModel
) -> Sequence[QuestionSpec]:
    """Raises: TypeError unless all items are `QuestionSpec`s, or all are text."""
    if questions is None:
        return load_questions(shipped_config("questions.yaml"))
    if isinstance(questions, str | os.PathLike):
        return load_questions(Path(questions))
    texts = [item for item in questions if isinstance(item, str)]
    specs = [item for item in questions if isinstance(item, QuestionSpec)]
    if len(questions) not in (len(texts), len(specs)):
        raise TypeError(f"analyze() needs questions all as text or all as QuestionSpec, not {questions!r}")
    keeps = follows_instructions(model) if isinstance(model, str) else phrasebook_of(model).any_words
    return questions_of(texts, any_words=keeps) if texts else specs


def _check_models(model: str | ChangeModel, evidence: str | ChangeModel | None, *, masks: bool) -> None:
    """Check models that are not loaded yet. Raises: InputError, ModelError, ConfigError."""
    spec = read_spec(model) if isinstance(model, str) else None
    if isinstance(evidence, str):
        spec = check_evidence(model, evidence) if isinstance(model, str) else read_spec(evidence)
    elif evidence is not None:
        spec = None  # it is loaded, and `encode_masks` finds out
    if masks and spec is not None:
        check_mask_head(spec)


@contextmanager
def _engine(
    model: str | ChangeModel, evidence: str | ChangeModel | None, *, any_scale: bool
) -> Iterator[LocalEngine]:
    from deltavlm.model.kinds import load_model

    change_model = load_model(model) if isinstance(model, str) else model
    if evidence is not None:
        evidence_model = load_model(evidence) if isinstance(evidence, str) else evidence
        change_model = EvidencedModel(change_model, evidence_model, any_scale=any_scale)
    yield LocalEngine(change_model)
