"""Chips per second of the full-size architecture with random weights: no download, no real answers.

Each chip is encoded once and asked four questions of ChangeChat's lengths; every answer has a fixed length,
since random weights never generate an end of text. Baseline, in the same run: the published inference flow
with the same modules, one pair and one question at a time, images encoded again for each question, greedy and
with five beams. The greedy answers of both are compared.

    python benchmarks/gpu_7b.py                       # full size, on a GPU
    python benchmarks/gpu_7b.py --size small          # the same code at a thousandth of the size, on a CPU
    python benchmarks/gpu_7b.py --memory-gb 24        # with a limit on torch's allocator
    python benchmarks/gpu_7b.py --memory-gb 12 --quantize int4

On a CPU `--memory-gb` does not limit the memory: batch sizes follow it, and the peak of all tensors is
measured against it.

Prints dated Markdown rows on stdout, messages on stderr. Needs no rasterio and no tokenizer.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # measure this checkout, not an installed copy

import numpy as np  # noqa: E402
import torch  # noqa: E402

from deltavlm.config import load, shipped_config  # noqa: E402
from deltavlm.errors import ModelOutOfMemory  # noqa: E402
from deltavlm.model.config import DECODING, DeltaVLMConfig  # noqa: E402
from deltavlm.model.deltavlm import DeltaVLM, build  # noqa: E402
from deltavlm.model.device import DTYPES, pick_compute_dtype  # noqa: E402
from deltavlm.model.interface import Question  # noqa: E402
from deltavlm.model.memory import CudaMeter, Meter, TensorMeter  # noqa: E402
from deltavlm.model.predictor import Predictor  # noqa: E402
from deltavlm.model.quantize import Kind, check_quantize, tensor_bytes  # noqa: E402
from deltavlm.model.tokenizer import Codec  # noqa: E402
from deltavlm.tasks import caption, classify, count, locate  # noqa: E402

# with the typical lengths of ChangeChat's test answers
QUESTIONS = (
    Question("caption", caption.PROMPT, max_new_tokens=16),
    Question("change", classify.PROMPT, max_new_tokens=2),
    Question("count", count.PROMPT, max_new_tokens=14),
    Question("location", locate.PROMPT, max_new_tokens=32),
)
CHANGED = 0.1  # share of chips that the cascade asks all questions


@dataclass(frozen=True, slots=True)
class Words(Codec):
    """Codec without a vocabulary: 4/3 ids per word, about as many as Llama's tokenizer gives for English."""

    vocab: int

    def encode(self, text: str) -> list[int]:
        ids = [3 + hash_of(word) % (self.vocab - 3) for word in text.split()]
        return ids + ids[: len(ids) // 3]

    def detokenize(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))


def hash_of(word: str) -> int:
    """Hash of a word, equal in every process."""
    return sum(ord(char) * 31**index for index, char in enumerate(word)) % 1_000_003


def small(config: DeltaVLMConfig) -> DeltaVLMConfig:
    """The same architecture with about a thousandth of the parameters."""
    return replace(
        config,
        vision=replace(config.vision, width=128, depth=4, heads=4, image_px=112),
        qformer=replace(config.qformer, hidden=64, layers=4, heads=4, intermediate=128, vocab=999),
        language=replace(config.language, hidden=128, layers=4, heads=4, intermediate=256, vocab=999),
    )


def random_model(
    config: DeltaVLMConfig, dtype: torch.dtype, device: str, seed: int, quantize: Kind | None = None
) -> DeltaVLM:
    """Model with random weights created on the device, small enough that nothing overflows in 16 bit."""
    from deltavlm.model.checkpoint import restore_buffers
    from deltavlm.model.quantize import quantizable, quantize_layer, replace_layers

    with torch.device("meta"):
        model = build(config).to(dtype)
    restore_buffers(model, dtype)
    generator = torch.Generator(device).manual_seed(seed)
    to_quantize, layers = quantizable(model) if quantize else frozenset(), {}
    for name, meta in list(model.named_parameters()):
        tensor = torch.empty(meta.shape, dtype=dtype, device=device)
        if "norm" in name.lower() and name.endswith("weight"):
            tensor.fill_(1.0)
        elif meta.ndim > 1:
            tensor.normal_(0, 0.02, generator=generator)
        else:
            tensor.zero_()
        if quantize and name in to_quantize:
            layers[name] = quantize_layer(tensor.cpu(), quantize, device)
            continue
        owner = model.get_submodule(name.rpartition(".")[0])
        setattr(owner, name.rpartition(".")[2], torch.nn.Parameter(tensor, requires_grad=False))
    replace_layers(model, layers)
    return model.to(device).eval()


def rate(work: Callable[[], int], device: str, seconds: float) -> float:
    """Items per second of `work`, which returns their number; called once to warm up, then for `seconds`."""
    work()
    wait(device)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        count += work()
        wait(device)
    return count / (time.perf_counter() - start)


def processor() -> str:
    """Name of the CPU and number of torch's threads."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    name = models[0] if models else platform.processor()
    return f"{name}, {torch.get_num_threads()} of {os.cpu_count()} cores"


def wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def matmul_flops(dtype: torch.dtype, device: str) -> float:
    """Floating-point operations per second of one large matrix product, the roof of the roofline model."""
    side = 8192 if device.startswith("cuda") else 1024
    a = torch.randn(side, side, device=device).to(dtype)

    def work() -> int:
        torch.mm(a, a)
        return 1

    return 2 * side**3 * rate(work, device, 2.0)


def flops_per_chip(config: DeltaVLMConfig, codec: Codec) -> float:
    """Floating-point operations of the matrix products for one chip with all questions, greedy."""
    v, q, l = config.vision, config.qformer, config.language  # noqa: E741
    n, d = v.grid**2 + 1, v.width
    ff = int(d * v.mlp_ratio)
    image = v.depth * (2 * n * (4 * d * d + 2 * d * ff) + 4 * n * n * d) + 2 * n * 3 * v.patch_px**2 * d
    difference = 2 * 2 * n * 7 * d * d
    cross_layers = q.layers // q.cross_every
    keys = cross_layers * 2 * (2 * n) * 2 * d * q.hidden
    block = l.layers * (4 * l.hidden**2 + 3 * l.hidden * l.intermediate)
    total = 2 * image + difference + keys
    for question in QUESTIONS:
        text = len(codec.encode(question.prompt))
        prompt = q.queries + text + 1
        inner = q.layers * (4 * q.hidden**2 + 2 * q.hidden * q.intermediate) * (q.queries + text)
        total += 2 * inner + cross_layers * q.queries * (4 * q.hidden**2 + 4 * 2 * n * q.hidden)
        steps = question.max_new_tokens - 1
        total += 2 * block * (prompt + steps) + 4 * l.layers * l.hidden * (prompt**2 + steps * prompt)
        total += 2 * l.hidden * l.vocab * (1 + steps)
    return float(total)


def random_images(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return tuple(rng.integers(0, 256, (count, 3, 256, 256), dtype=np.uint8) for _ in range(2))  # type: ignore[return-value]


def upstream_flow(
    predictor: Predictor, before: np.ndarray, after: np.ndarray, beams: int
) -> Callable[[int, Question], str]:
    """The published inference for one question about one pair: both images are encoded again, and
    transformers generates the answer."""
    codec, model = predictor.codec, predictor.model
    language: Any = model.language

    def ask(pair: int, question: Question) -> str:
        with torch.inference_mode():
            encoded = predictor.encode(before[pair : pair + 1], after[pair : pair + 1])
            question_text, text = predictor.tokenize([question.prompt])
            embeds, mask = model.prompt(model.query(encoded.tokens, question_text), text)
            ids = language.generate(
                inputs_embeds=embeds,
                attention_mask=mask,
                max_new_tokens=question.max_new_tokens,
                do_sample=False,
                num_beams=beams,
                repetition_penalty=DECODING["upstream"].repetition_penalty,
                bos_token_id=codec.bos,
                eos_token_id=codec.eos,
                pad_token_id=codec.pad,
            )
        return codec.decode(ids[0].tolist())

    return ask


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=("full", "small"), default="full")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=tuple(DTYPES), help="default: what the device computes in")
    parser.add_argument(
        "--batch",
        nargs="+",
        default=["64"],
        help="chips per batch, or auto; can be several",
    )
    parser.add_argument("--quantize", choices=("int8", "int4"), help="of the language model")
    parser.add_argument("--seconds", type=float, default=15.0, help="of each measurement")
    parser.add_argument("--pairs", type=int, default=8, help="pairs for the published flow")
    parser.add_argument("--memory-gb", type=float, help="memory limit")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    args = parser.parse_args()
    device = args.device
    dtype = DTYPES[args.dtype] if args.dtype else pick_compute_dtype(device)
    if args.memory_gb and device.startswith("cuda"):
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(args.memory_gb * 1e9 / total)
    if args.quantize:
        check_quantize(args.quantize, device)
    config = load(shipped_config("deltavlm-7b.yaml"), DeltaVLMConfig)
    config = config if args.size == "full" else small(config)
    vocab = min(config.language.vocab, config.qformer.vocab)
    codec = Words(pad=0, bos=1, eos=config.language.vocab, start=2, vocab=vocab)  # eos is never generated
    model = random_model(config, dtype, device, seed=0, quantize=args.quantize)
    weight_bytes = tensor_bytes(model)
    meter: Meter | None = None
    if device.startswith("cuda"):
        meter = CudaMeter(device)
    elif args.memory_gb:
        meter = TensorMeter(max(0, int(args.memory_gb * 1e9) - weight_bytes))
    predictor = Predictor(model, config, codec, codec, device, "random", meter=meter)
    results: dict[str, Any] = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "hardware": torch.cuda.get_device_name() if device.startswith("cuda") else processor(),
        "torch": torch.__version__,
        "size": args.size,
        "dtype": next(name for name in DTYPES if DTYPES[name] == dtype)
        + (f", {args.quantize}" if args.quantize else ""),
        "budget_gb": args.memory_gb,
        "weights_gb": weight_bytes / 1e9,
        "language_gb": tensor_bytes(model.language.model.layers) / 1e9,
    }
    print(results, file=sys.stderr)
    roof = matmul_flops(dtype, device)
    flops = flops_per_chip(config, codec)
    results |= {"matmul_tflops": roof / 1e12, "gflop_a_chip": flops / 1e9, "batches": []}
    for size in args.batch:
        batch = predictor.auto_batch_size() if size == "auto" else int(size)
        before, after = random_images(batch, 1)
        try:
            row = measure(predictor, before, after, device, args.seconds)
        except ModelOutOfMemory as error:
            print(f"batch {batch}: {error}", file=sys.stderr)
            continue
        row["rows"] = predictor.row_batch_size(QUESTIONS)
        row |= {"batch": batch, "roofline": row["chips_per_s"] * flops / roof}
        results["batches"].append(row)
        print(row, file=sys.stderr)
    if not results["batches"]:
        sys.exit("no batch fits into the memory")
    before, after = random_images(args.pairs, 1)
    results |= compare(predictor, before, after, device, args.seconds)
    best = max(results["batches"], key=lambda row: row["chips_per_s"])
    results |= {f"times_upstream_{kind}": best["chips_per_s"] / results[f"upstream_{kind}"] for kind in KINDS}
    print_rows(results)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


KINDS = {"greedy": 1, "beam5": 5}


def measure(
    predictor: Predictor, before: np.ndarray, after: np.ndarray, device: str, seconds: float
) -> dict[str, Any]:
    """Chips per second in total, of each stage, and with the cascade; and the peak memory."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    count = len(before)
    encoded = predictor.encode(before, after)

    def run_all() -> int:
        predictor.answer(predictor.encode(before, after), QUESTIONS)
        return count

    def encode() -> int:
        predictor.encode(before, after)
        return count

    def answer(questions: Sequence[Question]) -> Callable[[], int]:
        def work() -> int:
            predictor.answer(encoded, questions)
            return count

        return work

    def cascade() -> int:
        pair_features = predictor.encode(before, after)
        predictor.answer(pair_features, [QUESTIONS[1]])
        changed = list(range(max(1, round(CHANGED * count))))
        predictor.answer(pair_features, [q for q in QUESTIONS if q is not QUESTIONS[1]], changed)
        return count

    row = {"chips_per_s": rate(run_all, device, seconds), "cascade": rate(cascade, device, seconds)}
    row["encode_ms"] = 1000 / rate(encode, device, seconds / 3)
    for question in QUESTIONS:
        row[f"{question.name}_ms"] = 1000 / rate(answer([question]), device, seconds / 3)
    if device.startswith("cuda"):
        row["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
    elif predictor.meter is not None:
        row["peak_gb"] = (tensor_bytes(predictor.model) + predictor.meter.peak(run_all)) / 1e9
    return row


def compare(
    predictor: Predictor, before: np.ndarray, after: np.ndarray, device: str, seconds: float
) -> dict[str, Any]:
    """Chips per second of the published flow, greedy and with beams; number of equal greedy answers."""
    batched = Predictor(
        predictor.model,
        replace(predictor.config, decoding=DECODING["upstream"]),
        *(predictor.questions, predictor.codec, device, "random"),
        meter=predictor.meter,
    )
    replies = batched.answer(batched.encode(before, after), QUESTIONS)
    results: dict[str, Any] = {}
    for kind, beams in KINDS.items():
        ask = upstream_flow(predictor, before, after, beams)
        numbers = itertools.count()

        def ask_all(ask: Callable[[int, Question], str] = ask, numbers: Iterator[int] = numbers) -> int:
            pair = next(numbers) % len(before)
            for question in QUESTIONS:
                ask(pair, question)
            return 1

        results[f"upstream_{kind}"] = rate(ask_all, device, seconds)
    ask = upstream_flow(predictor, before, after, 1)
    is_equal = [
        ask(pair, question) == replies[pair][index].text
        for pair in range(len(before))
        for index, question in enumerate(QUESTIONS)
    ]
    return results | {"equal_answers": sum(is_equal), "compared_answers": len(is_equal)}


def print_rows(results: dict[str, Any]) -> None:
    best = max(results["batches"], key=lambda row: row["chips_per_s"])
    print(
        "| date (UTC) | hardware | torch | size, dtype | batch, rows | chips/s, 4 questions"
        " | with cascade, 10 % changed | share of the roof | weights, of these the LLM's blocks, GB"
        " | peak GB, of a budget of"
        " | upstream flow chips/s, greedy, 5 beams | ratio | equal answers |"
    )
    print("|" + "---|" * 13)
    budget = f"{results['budget_gb']:g}" if results["budget_gb"] else "none"
    print(
        f"| {results['date']} | {results['hardware']} | {results['torch']} "
        f"| {results['size']}, {results['dtype']} "
        f"| {best['batch']}, {best['rows']} | {best['chips_per_s']:.2f} | {best['cascade']:.2f} "
        f"| {best['roofline']:.2f} | {results['weights_gb']:.3g}, {results['language_gb']:.3g} "
        f"| {best.get('peak_gb', float('nan')):.3g} of {budget} "
        f"| {results['upstream_greedy']:.3f}, {results['upstream_beam5']:.3f} "
        f"| **{results['times_upstream_greedy']:.1f}x**, {results['times_upstream_beam5']:.1f}x "
        f"| {results['equal_answers']} of {results['compared_answers']} |"
    )
    stages = ("encode_ms", *(f"{question.name}_ms" for question in QUESTIONS))
    print(
        f"\n| batch | chips/s | cascade | {' | '.join(stages)} (ms a chip) |\n|{'---|' * (3 + len(stages))}"
    )
    for row in results["batches"]:
        cells = " | ".join(f"{row[stage]:.2f}" for stage in stages)
        print(f"| {row['batch']} | {row['chips_per_s']:.2f} | {row['cascade']:.2f} | {cells} |")


if __name__ == "__main__":
    main()
