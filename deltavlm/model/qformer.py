"""The instruction-guided Q-Former: learned queries read the question and look at both dates' tokens.

B batch (one row a question), T image tokens, D their width, Q queries, S question tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deltavlm.model.config import QFormerConfig


class QFormer(nn.Module):
    """Image tokens (B, T, D) and question ids (B, S) -> what the queries found, (B, Q, hidden).

    With `anchored` = A the first A queries start from the last A image tokens, so that a query is about
    one cell of the picture from the outset and need not learn to look there.
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
        """The queries (B, Q, hidden) as they start."""
        queries = self.query_tokens.expand(len(image_BTD), -1, -1)
        if self.anchored:
            start = image_BTD[:, -self.anchored :]
            queries = torch.cat([queries[:, : self.anchored] + start, queries[:, self.anchored :]], dim=1)
        return queries.to(image_BTD.dtype)

    def encode_image(self, image_BTD: Tensor) -> Tensor:
        """What the queries find when nothing is asked, (B, Q, hidden): pairs without text, for training."""
        queries = self.queries(image_BTD)
        found: Tensor = self.bert(
            input_ids=None, query_embeds=queries, encoder_hidden_states=image_BTD
        ).last_hidden_state
        return found

    def encode_text(self, ids_BS: Tensor, mask_BS: Tensor) -> Tensor:
        """Text alone, (B, S, hidden): no picture and no queries, for training."""
        found: Tensor = self.bert(input_ids=ids_BS, attention_mask=mask_BS).last_hidden_state
        return found

    def forward(self, image_BTD: Tensor, ids_BS: Tensor, mask_BS: Tensor) -> Tensor:
        queries = self.queries(image_BTD)
        seen = mask_BS.new_ones(queries.shape[:2])
        found = self.bert(
            input_ids=ids_BS,
            attention_mask=torch.cat([seen, mask_BS], dim=1),
            query_embeds=queries,
            encoder_hidden_states=image_BTD,
        ).last_hidden_state
        soft: Tensor = found[:, : queries.shape[1]]
        return soft
