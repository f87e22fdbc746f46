"""Difference perception: change-aware tokens from the tokens of two dates, with a learned gate.

The cross-semantic relation measuring (CSRM) of DeltaVLM (arXiv 2507.22346), after Tu et al. 2021 (SRDRL).
B batch, N tokens of one date, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltavlm.model.config import DifferenceConfig

MAX_SHIFT = 1  # cells of a map within which the other date is searched for the same ground


def standardize(maps_BCHW: Tensor) -> Tensor:
    """Maps with mean 0 and deviation 1 in every image and channel: light, haze and season change both."""
    return F.instance_norm(maps_BCHW.float(), eps=1e-4).to(maps_BCHW.dtype)


def feature_distance(before_BCHW: Tensor, after_BCHW: Tensor) -> Tensor:
    """Distance (B, 1, H, W) of the maps of two dates, 0 (same direction) to 2, for every cell.

    With u and v the maps of the dates, standardized per image and channel, and N(p) the 3x3 cells around p::

        cos(p, q) = u(p) . v(q) / (|u(p)| |v(q)|)
        d(p)      = max( min_{q in N(p)} 1 - cos(p, q),  min_{q in N(p)} 1 - cos(q, p) )

    Standardizing removes what light and season do to a whole image, the minimum over neighbors a shift
    between the dates of up to a cell, and the worse of both directions shows what is new as well as what is
    gone. In float32.
    """
    u, v = (F.normalize(standardize(x.float()), dim=1) for x in (before_BCHW, after_BCHW))
    rows, cols = u.shape[-2:]
    # replicate: cells beyond the border have their neighbor's features
    u_padded, v_padded = (F.pad(x, [MAX_SHIFT] * 4, mode="replicate") for x in (u, v))
    to_after, to_before = [], []
    for row in range(2 * MAX_SHIFT + 1):
        for col in range(2 * MAX_SHIFT + 1):
            window = (..., slice(row, row + rows), slice(col, col + cols))
            to_after.append((u * v_padded[window]).sum(dim=1))
            to_before.append((v * u_padded[window]).sum(dim=1))
    similarity = torch.minimum(torch.stack(to_after).amax(dim=0), torch.stack(to_before).amax(dim=0))
    return (1 - similarity)[:, None]


class DifferencePerception(nn.Module):
    """Change-aware tokens (B, 2N, D) of both dates, before then after, from tokens (B, N, D) of each.

    With d = after - before, for each date x::

        context = tanh(W_c d + W_c' x)      gate = sigmoid(W_g d + W_g' x)
        out     = W [x ; d ; gate * context]

    Both dates share one set of weights, and d has the same sign for both, as in the released code. (The
    paper has separate weights, and outputs gate * context alone.) Mode "concat" passes both dates unchanged.

    With `config.distances` a linear function of the distances of the tower's `maps` maps (`feature_distance`,
    mean and maximum over a patch) is added to the tokens of both dates.
    """

    def __init__(self, width: int, config: DifferenceConfig, maps: int = 0) -> None:
        super().__init__()
        self.mode = config.mode
        self.distance = nn.Linear(2 * maps, width) if config.distances else None
        self.context1 = nn.Linear(width, width, bias=False)
        self.context2 = nn.Linear(width, width)
        self.gate1 = nn.Linear(width, width, bias=False)
        self.gate2 = nn.Linear(width, width)
        self.context3 = nn.Linear(3 * width, width)
        self.dropout = nn.Dropout(config.dropout)

    def distances(self, maps_2BCHW: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Distances (B, 1, h, w) of the tower's maps, which hold before in their first half and then after;
        empty for a module without them."""
        if self.distance is None:
            return ()
        return tuple(feature_distance(*maps.chunk(2)) for maps in maps_2BCHW)

    def forward(self, before_BND: Tensor, after_BND: Tensor, distances: Sequence[Tensor] = ()) -> Tensor:
        """Tokens (B, 2N, D); `distances` (B, 1, h, w) of each map, if the module has them."""
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
        tokens = torch.cat(dates, dim=1)
        if self.distance is None:
            return tokens
        side = distances[-1].shape[-1]
        pooled = [
            pool(x, x.shape[-1] // side).flatten(2)
            for x in distances
            for pool in (F.avg_pool2d, F.max_pool2d)
        ]
        features = torch.cat(pooled, dim=1).transpose(1, 2).to(tokens.dtype)
        distance: Tensor = self.distance(features)
        return tokens + distance.repeat(1, 2, 1)
