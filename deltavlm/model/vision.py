"""Vision encoder: tokens of one date's image; both dates share its weights.

B batch, H W pixels, N tokens (prefix tokens first, then patches row by row), D width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltavlm.model.config import EFFICIENTNET_CHANNELS, VisionConfig


class Residual(nn.Module):
    """Residual block of two 3x3 convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu_(self.norm1(self.conv1(x)))
        return F.relu_(x + self.norm2(self.conv2(y)))


class Down(nn.Module):
    """Strided convolution: half the resolution, more channels."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu_(self.norm(self.conv(x)))


class ConvTower(nn.Module):
    """Residual convolutions down to one token per 16 px patch, then a few transformer blocks over all tokens.

    Convolutions learn edges and roofs from scratch in minutes on a CPU, where a plain ViT of this size
    does not.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        from timm.models.vision_transformer import Block

        channels = config.stem
        self.stem = nn.Conv2d(12, channels, 3, padding=1, bias=False)  # 2x2 pixels folded into 12 channels
        self.stem_norm = nn.BatchNorm2d(channels)
        layers: list[nn.Module] = []
        for out, blocks in config.stages:
            layers.append(Down(channels, out))
            layers += [Residual(out) for _ in range(blocks)]
            channels = out
        layers.append(Down(channels, config.width))
        self.stages = nn.Sequential(*layers)
        self.pos_embed = nn.Parameter(torch.randn(1, config.grid, config.grid, config.width) * 0.02)
        self.blocks = nn.ModuleList(
            Block(config.width, config.heads, mlp_ratio=config.mlp_ratio, qkv_bias=True)
            for _ in range(config.depth)
        )

    def forward_features(self, images_B3HW: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Tokens (B, N, D) and the maps (B, C, h, w) of every stage, finest first."""
        x = F.pixel_unshuffle(images_B3HW, 2).contiguous(memory_format=torch.channels_last)
        x = F.relu_(self.stem_norm(self.stem(x)))
        maps: list[Tensor] = []
        for layer in self.stages:
            if isinstance(layer, Down) and layer is not self.stages[0]:
                maps.append(x)
            x = layer(x)
        rows, cols = x.shape[-2:]
        x = x.permute(0, 2, 3, 1) + self.pos_embed[:, :rows, :cols]
        x_BND = x.flatten(1, 2)
        for block in self.blocks:
            x_BND = block(x_BND)
        return x_BND, tuple(maps)


class EfficientNetTower(nn.Module):
    """EfficientNet-Lite0 cut at stride 16, and one token per cell of its last map.

    The encoder (stem and the first five of seven stages, 0.7 M parameters; Tan and Le 2019, arXiv 1905.11946,
    without squeeze-and-excitation, ReLU6 instead of SiLU) is pretrained and stays frozen: see
    `training.pretrained`. Stages of stride 32 are left out: their features tell a ploughed field from a green
    one as they tell a house from a field.
    """

    STAGES = 5
    CPU_IMAGES = 16  # that a frozen encoder takes at once on a CPU, where more are slower

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        import timm

        net: Any = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        self.encoder = nn.ModuleDict(
            {"conv_stem": net.conv_stem, "bn1": net.bn1, "blocks": net.blocks[: self.STAGES]}
        )
        self.projection = nn.Linear(EFFICIENTNET_CHANNELS[-1], config.width)
        self.pos_embed = nn.Parameter(torch.randn(1, config.grid, config.grid, config.width) * 0.02)

    def forward_features(self, images_B3HW: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Tokens (B, N, D) and maps (B, C, h, w) at strides 4, 8 and 16."""
        is_frozen_on_cpu = images_B3HW.device.type == "cpu" and not self.encoder.training
        if is_frozen_on_cpu and len(images_B3HW) > self.CPU_IMAGES:
            parts = [self.encode(part) for part in torch.split(images_B3HW, self.CPU_IMAGES)]
            maps = tuple(torch.cat(levels) for levels in zip(*parts, strict=True))
        else:
            maps = self.encode(images_B3HW)
        x = maps[-1]
        rows, cols = x.shape[-2:]
        tokens = self.projection(x.permute(0, 2, 3, 1)) + self.pos_embed[:, :rows, :cols]
        return tokens.flatten(1, 2), maps

    def encode(self, images_B3HW: Tensor) -> tuple[Tensor, ...]:
        """Maps (B, C, h, w) of the encoder at strides 4, 8 and 16."""
        x = images_B3HW.contiguous(memory_format=torch.channels_last)
        x = self.encoder["bn1"](self.encoder["conv_stem"](x))
        maps: list[Tensor] = []
        for index, stage in enumerate(self.encoder["blocks"].children()):
            x = stage(x)
            if index in (1, 2, 4):  # the last stages of strides 4, 8, 16
                maps.append(x)
        return tuple(maps)


class VisionEncoder(nn.Module):
    """Tower and output norm: tokens (B, N, D) from normalised pixels (B, 3, H, W).

    The convolutional towers also return their maps, for the difference module and the dense head.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        towers: dict[str, Callable[[VisionConfig], nn.Module]] = {
            "conv": ConvTower,
            "efficientnet_lite0": EfficientNetTower,
        }
        self.tower: nn.Module = towers.get(config.tower, eva)(config)
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.register_buffer("mean", torch.tensor(config.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(1, 3, 1, 1), persistent=False)

    def normalise(self, images_B3HW: Tensor) -> Tensor:
        """Normalise uint8 RGB by the encoder's mean and standard deviation, in the dtype of the weights."""
        pixels = (
            images_B3HW.to(torch.float32, copy=True)
            .div_(255)
            .sub_(self.get_buffer("mean"))
            .div_(self.get_buffer("std"))
        )
        return pixels.to(self.norm.weight.dtype)

    def forward(self, images_B3HW: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Tokens (B, N, D) and the tower's maps (B, C, h, w), finest first; an EVA tower has none."""
        if isinstance(self.tower, ConvTower | EfficientNetTower):
            tokens, maps = self.tower.forward_features(images_B3HW)
            return self.norm(tokens), maps
        return self.norm(self.tower.forward_features(images_B3HW)), ()  # type: ignore[operator]


def eva(config: VisionConfig) -> nn.Module:
    """EVA-ViT of timm at the sizes of the configuration, without head and final norm."""
    import timm

    return timm.create_model(
        config.tower,
        pretrained=False,
        num_classes=0,
        img_size=config.image_px,
        patch_size=config.patch_px,
        embed_dim=config.width,
        depth=config.depth,
        num_heads=config.heads,
        mlp_ratio=config.mlp_ratio,
        use_post_transformer_norm=False,
    )
