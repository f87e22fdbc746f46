"""Configuration of ChangeChat: CLIP's vision tower, a projector and a Llama."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from deltavlm.messages import preview
from deltavlm.model.config import DEPTHS, HEADS, WIDTHS, LanguageConfig, check_ranges

TemplateName = Literal["v1", "llava_v1"]


@dataclass(frozen=True, slots=True)
class TowerConfig:
    """Vision transformer of CLIP; the defaults are those of ViT-L/14."""

    width: int = 1024
    layers: int = 24
    heads: int = 16
    intermediate: int = 4096
    patch_px: int = 14
    norm_eps: float = 1e-5
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"

    def __post_init__(self) -> None:
        """Raises: ValueError for a value that no model has."""
        check_ranges(
            self,
            width=WIDTHS,
            layers=DEPTHS,
            heads=HEADS,
            intermediate=WIDTHS,
            patch_px=(1, 4096),
            norm_eps=(0, 1),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeChatConfig:
    """Model configuration; `feature_layer` indexes the tower's hidden states, -2 is its last layer but one.

    The position table of the weights is for `image_px`; `projector` says where the projector's weights come
    from: the base, the adapter, or the name of a file.
    """

    name: str
    language: LanguageConfig
    kind: Literal["changechat"] = "changechat"
    tower: TowerConfig = field(default_factory=TowerConfig)
    image_px: int = 252
    feature_layer: int = -2
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)  # CLIP's
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    template: TemplateName = "v1"
    projector: str = "base"
    chip_px: int = 256
    training_gsd_m: float = 0.5
    sources: dict[str, str] = field(default_factory=dict)  # files that the checkpoint was converted from
    files: dict[str, str] = field(default_factory=dict)  # sha256 of its weight files, by name

    def __post_init__(self) -> None:
        """Raises: ValueError for a value that no model has."""
        check_ranges(
            self,
            image_px=(self.tower.patch_px, 4096),
            feature_layer=(-self.tower.layers - 1, self.tower.layers),
            mean=(-10, 10),
            std=(0.001, 10),
            chip_px=(1, 16_384),
            training_gsd_m=(1e-6, 1e6),
        )
        if not 1 <= len(self.name) <= 100 or not self.name.isprintable():
            raise ValueError(f"name {preview(self.name)} is not one line of up to 100 characters")

    @property
    def image_tokens(self) -> int:
        """Tokens of one image: its patches, without the class token."""
        return int((self.image_px // self.tower.patch_px) ** 2)
