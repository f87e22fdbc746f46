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
WEAK = 0.25  # of the typical squared length of a feature vector, below which a difference hardly counts
MOMENTUM = 0.02  # of the running variance


class Standardize(nn.Module):
    """Maps (B, C, H, W) with mean 0 and about deviation 1 in every image and channel::

        u = (x - mean(x)) / sqrt(var(x) + V)

    mean and var are of an image's channel: light, haze and season change both. V is the channel's variance
    within a typical image, a running mean of training. It keeps what little a bare field or water has small,
    where division by the image's own deviation would enlarge noise.
    """

    running_variance: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("running_variance", torch.zeros(channels))

    def forward(self, maps_BCHW: Tensor) -> Tensor:
        x = maps_BCHW.float()
        variance, mean = torch.var_mean(x, dim=(2, 3), keepdim=True, correction=0)
        if self.training:
            with torch.no_grad():
                typical = variance.mean(dim=(0, 2, 3))
                is_first = not bool(self.running_variance.any())
                self.running_variance.lerp_(
                    typical.to(self.running_variance.dtype), 1.0 if is_first else MOMENTUM
                )
        floor = self.running_variance.float()[:, None, None] + 1e-4
        return ((x - mean) * (variance + floor).rsqrt()).to(maps_BCHW.dtype)


def feature_distance(before_BCHW: Tensor, after_BCHW: Tensor) -> Tensor:
    """Distance (B, 1, H, W) of the standardized maps of two dates, 0 (same direction) to 2, for every cell.

    With u and v the maps of the dates, N(p) the 3x3 cells around p, C channels and e = C * WEAK::

        cos(p, q) = (u(p) . v(q) + e) / (|u(p)| |v(q)| + e)
        d(p)      = max( min_{q in N(p)} 1 - cos(p, q),  min_{q in N(p)} 1 - cos(q, p) )

    e makes two weak features alike, whatever their direction; the minimum over neighbors removes a shift
    between the dates of up to a cell, and the worse of both directions shows what is new as well as what is
    gone. In float32.
    """
    u, v = before_BCHW.float(), after_BCHW.float()
    rows, cols = u.shape[-2:]
    weak = WEAK * u.shape[1]
    # replicate: cells beyond the border have their neighbor's features
    u_padded, v_padded = (F.pad(x, [MAX_SHIFT] * 4, mode="replicate") for x in (u, v))
    u_length, v_length = u.norm(dim=1), v.norm(dim=1)
    u_lengths, v_lengths = (x.norm(dim=1) for x in (u_padded, v_padded))
    to_after, to_before = [], []
    for row in range(2 * MAX_SHIFT + 1):
        for col in range(2 * MAX_SHIFT + 1):
            window = (..., slice(row, row + rows), slice(col, col + cols))
            to_after.append(
                ((u * v_padded[window]).sum(dim=1) + weak) / (u_length * v_lengths[window] + weak)
            )
            to_before.append(
                ((v * u_padded[window]).sum(dim=1) + weak) / (v_length * u_lengths[window] + weak)
            )
    similarity = torch.minimum(torch.stack(to_after).amax(dim=0), torch.stack(to_before).amax(dim=0))
    return (1 - similarity)[:, None]


def both_dates(maps_2BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Maps (B, C, H, W) of before and of after."""
    before, after = maps_2BCHW.reshape(2, -1, *maps_2BCHW.shape[1:]).unbind(0)
    return before, after


class DifferencePerception(nn.Module):
    """Change-aware tokens (B, 2N, D) of both dates, before then after, from tokens (B, N, D) of each.

    With d = after - before, for each date x::

        context = tanh(W_c d + W_c' x)      gate = sigmoid(W_g d + W_g' x)
        out     = W [x ; d ; gate * context]

    Both dates share one set of weights, and d has the same sign for both, as in the released code. (The
    paper has separate weights, and outputs gate * context alone.) Mode "concat" passes both dates unchanged.

    With `config.distances` a linear function of the distances of the tower's maps, which have `channels`
    channels (`feature_distance`, mean and maximum over a patch), is added to the tokens of both dates.
    """

    def __init__(self, width: int, config: DifferenceConfig, channels: Sequence[int] = ()) -> None:
        super().__init__()
        self.mode = config.mode
        self.distance = nn.Linear(2 * len(channels), width) if config.distances else None
        self.standardize = nn.ModuleList(Standardize(count) for count in channels if config.distances)
        self.context1 = nn.Linear(width, width, bias=False)
        self.context2 = nn.Linear(width, width)
        self.gate1 = nn.Linear(width, width, bias=False)
        self.gate2 = nn.Linear(width, width)
        self.context3 = nn.Linear(3 * width, width)
        self.dropout = nn.Dropout(config.dropout)

    def compare(self, maps_2BCHW: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Standardized maps of both dates, and their distances (B, 1, h, w); maps as they are and no
        distances for a module without them.

        maps_2BCHW: of the tower, with before in their first half and then after.
        """
        if self.distance is None:
            return tuple(maps_2BCHW), ()
        maps = tuple(standardize(x) for standardize, x in zip(self.standardize, maps_2BCHW, strict=True))
        return maps, tuple(feature_distance(*both_dates(x)) for x in maps)

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
