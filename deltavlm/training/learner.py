"""Training objective of a phase: forward pass of a micro-batch to sums of losses by name.

Sums, not means: how many terms each has is known from the batch (`TrainBatch.terms`), so that the mean of a
step is over all of it, and an answer has the same weight whatever the number of processes and micro-batches.

B pairs (N in all processes together), M of them with masks, T image tokens, D their width, Q queries, R rows,
S text tokens, E width of the space in which pairs and captions are compared.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltavlm.model.config import DeltaVLMConfig
from deltavlm.model.deltavlm import IGNORE_INDEX, DeltaVLM, PairFeatures, Text
from deltavlm.training.collate import AnswerBatch, TrainBatch
from deltavlm.training.config import Phase
from deltavlm.training.distributed import world
from deltavlm.training.losses import (
    contrastive_loss,
    density_loss,
    mask_loss,
    same_group,
    sample_hard_negatives,
)

PROJECTION_WIDTH = 256  # of the contrastive space, as in BLIP-2
FALSE_ALARM_GRID = 4  # cells along a side of the smooth random false alarms
LOSSES = ("mask", "density", "words", "contrastive", "matching", "caption", "joint")
"""Sums that are optimized; others are only logged."""


class AlignmentHeads(nn.Module):
    """Projections, temperature and matching head of BLIP-2's losses; not part of the exported model."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pair = nn.Linear(width, PROJECTION_WIDTH)
        self.caption = nn.Linear(width, PROJECTION_WIDTH)
        self.temperature = nn.Parameter(torch.full((1,), 0.07))  # 1-D: FSDP takes no scalars
        self.match = nn.Linear(width, 2)


class Learner(nn.Module):
    """The model with the losses of one phase. `forward`: a `TrainBatch` -> sums of losses by name."""

    def __init__(self, model: DeltaVLM, config: DeltaVLMConfig, phase: Phase) -> None:
        super().__init__()
        self.model, self.phase = model, phase
        self.heads = AlignmentHeads(config.qformer.hidden) if phase.part == "align" else None
        self.evidence_tokens = config.dense.evidence_tokens if config.dense else 0  # the last image tokens

    def forward(self, batch: TrainBatch) -> dict[str, Tensor]:
        normalise = self.model.vision.normalise
        pair = self.model.encode_pair(normalise(batch.before), normalise(batch.after))
        sums: dict[str, Tensor] = {}
        if batch.mask is not None and batch.density is not None:
            assert pair.mask_logits is not None
            assert pair.density is not None
            logits = pair.mask_logits[: len(batch.mask)]
            sums["mask"] = mask_loss(logits, batch.mask, self.phase.class_balance)
            sums["density"] = density_loss(pair.density[: len(batch.mask)], batch.density)
        if batch.answers:
            tokens_BTD = self.augment_evidence(pair)
            sums["words"] = self.phase.words * self.answer_loss(tokens_BTD, batch.answers)
        if batch.caption is not None and batch.caption_group is not None:
            sums |= self.alignment_losses(pair.tokens, batch.caption, batch.caption_group, batch.noise_seed)
        return sums

    def answer_loss(self, tokens_BTD: Tensor, answers: tuple[AnswerBatch, ...]) -> Tensor:
        """Sum of the token losses of all answers; with `balance: root` each divided by the square root of its
        length, so that a "yes" has weight beside a list of cells."""
        sums = []
        for rows in answers:
            tokens_RTD = self.drop_tokens(tokens_BTD[rows.pair_index])
            losses_R = self.model.token_losses(tokens_RTD, rows.question, rows.text, rows.labels).sum(dim=1)
            if self.phase.balance == "root":
                losses_R = losses_R / (rows.labels != IGNORE_INDEX).sum(dim=1).sqrt()
            sums.append(losses_R.sum())
        return torch.stack(sums).sum()

    def augment_evidence(self, pair: PairFeatures) -> Tensor:
        """Image tokens (B, T, D), where the share `evidence_noise` of the pairs has degraded evidence tokens.

        Degraded as on images unlike the training set: masks are less confident, biased, with smooth false
        alarms, and counts too high or too low. The answers stay true, so that the language model learns to
        read a weak mask too.
        """
        if not self.phase.evidence_noise or not self.training or not self.evidence_tokens:
            return pair.tokens
        assert pair.mask_logits is not None
        assert pair.density is not None
        mask, density = pair.mask_logits.float(), pair.density.float()
        pairs, classes, *shape = mask.shape
        uniform = torch.rand(4, pairs, 1, 1, 1, device=mask.device)
        alarms = torch.randn(pairs, classes, FALSE_ALARM_GRID, FALSE_ALARM_GRID, device=mask.device)
        noisy_mask = (0.4 + 0.6 * uniform[1]) * mask
        noisy_mask = noisy_mask + 0.7 * F.interpolate(alarms, size=shape, mode="bilinear")
        noisy_mask[:, :1] += 3 * uniform[2] - 1  # bias of "unchanged"
        noisy_density = density * 2 ** (2 * uniform[3] - 1.2)
        is_degraded = uniform[0] < self.phase.evidence_noise
        evidence = self.model.dense.evidence(  # type: ignore[union-attr]
            torch.where(is_degraded, noisy_mask, mask),
            torch.where(is_degraded, noisy_density, density),
            pair.distances,
        )
        return torch.cat([pair.tokens[:, : -self.evidence_tokens], evidence.to(pair.tokens.dtype)], dim=1)

    def drop_tokens(self, tokens_RTD: Tensor) -> Tensor:
        """Set random image tokens to zero, so that an answer has to rely on both kinds.

        Of the difference tokens in each row another share, between 0 and twice `token_dropout`; of the dense
        head's evidence tokens all ten, in the share `evidence_dropout` of the rows, which then keep all of
        their difference tokens.
        """
        share, hidden_share = self.phase.token_dropout, self.phase.evidence_dropout
        if not self.training or not (share or hidden_share):
            return tokens_RTD
        rows, tokens, _ = tokens_RTD.shape
        device = tokens_RTD.device
        is_hidden = torch.rand(rows, 1, 1, device=device) < hidden_share
        dropped_share = 2 * share * torch.rand(rows, 1, 1, device=device)
        keep = (torch.rand(rows, tokens, 1, device=device) >= dropped_share) | is_hidden
        keep[:, tokens - self.evidence_tokens :] = ~is_hidden
        return tokens_RTD * keep.to(tokens_RTD.dtype)

    def alignment_losses(
        self, tokens_BTD: Tensor, caption: Text, group_B: Tensor, noise_seed: int
    ) -> dict[str, Tensor]:
        """BLIP-2's contrastive and matching losses (arXiv 2301.12597), and the hits of retrieval.

        Contrastive: each pair against the captions of all processes and each caption against their pairs.
        Matching: does a caption fit a pair, with one hard negative caption and one hard negative pair each.
        Captions of one group are no negatives of each other.
        """
        heads, qformer = self.heads, self.model.qformer
        assert heads is not None
        pair_BQE = F.normalize(heads.pair(qformer.encode_image(tokens_BTD)).float(), dim=-1)
        text_BD = qformer.encode_text(caption.ids, caption.mask)[:, 0]
        text_BE = F.normalize(heads.caption(text_BD).float(), dim=-1)
        local, group_N = world.rank_slice(len(group_B)), world.all_gather(group_B)
        pair_NQE, text_NE = world.all_gather(pair_BQE), world.all_gather(text_BE)
        temperature = heads.temperature.clamp(min=0.001)
        to_text_BN = torch.einsum("bqe,ne->bqn", pair_BQE, text_NE).amax(dim=1) / temperature
        to_pair_BN = torch.einsum("be,nqe->bqn", text_BE, pair_NQE).amax(dim=1) / temperature
        positives_BN = same_group(group_B, group_N)
        contrastive = 0.5 * (
            contrastive_loss(to_text_BN, positives_BN) + contrastive_loss(to_pair_BN, positives_BN)
        )

        generator = torch.Generator().manual_seed(noise_seed)
        gumbel = -torch.log(-torch.log(torch.rand(2, len(group_N), len(group_N), generator=generator)))
        gumbel = gumbel[:, local].to(tokens_BTD.device)
        negative_text_B = sample_hard_negatives(to_text_BN, positives_BN, gumbel[0])
        negative_pair_B = sample_hard_negatives(to_pair_BN, positives_BN, gumbel[1])
        ids_NS, mask_NS, tokens_NTD = self._all_gather_inputs(tokens_BTD, caption)
        positive_B = torch.arange(len(ids_NS), device=ids_NS.device)[local]
        pairs = torch.cat([positive_B, positive_B, negative_pair_B])
        texts = torch.cat([positive_B, negative_text_B, positive_B])
        exists = (pairs >= 0) & (texts >= 0)
        targets = (torch.arange(len(pairs), device=pairs.device) < len(positive_B)).long()[exists]
        pairs, texts = pairs[exists], texts[exists]
        outputs = qformer(tokens_NTD[pairs], ids_NS[texts], mask_NS[texts])
        logits = heads.match(outputs).float().mean(dim=1)
        return {
            "contrastive": contrastive,
            "matching": F.cross_entropy(logits, targets, reduction="sum") / 3,
            "recall_at_1": positives_BN.gather(1, to_text_BN.argmax(dim=1, keepdim=True)).sum().float(),
        }

    def _all_gather_inputs(self, tokens_BTD: Tensor, caption: Text) -> tuple[Tensor, Tensor, Tensor]:
        """Caption ids and mask (N, S) and image tokens (N, T, D) of all processes."""
        if world.size == 1:
            return caption.ids, caption.mask, tokens_BTD
        # padded to one length in all processes, then cropped to the longest caption
        padding = self.model.qformer.bert.config.max_position_embeddings - caption.ids.shape[1]
        ids_NS = world.all_gather(F.pad(caption.ids, (0, padding)))
        mask_NS = world.all_gather(F.pad(caption.mask, (0, padding)))
        longest = int(mask_NS.sum(dim=1).max())
        return ids_NS[:, :longest], mask_NS[:, :longest], world.all_gather(tokens_BTD)
