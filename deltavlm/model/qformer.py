"""Instruction-aware Q-Former: learned queries attend to the question and to both dates' tokens.

B batch (one row per question), T image tokens, D their width, Q queries, S question tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deltavlm.model.config import QFormerConfig


class QFormer(nn.Module):
    """Query outputs (B, Q, hidden) from image tokens (B, T, D) and question ids (B, S).

    With `anchored` = A the first A queries are initialized with the last A image tokens, so that each is
    about one cell of the image from the start and need not learn to attend to it.
    """

    def __init__(self, config: QFormerConfig, image_width: int) -> None:
        super().__init__()
        from transformers import InstructBlipQFormerConfig, InstructBlipQFormerModel

        self.anchored = config.anchored
        if config.anchored and config.hidden != image_width:
            raise ValueError(f"anchored queries need hidden {config.hidden} = image width {image_width}")
        self.query_tokens = nn.Parameter(torch.randn(1, config.queries, config.hidden) * 0.02)
        self.bert = InstructBlipQFormerModel(
            InstructBlipQFormerConfig(
                vocab_size=config.vocab,
                hidden_size=config.hidden,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                intermediate_size=config.intermediate,
                hidden_dropout_prob=config.dropout,
                attention_probs_dropout_prob=config.dropout,
                cross_attention_frequency=config.cross_every,
                encoder_hidden_size=image_width,
            )
        )

    def queries(self, image_BTD: Tensor) -> Tensor:
        """Initial queries, (B, Q, hidden)."""
        queries = self.query_tokens.expand(image_BTD.shape[0], -1, -1)
        if self.anchored:
            start = image_BTD[:, -self.anchored :]
            queries = torch.cat([queries[:, : self.anchored] + start, queries[:, self.anchored :]], dim=1)
        return queries.to(image_BTD.dtype)

    def encode_image(self, image_BTD: Tensor) -> Tensor:
        """Query outputs (B, Q, hidden) without a question, for the losses of training."""
        queries = self.queries(image_BTD)
        outputs: Tensor = self.bert(
            input_ids=None, query_embeds=queries, encoder_hidden_states=image_BTD
        ).last_hidden_state
        return outputs

    def encode_text(self, ids_BS: Tensor, mask_BS: Tensor) -> Tensor:
        """Text outputs (B, S, hidden) without image and queries, for the losses of training."""
        outputs: Tensor = self.bert(input_ids=ids_BS, attention_mask=mask_BS).last_hidden_state
        return outputs

    def forward(self, image_BTD: Tensor, ids_BS: Tensor, mask_BS: Tensor) -> Tensor:
        queries = self.queries(image_BTD)
        query_mask_BQ = mask_BS.new_ones(queries.shape[:2])
        outputs = self.bert(
            input_ids=ids_BS,
            attention_mask=torch.cat([query_mask_BQ, mask_BS], dim=1),
            query_embeds=queries,
            encoder_hidden_states=image_BTD,
        ).last_hidden_state
        soft: Tensor = outputs[:, : queries.shape[1]]
        return soft
