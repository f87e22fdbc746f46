"""Loading of vision-language models with transformers: checks, memory, quantization."""

from __future__ import annotations

import copy
import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from importlib import metadata
from itertools import chain
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
from deltavlm.model.folder import tensor_slots
from deltavlm.model.footprint import DTYPES as STORED_DTYPES
from deltavlm.model.footprint import Footprint, check_fits
from deltavlm.model.huggingface import source
from deltavlm.model.huggingface.adapters import warn_of_other_base, with_adapter
from deltavlm.model.huggingface.chat_model import ChatModel, chat_text
from deltavlm.model.huggingface.prefix import TESTED_TYPES
from deltavlm.model.huggingface.scores import YesNo
from deltavlm.model.huggingface.sizes import empty_model, linear_layers, read_footprint
from deltavlm.model.huggingface.source import PlannedSource, Reference
from deltavlm.model.interface import PairContext, Question
from deltavlm.model.memory import CudaMeter, free_memory, trim_heap
from deltavlm.model.quantize import Kind, describe, quantize_layer, replace_layers

logger = logging.getLogger(__name__)

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
    footprint = read_footprint(
        reference.name,
        settings,
        planned.weights_bytes,
        device=device,
        dtype=dtype,
        quantize=options.quantize,
        adapter_bytes=adapter.weights_bytes if adapter else 0,
    )
    _check_memory(reference, footprint)
    folder = source.fetch(planned)
    adapter_folder = None if adapter is None else source.fetch(adapter)
    with quiet(), _loading_errors(reference):
        processor = _load_processor(reference, folder, code)
        stored = _stored_dtype(folder, planned, dtype) if options.quantize else dtype
        model = _load_weights(reference, folder, stored, code)
    _check_images(reference, processor)
    training: Mapping[str, Any] = {}
    if adapter is not None and adapter_folder is not None:
        training = source.read_training(adapter_folder)
        with quiet(), _loading_errors(adapter.reference):
            model = with_adapter(
                model, adapter.reference, adapter_folder, reference, merge=not options.quantize
            )
        warn_of_other_base(adapter.reference, adapter_folder, training, planned, folder)
    if options.quantize:
        with quiet(), _loading_errors(reference):
            _quantize(model, options.quantize, dtype, device, reference)
    model = _move(model, device, reference)
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


def _check_memory(reference: Reference, footprint: Footprint) -> None:
    """Log the memory that the model needs. Raises: InputError if it is not there."""
    free = free_memory(footprint.device)
    logger.log(
        NOTE,
        "%s needs about %s in %s; %s free",
        reference.name,
        format_bytes(footprint.needed),
        "the GPU" if footprint.device.startswith("cuda") else "memory",
        format_bytes(free) if free is not None else "unknown",
    )
    check_fits(reference.name, footprint, free)


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


def _stored_dtype(folder: Path, planned: PlannedSource, default: torch.dtype) -> torch.dtype:
    """Dtype of most bytes of the weight files. Raises: ModelError."""
    lengths: Counter[str] = Counter()
    for file in planned.files:
        if file.name.endswith(source.WEIGHTS):
            for slot in tensor_slots(folder / file.name).values():
                lengths[slot.dtype] += slot.length
    named = {STORED_DTYPES[name]: value for name, value in DTYPES.items()}
    known = [named[name] for name, _ in lengths.most_common(1) if name in named]
    return known[0] if known else default


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


def _move(model: Any, device: str, reference: Reference) -> Any:
    """Model on the device."""
    try:
        return model.to(device)
    except torch.OutOfMemoryError as error:
        raise ModelOutOfMemory(
            f"{reference.name} does not fit on {device}; try `quantize='int8'` or int4, or `device='cpu'`"
        ) from error


def _quantize(model: Any, kind: Kind, dtype: torch.dtype, device: str, reference: Reference) -> None:
    """Quantize the language model layer by layer onto the device, and convert everything else to `dtype`.

    The weights are as they are stored, so that on a CPU they are parts of the mapped files: memory holds what
    is quantized so far, and one layer. Raises: InputError where no layer can be quantized.
    """
    decoder = model.get_decoder()
    names = [*linear_layers(decoder)]
    if not names:
        raise InputError(
            f"the language model of {reference.name} has no linear layers to quantize to {kind};"
            " omit `quantize`"
        )
    for name in names:
        module: Any = decoder.get_submodule(name)
        bias = None if module.bias is None else module.bias.data.to(dtype)
        layer = quantize_layer(module.weight.data.to(dtype), kind, device, bias)
        replace_layers(decoder, {f"{name}.weight": layer})
        del module
        trim_heap()
    _convert(model, dtype)


def _convert(model: Any, dtype: torch.dtype) -> None:
    """Convert tensors that were loaded as they are stored to the dtypes that they have in a model of `dtype`;
    those of adapters and of quantized layers stay."""
    config = copy.deepcopy(model.config)
    skeleton = empty_model(config, dtype)
    expected = {
        name: tensor.dtype for name, tensor in chain(skeleton.named_parameters(), skeleton.named_buffers())
    }
    wide = {*(getattr(model, "_keep_in_fp32_modules_strict", None) or ())}
    if dtype == torch.float16:
        wide |= {*(getattr(model, "_keep_in_fp32_modules", None) or ())}
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        wanted = expected.get(name.replace(".base_layer", ""))
        if wanted is not None and wanted.is_floating_point and tensor.is_floating_point():
            is_wide = bool(wide & {*name.split(".")})
            tensor.data = tensor.data.to(torch.float32 if is_wide else wanted)
    for each in (model.config, *(getattr(model.config, name, None) for name in model.config.sub_configs)):
        if each is not None:
            each.dtype = dtype


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
