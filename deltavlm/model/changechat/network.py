"""Network of ChangeChat: CLIP's vision transformer, a projector of two layers, and a Llama.

N images, P patches of an image, W width of the tower, D width of the language model, S tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModel

from deltavlm.model.changechat.config import ChangeChatConfig
from deltavlm.model.language import llama

POSITIONS = "vision.embeddings.position_embedding.weight"  # table for images of `image_px`


class Projector(nn.Module):
    """Two linear layers from features of the tower to embeddings of the language model."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(width, hidden)
        self.linear_2 = nn.Linear(hidden, hidden)

    def forward(self, features_NPW: Tensor) -> Tensor:
        """(N, P, D)."""
        projected: Tensor = self.linear_2(F.gelu(self.linear_1(features_NPW)))
        return projected


class ChangeChatNetwork(nn.Module):
    """Modules of ChangeChat; no marker tells the dates apart but their order in the prompt."""

    def __init__(self, config: ChangeChatConfig) -> None:
        super().__init__()
        self.config = config
        tower = config.tower
        vision = CLIPVisionModel(
            CLIPVisionConfig(
                hidden_size=tower.width,
                intermediate_size=tower.intermediate,
                num_hidden_layers=tower.layers,
                num_attention_heads=tower.heads,
                image_size=config.image_px,
                patch_size=tower.patch_px,
                hidden_act=tower.activation,
                layer_norm_eps=tower.norm_eps,
            )
        )
        self.vision = getattr(vision, "vision_model", vision)  # inside of it before transformers 5.20
        self.projector = Projector(tower.width, config.language.hidden)
        self.language = llama(config.language)

    def features(self, pixels_N3HW: Tensor) -> Tensor:
        """Features (N, P, W) of normalised images: of a layer before the last, without its output norm and
        without the class token."""
        states = self.vision(pixel_values=pixels_N3HW, output_hidden_states=True).hidden_states
        features: Tensor = states[self.config.feature_layer][:, 1:]
        return features

    def image_tokens(self, pixels_N3HW: Tensor) -> Tensor:
        """Embeddings (N, P, D) of normalised images."""
        tokens: Tensor = self.projector(self.features(pixels_N3HW))
        return tokens

    def embed(self, texts: Sequence[Sequence[int]], images_2PD: Tensor) -> Tensor:
        """Embeddings (1, S, D) of token ids before, between and (if given) after the two images."""
        table = self.language.get_input_embeddings()
        embedded = [
            table(torch.tensor(ids, dtype=torch.long, device=images_2PD.device)).to(images_2PD.dtype)
            for ids in texts
        ]
        before, between, *after = embedded
        return torch.cat([before, images_2PD[0], between, images_2PD[1], *after])[None]
