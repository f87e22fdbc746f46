"""Loading of vision-language models with transformers: checks, memory, quantization."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig
from transformers.models.auto import configuration_auto
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from deltavlm.errors import InputError, ModelError, ModelOutOfMemory
from deltavlm.extras import require_package
from deltavlm.files import format_bytes
from deltavlm.hub import Hub
from deltavlm.messages import NOTE, first_line
from deltavlm.model.chat_turns import THINK, chat_turns
from deltavlm.model.config import Decoding, RuntimeOptions
from deltavlm.model.device import DTYPES, pick_dtype, resolve_device
from deltavlm.model.huggingface import source
from deltavlm.model.huggingface.adapters import warn_of_other_base, with_adapter
from deltavlm.model.huggingface.chat_model import ChatModel, chat_text
from deltavlm.model.huggingface.prefix import TESTED_TYPES
from deltavlm.model.huggingface.scores import YesNo
from deltavlm.model.huggingface.source import PlannedSource, Reference
from deltavlm.model.interface import PairContext, Question
from deltavlm.model.memory import CudaMeter, available_memory
from deltavlm.model.quantize import describe, quantize_layer, replace_layers

logger = logging.getLogger(__name__)

MEMORY_FACTOR = 1.15  # of the weights: activations, the cache of a pair, and the libraries
BITS = {"int8": 8, "int4": 5}  # of a quantized weight, on average with the layers that are not
TEST_PX = 64  # side of the blank images that show whether a processor takes two


def load_chat_model(name: str, options: RuntimeOptions) -> ChatModel:
    """Load a model "hf:..." with its adapter.

    Raises: InputError if it cannot be had, is none for two images, needs code that is not trusted, or does
        not fit into memory; ModelError if its files are broken; ModelOutOfMemory on a GPU.
    """
    if options.threads:
        torch.set_num_threads(options.threads)
    hub = Hub.configure(offline=options.offline)
    reference, adapter_reference = source.parse(name)
    if adapter_reference is not None:
        require_package("peft", f"the adapter {adapter_reference.name}")
    planned = source.plan(reference, hub)
    settings = source.read_settings(planned)
    code = _trusted_code(planned, settings, options.trust_remote_code)
    if code:
        planned = source.plan(reference, hub, with_code=True)
    adapter = None if adapter_reference is None else source.plan(adapter_reference, hub)
    device = resolve_device(options)
    dtype = pick_dtype(options.dtype, _hidden(settings), device)
    _check_memory(planned, settings, options, device, dtype)
    folder = source.fetch(planned)
    adapter_folder = None if adapter is None else source.fetch(adapter)
    with quiet(), _loading_errors(reference):
        processor = _load_processor(reference, folder, code)
        model = _load_weights(reference, folder, dtype, code)
    _check_images(reference, processor)
    training: Mapping[str, Any] = {}
    if adapter is not None and adapter_folder is not None:
        training = source.read_training(adapter_folder)
        with quiet():
            model = with_adapter(
                model, adapter.reference, adapter_folder, reference, merge=not options.quantize
            )
        warn_of_other_base(adapter.reference, adapter_folder, training, planned, folder)
    model = _move(model, options, device, reference)
    model.generation_config = _ends(model, processor)
    yes_no = _yes_no(reference, processor)
    kind = str(settings.get("model_type"))
    sources = [(planned, folder)]
    if adapter is not None and adapter_folder is not None:
        sources.append((adapter, adapter_folder))
    uses_prefix = kind in TESTED_TYPES
    label = reference.name if adapter is None else f"{reference.name}+{adapter.reference.name}"
    fingerprint = source.fingerprint(sources)
    if options.calibration is not None:
        options.calibration.check_model(label, fingerprint)
    tells_facts = training.get("tells_facts") is not False
    details = {
        "architecture": kind,
        "dtype": str(dtype).removeprefix("torch."),
        "quantize": describe(options.quantize) if options.quantize else None,
        "revision": planned.commit,
        "adapter": _described(adapter),
        "transformers": metadata.version("transformers"),
        "decoding": asdict(Decoding()),  # greedy
        "encodes_once": uses_prefix,
        "yes_no_scores": bool(yes_no.yes),
        "tells_facts": tells_facts,
        "calibration": None if options.calibration is None else asdict(options.calibration),
    }
    return ChatModel(
        model,
        processor,
        label,
        fingerprint,
        device,
        details,
        yes_no,
        uses_prefix,
        pads=device != "cpu",
        always_reasons=_always_reasons(processor),
        tells_facts=tells_facts,
        calibration=options.calibration,
        meter=CudaMeter(device) if device.startswith("cuda") else None,
    )


def _yes_no(reference: Reference, processor: Any) -> YesNo:
    """Tokens for yes and no; a warning where the tokenizer has none."""
    yes_no = YesNo.of(processor.tokenizer.get_vocab())
    if not yes_no.yes:
        logger.warning(
            "the tokenizer of %s has no tokens for yes and no: answers have no probability", reference.name
        )
    return yes_no


def _described(adapter: PlannedSource | None) -> str | None:
    """Name and commit of an adapter."""
    if adapter is None:
        return None
    return adapter.reference.name if adapter.commit is None else f"{adapter.reference.name}@{adapter.commit}"


def _trusted_code(planned: PlannedSource, settings: Mapping[str, Any], trusted: str | None) -> bool:
    """True if the model needs its own Python code, which is trusted.

    Raises: InputError for an architecture that is no vision-language model, unknown, or needs code that is
        not trusted.
    """
    kind, name = settings.get("model_type"), planned.reference.name
    if kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        return False
    known: Any = configuration_auto
    if kind in known.CONFIG_MAPPING_NAMES:
        raise InputError(
            f"{name} (architecture {kind!r}) does not answer questions about images; give a vision-language"
            " model that takes two images"
        )
    code = settings.get("auto_map")
    if not isinstance(code, dict) or not code:
        raise InputError(
            f"{name} has the architecture {kind!r}, which transformers {metadata.version('transformers')} "
            "does not know; pip install -U transformers, or give another model"
        )
    if planned.commit is None or any("--" in str(target) for target in code.values()):
        raise InputError(
            f"{name} needs Python code of its own, and only code in the repository of a model can be trusted;"
            " give another model"
        )
    pinned = f"{name}@{planned.commit}"
    if trusted != pinned:
        raise InputError(
            f"{name} needs Python code of its own, which would run with your rights; read it at"
            f" https://huggingface.co/{name}/tree/{planned.commit}, then give `trust_remote_code='{pinned}'`"
        )
    return True


def _hidden(settings: Mapping[str, Any]) -> int:
    """Width of the language model."""
    text = settings.get("text_config")
    values = (values.get("hidden_size") for values in (text, settings) if isinstance(values, dict))
    return next((value for value in values if isinstance(value, int)), 4096)


def _check_memory(
    planned: PlannedSource,
    settings: Mapping[str, Any],
    options: RuntimeOptions,
    device: str,
    dtype: torch.dtype,
) -> None:
    """Log the memory that the model needs. Raises: InputError if it is not there."""
    text = settings.get("text_config")
    nested = text if isinstance(text, dict) else {}
    stored = settings.get("dtype") or settings.get("torch_dtype") or nested.get("dtype") or "bfloat16"
    stored_bytes = getattr(torch, str(stored), torch.bfloat16).itemsize
    size = planned.weights_bytes * dtype.itemsize / stored_bytes
    if options.quantize:
        size = planned.weights_bytes / stored_bytes * BITS[options.quantize] / 8
    needed = int(size * MEMORY_FACTOR)
    free = CudaMeter(device).free() if device.startswith("cuda") else available_memory()
    name = next(key for key, value in DTYPES.items() if value == dtype)
    where = "the GPU" if device.startswith("cuda") else "memory"
    logger.log(
        NOTE,
        "%s needs about %s in %s; %s free",
        planned.reference.name,
        format_bytes(needed),
        where,
        format_bytes(free) if free is not None else "unknown",
    )
    if free is not None and needed > free:
        smaller = " `dtype='bf16'`," if dtype == torch.float32 and stored_bytes < 4 else ""
        raise InputError(
            f"{planned.reference.name} needs about {format_bytes(needed)} in {where} ({name}), and"
            f" {format_bytes(free)} are free; try{smaller} `quantize='int8'` or int4, or a smaller model"
        )


def _load_processor(reference: Reference, folder: Path, code: bool) -> Any:
    """Processor with a chat template. Raises: InputError if it takes no images or has none."""
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=code)  # type: ignore[no-untyped-call]
    if not hasattr(processor, "image_processor") or not hasattr(processor, "tokenizer"):
        raise InputError(
            f"{reference.name} has no processor for images; give a vision-language model that takes two"
            " images"
        )
    if not getattr(processor, "chat_template", None) and not getattr(
        processor.tokenizer, "chat_template", None
    ):
        raise InputError(
            f"{reference.name} has no chat template, so it was not taught to follow instructions; give an"
            " instruction-tuned model"
        )
    processor.tokenizer.padding_side = "left"
    if processor.tokenizer.pad_token_id is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    return processor


def _load_weights(reference: Reference, folder: Path, dtype: torch.dtype, code: bool) -> Any:
    """Model with all its weights on the CPU. Raises: ModelError if some are missing."""
    loaded: Any = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=dtype, trust_remote_code=code, use_safetensors=True, output_loading_info=True
    )
    model, report = loaded
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelError(
            f"{reference.name} lacks {len(missing)} tensors, such as {missing[0]}; copy or fetch the model"
            " again"
        )
    return model.eval()


def _check_images(reference: Reference, processor: Any) -> None:
    """Raises: InputError if a conversation with two images is not formatted with both."""
    one, two = ([{"role": "user", "content": [{"type": "image"}] * count}] for count in (1, 2))
    blank = [Image.new("RGB", (TEST_PX, TEST_PX))] * 2
    token = getattr(processor, "image_token", None)
    try:
        texts = [processor.apply_chat_template(turns, tokenize=False) for turns in (one, two)]
        first, second = (text.count(token) if token else len(text) for text in texts)
        if second < 2 * first if token else second == first:
            raise InputError(f"{reference.name} takes one image only; give a model that takes two images")
        processor(text=[texts[1]], images=[blank], return_tensors="pt")
    except InputError:
        raise
    except Exception as error:  # each processor and template has its own
        raise InputError(
            f"{reference.name} takes no conversation with two images ({first_line(error)}); give a model that"
            " takes two images"
        ) from error


def _always_reasons(processor: Any) -> bool:
    """True if the chat template begins the reasoning of every answer, although it is asked not to."""
    turns = chat_turns(PairContext(), Question("", ""))
    return chat_text(processor, turns).rstrip().endswith(THINK)


def _move(model: Any, options: RuntimeOptions, device: str, reference: Reference) -> Any:
    """Model on the device, its language model quantized if asked for."""
    try:
        if options.quantize:
            decoder = model.get_decoder()
            for name, module in linear_layers(decoder).items():
                layer = quantize_layer(module.weight.data, options.quantize, device, module.bias)
                replace_layers(decoder, {f"{name}.weight": layer})
        return model.to(device)
    except torch.OutOfMemoryError as error:
        raise ModelOutOfMemory(
            f"{reference.name} does not fit on {device}; try `quantize='int8'` or int4, or `device='cpu'`"
        ) from error


def linear_layers(decoder: torch.nn.Module) -> dict[str, torch.nn.Linear]:
    """Linear layers by name inside the blocks of a language model, those of adapters left out."""
    return {
        name: module
        for name, module in decoder.named_modules()
        if name.startswith("layers.") and type(module) is torch.nn.Linear and "lora_" not in name
    }


def _ends(model: Any, processor: Any) -> GenerationConfig:
    """Settings of greedy decoding with the tokens that end an answer; nothing else of the model's own."""
    ends = model.generation_config.eos_token_id
    ends = processor.tokenizer.eos_token_id if ends is None else ends
    pad = processor.tokenizer.pad_token_id
    ends = ends if isinstance(ends, list) else [ends]
    return GenerationConfig(  # type: ignore[no-untyped-call]
        eos_token_id=ends, pad_token_id=ends[0] if pad is None else pad, do_sample=False
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Hide the progress bars and warnings of libraries while loading, and the notes of transformers for
    good."""
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    was_enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if was_enabled:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


@contextmanager
def _loading_errors(reference: Reference) -> Iterator[None]:
    """Raise the errors of transformers as InputError or ModelError."""
    try:
        yield
    except (InputError, ModelError, torch.OutOfMemoryError):
        raise
    except MemoryError as error:
        raise ModelOutOfMemory(f"{reference.name} does not fit into memory; give a smaller model") from error
    except ImportError as error:
        raise InputError(f"{reference.name} needs another library: {first_line(error)}") from error
    except Exception as error:  # of its configuration, processor or weights; each has its own
        raise ModelError(
            f"transformers cannot load {reference.name}: {first_line(error)}; copy or fetch the model again,"
            " or give another"
        ) from error
