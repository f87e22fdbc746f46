"""The numbers of a DeltaVLM. Sizes nano and 7b differ in these, not in code.

`configs/nano.yaml` and `configs/deltavlm-7b.yaml` hold the two shipped sets; a checkpoint folder holds its
own in `config.json`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from deltavlm.errors import ConfigError
from deltavlm.text_norm import normalise


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """The encoder of one date. `tower` is "conv" (ours, for nano) or the name of a timm vision
    transformer."""

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
    norm_eps: float = 1e-5  # of the output norm; the blocks of EVA-ViT keep their own 1e-6
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)  # CLIP's
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_px // self.patch_px


@dataclass(frozen=True, slots=True)
class DifferenceConfig:
    """`csrm` gates the difference (the paper); `concat` passes both dates on as they are.

    The weights are the same in both, so that a checkpoint can be switched in its config.json.
    """

    mode: Literal["csrm", "concat"] = "csrm"
    dropout: float = 0.5


@dataclass(frozen=True, slots=True)
class DenseConfig:
    """The change mask, four mask pixels along a patch; `counted` classes also get a density whose sum is a
    count."""

    classes: tuple[str, ...]  # the first is "none"
    counted: tuple[str, ...]
    width: int = 64
    evidence: bool = True  # hand cell and scene totals to the Q-Former as ten more tokens
    count_basis: int = 16  # numbers 0..15 that a count is spread over in the evidence

    @property
    def evidence_tokens(self) -> int:
        """The nine cells and the whole."""
        return 10 if self.evidence else 0


@dataclass(frozen=True, slots=True)
class QFormerConfig:
    """BLIP-2's querying transformer with the question beside the queries (InstructBLIP, arXiv 2305.06500)."""

    hidden: int
    layers: int
    heads: int
    intermediate: int
    queries: int
    vocab: int
    cross_every: int = 2
    dropout: float = 0.1
    max_text_tokens: int = 128
    anchored: int = 0  # so many queries start from the last image tokens (the dense head's evidence)


@dataclass(frozen=True, slots=True)
class LanguageConfig:
    """A Llama decoder."""

    hidden: int
    layers: int
    heads: int
    intermediate: int
    vocab: int
    context: int = 4096
    rms_eps: float = 1e-5
    tied: bool = False
    folder: str | None = None  # where its weights are, if not beside the others


@dataclass(frozen=True, slots=True)
class PromptConfig:
    """How a question is worded for the model. `normalise`: lower case, no punctuation, as in training (3.4
    of BLIP's processor)."""

    normalise: bool = False
    prefix: str = ""

    def format(self, prompt: str) -> str:
        """The question as the model reads it, in training and in use."""
        text = normalise(prompt) if self.normalise else prompt
        return text if text.startswith(self.prefix) else self.prefix + text


# As it stands, or as the published model was trained to read it: normalised, behind "q".
PROMPT_STYLES = {"raw": PromptConfig(), "trained": PromptConfig(normalise=True, prefix="q ")}


@dataclass(frozen=True, slots=True)
class Calibration:
    """P(yes) = sigmoid(scale * (logit_yes - logit_no) + offset); fitted on held-out synthetic pairs."""

    scale: float = 1.0
    offset: float = 0.0


@dataclass(frozen=True, slots=True)
class Decoding:
    """How an answer is written: beams (1 is greedy), and how much a token that was written is made less
    likely to be written again (CTRL, arXiv 1909.05858; 1 is not at all)."""

    beams: int = 1
    repetition_penalty: float = 1.0


# The authors' inference, and plain greedy decoding. The penalty is theirs, also where it hurts: in a list of
# cells every "top" makes the next one less likely.
DECODING = {"upstream": Decoding(repetition_penalty=1.5), "fast": Decoding()}


@dataclass(frozen=True, slots=True)
class RuntimeOptions:
    """How a checkpoint is run. What is None is as its configuration says."""

    device: str = "auto"
    threads: int | None = None  # of the CPU
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    decode: Literal["upstream", "fast"] | None = None
    beams: int | None = None
    prompt_style: Literal["raw", "trained"] | None = None
    quantize: Literal["int8", "int4"] | None = None  # the language model's weights

    def apply_to(self, config: DeltaVLMConfig) -> DeltaVLMConfig:
        """The configuration with these wishes in it. Raises: ConfigError where a model does not have them.

        A model that this project trained learnt its words from normalised questions and knows no others; one
        that was made of published files (`sources` names them) has a language model that has read any text.
        """
        decoding, prompt = config.decoding, config.prompt
        if self.decode:
            decoding = replace(DECODING[self.decode], beams=decoding.beams)
        if self.beams:
            decoding = replace(decoding, beams=self.beams)
        if self.prompt_style:
            published = "language" in config.sources
            if prompt == PROMPT_STYLES["trained"] != PROMPT_STYLES[self.prompt_style] and not published:
                raise ConfigError(
                    f"{config.name} was trained on normalised questions alone and never saw a capital letter;"
                    f" leave --prompt-style out"
                )
            prompt = PROMPT_STYLES[self.prompt_style]
        return replace(config, decoding=decoding, prompt=prompt)


@dataclass(frozen=True, slots=True)
class DeltaVLMConfig:
    """Everything that is needed to build the model; weights and tokenizers come beside it."""

    name: str
    vision: VisionConfig
    qformer: QFormerConfig
    language: LanguageConfig
    difference: DifferenceConfig = field(default_factory=DifferenceConfig)
    dense: DenseConfig | None = None
    prompt: PromptConfig = field(default_factory=PromptConfig)
    calibration: Calibration = field(default_factory=Calibration)
    decoding: Decoding = field(default_factory=Decoding)
    chip_px: int = 256
    training_gsd_m: float = 0.5
    sources: dict[str, str] = field(default_factory=dict)  # what a converted checkpoint was made of
    files: dict[str, str] = field(default_factory=dict)  # sha256 of its weights, by file
