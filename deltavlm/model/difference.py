"""Difference perception: change-aware tokens from the tokens of two dates, with a learned gate.

The cross-semantic relation measuring (CSRM) of DeltaVLM (arXiv 2507.22346), after Tu et al. 2021 (SRDRL).
B batch, N tokens of one date, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deltavlm.model.config import DifferenceConfig


class DifferencePerception(nn.Module):
    """Change-aware tokens (B, 2N, D) of both dates, before then after, from tokens (B, N, D) of each.

    With d = after - before, for each date x::

        context = tanh(W_c d + W_c' x)      gate = sigmoid(W_g d + W_g' x)
        out     = W [x ; d ; gate * context]

    Both dates share one set of weights, and d has the same sign for both, as in the released code. (The
    paper has separate weights, and outputs gate * context alone.) Mode "concat" passes both dates unchanged.
    """

    def __init__(self, width: int, config: DifferenceConfig) -> None:
        super().__init__()
        self.mode = config.mode
        self.context1 = nn.Linear(width, width, bias=False)
        self.context2 = nn.Linear(width, width)
        self.gate1 = nn.Linear(width, width, bias=False)
        self.gate2 = nn.Linear(width, width)
        self.context3 = nn.Linear(3 * width, width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, before_BND: Tensor, after_BND: Tensor) -> Tensor:
        if self.mode == "concat":
            return torch.cat([before_BND, after_BND], dim=1)
        diff_BND = after_BND - before_BND
        context_d, gate_d = self.context1(diff_BND), self.gate1(diff_BND)  # the same for both dates
        dates = []
        for x_BND in (before_BND, after_BND):
            context = torch.tanh(context_d + self.context2(x_BND))
            gate = torch.sigmoid(gate_d + self.gate2(x_BND))
            relation = self.dropout(gate) * self.dropout(context)
            dates.append(self.context3(torch.cat([x_BND, diff_BND, relation], dim=-1)))
        return torch.cat(dates, dim=1)
