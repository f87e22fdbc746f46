"""Model configuration (sizes nano and 7b differ only in these values) and runtime options.

`configs/nano.yaml` and `configs/deltavlm-7b.yaml` are the two shipped configurations; a checkpoint folder has
its own in `config.json`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Literal

from deltavlm.errors import ConfigError, InputError
from deltavlm.messages import preview
from deltavlm.text_norm import normalise

EFFICIENTNET_CHANNELS = (24, 40, 112)  # of EfficientNet-Lite0 at strides 4, 8, 16
WIDTHS, DEPTHS, HEADS, VOCABULARY = (1, 65_536), (1, 512), (1, 1024), (1, 2**22)


def check_ranges(owner: object, **ranges: tuple[float, float]) -> None:
    """Check numbers, which a config.json from elsewhere may hold: far beyond every model they only exhaust
    the memory. Raises: ValueError naming the field."""
    for name, (low, high) in ranges.items():
        value = getattr(owner, name)
        for number in value if isinstance(value, tuple) else (value,):
            if not low <= number <= high:  # nor NaN
                raise ValueError(f"{name} is {preview(number)}, not from {low:g} to {high:g}")


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """Vision encoder. `tower` is "efficientnet_lite0" (pretrained; second nano), "conv" (from random weights;
    first nano) or the name of a timm vision transformer."""

    tower: str
    image_px: int
    patch_px: int
    width: int
    depth: int  # transformer blocks
    heads: int
    mlp_ratio: float
    prefix_tokens: int = 0  # class tokens before the patches
    stem: int = 32  # conv tower: channels at half resolution
    stages: tuple[
        tuple[int, int], ...
    ] = ()  # conv tower: (channels, residual blocks) at 1/4, 1/8, ... resolution
    norm_eps: float = 1e-5  # of the output norm; the blocks of EVA-ViT use 1e-6
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)  # CLIP's
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)

    def __post_init__(self) -> None:
        """Raises: ValueError for a value that no model has."""
        check_ranges(
            self,
            image_px=(1, 4096),
            patch_px=(1, self.image_px),
            width=WIDTHS,
            depth=(0, DEPTHS[1]),
            heads=HEADS,
            mlp_ratio=(0.01, 64),
            prefix_tokens=(0, 64),
            stem=WIDTHS,
            norm_eps=(0, 1),
            mean=(-10, 10),
            std=(0.001, 10),
        )
        if not re.fullmatch(r"\w+(\.\w+)?", self.tower, re.ASCII):  # timm would fetch hf-hub:OWNER/NAME
            raise ValueError(f"tower {preview(self.tower)} is neither conv nor the name of a model of timm")
        if self.tower == "efficientnet_lite0" and self.patch_px != 16:
            raise ValueError(f"patch_px is {self.patch_px}, and efficientnet_lite0 makes patches of 16")
        if self.tower != "conv":
            return
        if len(self.stages) > 8 or any(not 1 <= c <= WIDTHS[1] or not 0 <= n <= 512 for c, n in self.stages):
            raise ValueError(f"stages {preview(self.stages)} are not up to 8 of (channels, blocks)")
        if self.patch_px != 4 << len(self.stages):
            raise ValueError(
                f"patch_px is {self.patch_px}, and {len(self.stages)} stages make patches of "
                f"{4 << len(self.stages)}"
            )

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_px // self.patch_px

    @property
    def map_channels(self) -> tuple[int, ...]:
        """Channels of the tower's maps, finest first; empty for a vision transformer."""
        if self.tower == "efficientnet_lite0":
            return EFFICIENTNET_CHANNELS
        return tuple(channels for channels, _ in self.stages)


@dataclass(frozen=True, slots=True)
class DifferenceConfig:
    """Difference module: `csrm` gates the difference (the paper); `concat` passes both dates unchanged.

    The weights are the same in both modes, so that a checkpoint can be switched in its config.json.
    `distances` adds the feature distances of the tower's maps to the tokens and to the dense head.
    """

    mode: Literal["csrm", "concat"] = "csrm"
    dropout: float = 0.5
    distances: bool = False

    def __post_init__(self) -> None:
        """Raises: ValueError for a value that no model has."""
        check_ranges(self, dropout=(0, 1))


@dataclass(frozen=True, slots=True)
class DenseConfig:
    """Dense head: a change mask with four pixels along the side of a patch, and, for `counted` classes, a
    density whose sum is a count.

    `decoder` "tokens" upsamples the difference tokens; "pyramid" reads the tower's maps of both dates.
    """

    classes: tuple[str, ...]  # the first is "none"
    counted: tuple[str, ...]
    width: int = 64
    decoder: Literal["tokens", "pyramid"] = "tokens"
    dropout: float = 0.0  # of the channels that the pyramid reads, in training
    evidence: bool = True  # pass totals per cell and image to the Q-Former as ten more tokens
    count_basis: int = 16  # basis functions at 0..15 that encode a count in the evidence

    def __post_init__(self) -> None:
        """Raises: ValueError for a value that no model has."""
        check_ranges(self, width=WIDTHS, count_basis=(1, 4096), dropout=(0, 1))
        if not 2 <= len(self.classes) <= 64 or len(self.counted) > 64:
            raise ValueError("classes are not 2 to 64 names")

    @property
    def evidence_tokens(self) -> int:
        """One token per cell of the 3x3 grid and one for the image; 0 without evidence."""
        return 10 if self.evidence else 0


@dataclass(frozen=True, slots=True)
class QFormerConfig:
    """Q-Former of BLIP-2 that also reads the question (InstructBLIP, arXiv 2305.06500)."""

    hidden: int
    layers: int
    heads: int
    intermediate: int
    queries: int
    vocab: int
    cross_every: int = 2
    dropout: float = 0.1
    max_text_tokens: int = 128
    anchored: int = 0  # queries that start from the last image tokens (the dense head's evidence)

    def __post_init__(self) -> None:
        """Raises: ValueError for a value that no model has."""
        check_ranges(
            self,
            hidden=WIDTHS,
            layers=DEPTHS,
            heads=HEADS,
            intermediate=WIDTHS,
            queries=(1, 4096),
            vocab=VOCABULARY,
            cross_every=DEPTHS,
            dropout=(0, 1),
            max_text_tokens=(3, 512),  # BERT has 512 positions
            anchored=(0, self.queries),
        )


@dataclass(frozen=True, slots=True)
class LanguageConfig:
    """Llama decoder."""

    hidden: int
    layers: int
    heads: int
    intermediate: int
    vocab: int
    context: int = 4096
    rms_eps: float = 1e-5
    tied: bool = False
    folder: str | None = None  # of its weights, if they are not in the checkpoint folder

    def __post_init__(self) -> None:
        """Raises: ValueError for a value that no model has."""
        check_ranges(
            self,
            hidden=WIDTHS,
            layers=DEPTHS,
            heads=HEADS,
            intermediate=WIDTHS,
            vocab=VOCABULARY,
            context=(1, 2**24),
            rms_eps=(0, 1),
        )


@dataclass(frozen=True, slots=True)
class ScopeConfig:
    """Question scope: a classifier that tells questions which the model was taught to answer from others."""

    buckets: int  # of hashed character n-grams
    width: int  # of an embedded word
    hidden: int

    def __post_init__(self) -> None:
        """Raises: ValueError for a value that no model has."""
        check_ranges(self, buckets=(1, VOCABULARY[1]), width=WIDTHS, hidden=WIDTHS)


@dataclass(frozen=True, slots=True)
class PromptConfig:
    """Prompt format. `normalise` applies `text_norm.normalise`, as in training."""

    normalise: bool = False
    prefix: str = ""

    def format(self, prompt: str) -> str:
        """The question in the format of training and inference."""
        text = normalise(prompt) if self.normalise else prompt
        return text if text.startswith(self.prefix) else self.prefix + text


# "raw" leaves a question as it is; "trained" is the format of the published training.
PROMPT_STYLES = {"raw": PromptConfig(), "trained": PromptConfig(normalise=True, prefix="q ")}


@dataclass(frozen=True, slots=True)
class Calibration:
    """Platt scaling, P(yes) = sigmoid(scale * (logit_yes - logit_no) + offset), fitted on held-out
    synthetic pairs."""

    scale: float = 1.0
    offset: float = 0.0

    def __post_init__(self) -> None:
        """Raises: ValueError for a value that no model has."""
        check_ranges(self, scale=(-1e6, 1e6), offset=(-1e6, 1e6))


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreCalibration:
    """Calibration of one model's score of change to somebody's own chips; `pipeline.calibrate` fits it.

    A chip has changed from `threshold` on, of P(yes) = sigmoid(scale * logit(P(yes) of the model) + offset).
    """

    model: str  # name
    fingerprint: str
    method: Literal["platt", "quantile"]  # fit to labels, or a threshold on chips taken as unchanged
    scale: float
    offset: float
    threshold: float
    changed: int  # chips that it was fitted to
    unchanged: int
    false_alarms: float | None = (
        None  # share of unchanged chips that the threshold lets through, if it was given
    )

    def __post_init__(self) -> None:
        """Raises: ValueError for a value that no fit gives."""
        check_ranges(self, scale=(1e-6, 1e6), offset=(-1e6, 1e6), threshold=(0, 1))

    def check_model(self, name: str, fingerprint: str) -> None:
        """Raises: InputError where the calibration is of another model."""
        if fingerprint != self.fingerprint:
            raise InputError(
                f"the calibration is of {self.model} ({self.fingerprint}), not of {name} ({fingerprint}); "
                "fit another by deltavlm calibrate"
            )

    def after(self, first: Calibration) -> Calibration:
        """Calibration of the margin that is the model's own, `first`, followed by this one."""
        return Calibration(self.scale * first.scale, self.scale * first.offset + self.offset)


@dataclass(frozen=True, slots=True)
class Decoding:
    """Decoding strategy: number of beams (1 is greedy) and repetition penalty (CTRL, arXiv 1909.05858;
    1 is none).

    `consistent` decodes the answers to the standard questions about a pair so that they agree with each
    other (`Question.agrees_with`). Beam search is not constrained.

    `counts` names the part that counts new buildings: the language model, or the mask head, whose density is
    summed. The language model then still says whether there are any, and the form of its answer the number.
    """

    beams: int = 1
    repetition_penalty: float = 1.0
    consistent: bool = False
    counts: Literal["language", "dense"] = "language"

    def __post_init__(self) -> None:
        """Raises: ValueError for a value that cannot be used."""
        check_ranges(self, beams=(1, 64), repetition_penalty=(0.01, 100))

    @property
    def is_plain(self) -> bool:
        """True for greedy decoding without a penalty."""
        return self.beams == 1 and self.repetition_penalty == 1.0

    @property
    def is_constrained(self) -> bool:
        """True if answers are decoded so that they agree."""
        return self.consistent and self.beams == 1


# The authors' inference, and plain greedy decoding. Their penalty also hurts: in a list of cells every "top"
# makes the next one less likely.
DECODING = {"upstream": Decoding(repetition_penalty=1.5), "fast": Decoding()}


@dataclass(frozen=True, slots=True)
class RuntimeOptions:
    """Runtime settings of a checkpoint; None keeps the value of its configuration."""

    device: str = "auto"
    threads: int | None = None  # of the CPU
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    decode: Literal["upstream", "fast"] | None = None
    beams: int | None = None
    prompt_style: Literal["raw", "trained"] | None = None
    quantize: Literal["int8", "int4"] | None = None  # the language model's weights
    calibration: ScoreCalibration | None = None  # of the yes/no score, on top of that of the checkpoint
    runtime: Literal["auto", "torch", "openvino"] = "auto"  # of a checkpoint with graphs, on a CPU
    offline: bool = False  # use only files of the Hub that are in its cache
    trust_remote_code: str | None = None  # OWNER/NAME@COMMIT whose own Python code may run
    requests: int = 4  # at a time, to a server
    timeout_s: float = 300.0  # of a whole reply of a server
    allow_upload: bool = False  # pictures may be sent to a server on another machine

    def apply_to(self, config: DeltaVLMConfig) -> DeltaVLMConfig:
        """Configuration with these settings. Raises: ConfigError for a prompt style that the model does not
        support.

        A model trained by this project learnt from normalised questions only; one that was converted from
        published files (named in `sources`) has a language model pretrained on any text.
        """
        decoding, prompt = config.decoding, config.prompt
        if self.decode:
            decoding = replace(decoding, repetition_penalty=DECODING[self.decode].repetition_penalty)
        if self.beams:
            decoding = replace(decoding, beams=self.beams)
        if self.prompt_style:
            is_published = "language" in config.sources
            if prompt == PROMPT_STYLES["trained"] != PROMPT_STYLES[self.prompt_style] and not is_published:
                raise ConfigError(
                    f"{config.name} was trained on normalised questions only (lower case, no punctuation);"
                    f" omit `prompt_style`"
                )
            prompt = PROMPT_STYLES[self.prompt_style]
        calibration = (
            config.calibration if self.calibration is None else self.calibration.after(config.calibration)
        )
        return replace(config, decoding=decoding, prompt=prompt, calibration=calibration)


@dataclass(frozen=True, slots=True)
class DeltaVLMConfig:
    """Complete model configuration: with weights and tokenizers it makes a checkpoint."""

    name: str
    vision: VisionConfig
    qformer: QFormerConfig
    language: LanguageConfig
    difference: DifferenceConfig = field(default_factory=DifferenceConfig)
    dense: DenseConfig | None = None
    prompt: PromptConfig = field(default_factory=PromptConfig)
    scope: ScopeConfig | None = None  # None: every question is answered
    calibration: Calibration = field(default_factory=Calibration)
    decoding: Decoding = field(default_factory=Decoding)
    chip_px: int = 256
    training_gsd_m: float = 0.5
    sources: dict[str, str] = field(default_factory=dict)  # files that a checkpoint was converted from
    files: dict[str, str] = field(default_factory=dict)  # sha256 of its weight files, by name

    def __post_init__(self) -> None:
        """Raises: ValueError for a value that no model has."""
        check_ranges(self, chip_px=(1, 16_384), training_gsd_m=(1e-6, 1e6))
        if not 1 <= len(self.name) <= 100 or not self.name.isprintable():
            raise ValueError(f"name {preview(self.name)} is not one line of up to 100 characters")
