"""Batch sizes by memory: with a simulated meter, and the formula against the memory that torch uses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from deltavlm.errors import ModelOutOfMemory
from deltavlm.model import checkpoint
from deltavlm.model.config import Decoding
from deltavlm.model.interface import Question
from deltavlm.model.kinds import load_model
from deltavlm.model.memory import (
    CPU_ENCODE_PAIRS,
    MAX_PAIRS,
    CudaMeter,
    TensorMeter,
    pairs_that_fit,
    row_bytes,
    rows_that_fit,
)
from deltavlm.model.predictor import Predictor
from tests.tiny import TINY, tiny_checkpoint

LONG = Question("long", "how many roads are there?", max_new_tokens=9)


@dataclass
class FakeMeter:
    """Device on which n pairs take `fixed + n * each` bytes."""

    memory: int
    fixed: int = 0
    each: int = 1
    probed: list[int] = field(default_factory=list)

    def free(self) -> int:
        return self.memory

    def probe(self, count: int) -> None:
        self.probed.append(count)
        if self.fixed + count * self.each > self.memory:
            raise ModelOutOfMemory("no more")

    def peak(self, work: Callable[[], object]) -> int:
        work()
        return self.fixed + self.probed[-1] * self.each


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    folder = tmp_path_factory.mktemp("tiny")
    tiny_checkpoint(folder)
    model = load_model(str(folder), device="cpu", dtype="fp32")
    assert isinstance(model, Predictor)
    return model


def pairs(number: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    return tuple(rng.integers(0, 256, (number, 3, 64, 64), dtype=np.uint8) for _ in range(2))  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("memory", "fixed", "each", "expected"),
    [
        (1000, 100, 20, 35),  # (0.8 * 1000 - 100) / 20
        (1000, 0, 100, 8),
        (10**6, 0, 1, MAX_PAIRS),
        (100, 0, 90, 1),  # two do not fit
        (100, 0, 200, 1),  # not even one: the run reports each chip
        (100, 79, 20, 1),  # one fits, though not into the safe share
        (1000, 100, 0, MAX_PAIRS),  # pairs that take no memory
    ],
)
def test_pairs_follow_the_memory(memory: int, fixed: int, each: int, expected: int) -> None:
    meter = FakeMeter(memory, fixed, each)
    assert pairs_that_fit(meter, meter.probe) == expected
    assert max(meter.probed) <= max(2, expected)  # a probe is no larger than the result


def test_the_peak_of_many_pairs_is_not_extrapolated_from_two() -> None:
    """The peak of few pairs is 100 + n, that of many 10 n."""

    class BentMeter(FakeMeter):
        def peak(self, work: Callable[[], object]) -> int:
            work()
            return max(100 + self.probed[-1], 10 * self.probed[-1])

    meter = BentMeter(400)
    assert pairs_that_fit(meter, meter.probed.append) == 32  # 0.8 * 400 / 10, not 220


def test_rows_follow_the_memory() -> None:
    assert rows_that_fit(FakeMeter(1000), 100, 256) == 8
    assert rows_that_fit(FakeMeter(10**9), 100, 256) == 256
    assert rows_that_fit(FakeMeter(10), 100, 256) == 1


def test_row_bytes_of_the_published_model() -> None:
    """52 + 16 tokens: 36 MB of keys and values in 16 bit, most of a row; five beams take five times that."""
    from deltavlm.config import load, shipped_config
    from deltavlm.model.config import DeltaVLMConfig

    config = load(shipped_config("deltavlm-7b.yaml"), DeltaVLMConfig)
    bytes_each = row_bytes(config, tokens=68, beams=1, itemsize=2)
    assert 2 * 32 * 68 * 4096 * 2 == 35_651_584 < bytes_each < 60_000_000
    assert 4 * bytes_each < row_bytes(config, tokens=68, beams=5, itemsize=2) < 5 * bytes_each


@pytest.mark.parametrize("beams", [1, 3])
def test_a_row_takes_no_more_than_computed(predictor: Predictor, beams: int) -> None:
    """Nor much less, which would waste memory."""
    model = replace(
        predictor, config=replace(predictor.config, decoding=Decoding(beams=beams, repetition_penalty=1.5))
    )
    encoded = model.encode(*pairs(8))

    def ask(count: int) -> None:
        model._answer_batch(encoded, [(pair % 8, LONG) for pair in range(count)], [None] * count)

    ask(2)
    few, many = (TensorMeter(0).peak(lambda n=n: ask(n)) for n in (2, 8))  # type: ignore[misc]
    tokens = TINY.qformer.queries + 1 + len(model.codec.encode(model.format_prompt(LONG.prompt))) + 9
    computed = row_bytes(TINY, tokens, beams, itemsize=4)
    assert (many - few) / 6 < computed < 4 * (many - few) / 6


def test_the_batch_of_a_model_is_measured(predictor: Predictor) -> None:
    """The chosen batch fits into the memory, and twice as many pairs do not."""
    meter = TensorMeter(8_000_000)
    metered = replace(predictor, meter=meter)
    count = metered.auto_batch_size()
    assert 2 < count < MAX_PAIRS
    assert meter.peak(lambda: metered.encode(*pairs(count))) < meter.budget
    assert meter.peak(lambda: metered.encode(*pairs(2 * count))) > meter.budget
    assert predictor.auto_batch_size() == 32  # without a meter


def test_answers_do_not_depend_on_the_memory(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = predictor.encode(*pairs(4))
    yes_no = Question("change", "has it changed?", yes_no=True, max_new_tokens=3)
    expected = predictor.answer(encoded, [LONG, yes_no])
    short = replace(predictor, meter=FakeMeter(3 * 60_000))
    rows = short.row_batch_size([LONG, yes_no])
    assert 1 <= rows < 8
    sizes: list[int] = []
    real = Predictor._answer_batch
    monkeypatch.setattr(
        Predictor,
        "_answer_batch",
        lambda self, enc, batch, forms: sizes.append(len(batch)) or real(self, enc, batch, forms),
    )
    replies = short.answer(encoded, [LONG, yes_no])
    assert [[reply.text for reply in row] for row in replies] == [
        [reply.text for reply in row] for row in expected
    ]
    assert max(sizes) == rows


def test_rows_that_do_not_fit_are_halved_and_nothing_is_lost(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = predictor.encode(*pairs(5))
    expected = predictor.answer(encoded, [LONG])
    real, sizes = predictor.model.generate, []

    def short(tokens: torch.Tensor, *args: object, **options: object) -> object:
        sizes.append(len(tokens))
        if len(tokens) > 2:
            raise torch.OutOfMemoryError("no more")
        return real(tokens, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(predictor.model, "generate", short)
    replies = predictor.answer(encoded, [LONG])
    assert [row[0].text for row in replies] == [row[0].text for row in expected]
    assert sizes == [5, 2, 2, 1]


def test_free_memory_of_a_gpu_respects_the_limit_of_the_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the numbers that torch would return on a GPU."""
    gb = 10**9
    for name, value in {
        "mem_get_info": (10 * gb, 80 * gb),
        "memory_allocated": 14 * gb,
        "memory_reserved": 16 * gb,
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    for share, expected in ((1.0, 12 * gb), (0.3, 10 * gb), (0.15, 0)):
        monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda device, share=share: share)
        assert CudaMeter("cuda").free() == pytest.approx(expected)


def test_a_gpu_gets_a_meter_and_a_cpu_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_checkpoint(tmp_path)
    model = load_model(str(tmp_path), device="cpu")
    assert isinstance(model, Predictor)
    assert model.meter is None
    monkeypatch.setattr("deltavlm.model.predictor.resolve_device", lambda runtime: "cuda:1")
    monkeypatch.setattr("deltavlm.model.predictor.plan_device", lambda runtime, hidden: ("cuda:1", "fp32"))
    monkeypatch.setattr("deltavlm.model.predictor.free_memory", lambda device: 10**12)
    real = checkpoint.load
    monkeypatch.setattr(checkpoint, "load", lambda folder, **kwargs: real(folder))
    model = load_model(str(tmp_path), device="cuda:1")
    assert isinstance(model, Predictor)
    assert model.meter == CudaMeter("cuda:1")


def test_encoding_in_steps_equals_encoding_at_once(predictor: Predictor) -> None:
    """A CPU encodes a few pairs at a time."""
    many = 2 * CPU_ENCODE_PAIRS + 3
    sizes: list[int] = []
    hook = predictor.model.vision.register_forward_hook(lambda _, kwargs, __: sizes.append(len(kwargs[0])))
    in_steps = predictor.encode(*pairs(many))
    hook.remove()
    assert sizes == [2 * CPU_ENCODE_PAIRS, 2 * CPU_ENCODE_PAIRS, 2 * 3]  # both dates
    at_once = replace(predictor, meter=FakeMeter(0)).encode(*pairs(many))
    assert len(in_steps) == len(at_once) == many
    torch.testing.assert_close(in_steps.tokens, at_once.tokens, rtol=1e-4, atol=1e-4)
    assert in_steps.mask_logits is not None
    assert at_once.mask_logits is not None
    torch.testing.assert_close(in_steps.mask_logits, at_once.mask_logits, rtol=1e-4, atol=1e-4)
