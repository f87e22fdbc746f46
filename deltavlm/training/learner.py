"""What a phase learns: masks, words, or which caption belongs to which pair.

A `TrainBatch` is a batch in tensors; a `Learner` turns it into sums of losses. How many terms each sum has is
known from the lesson alone, before anything is computed, so that a step's mean is over all of it: whatever
the number of processes and of pieces, an answer weighs the same.

B pairs (N in all processes together), M of them with masks, T image tokens, D their width, Q queries, R rows,
S text tokens, E width in which pairs and captions are compared.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltavlm.model.config import DeltaVLMConfig
from deltavlm.model.deltavlm import IGNORE_INDEX, DeltaVLM, PairFeatures, Text
from deltavlm.model.tokenizer import Codec
from deltavlm.text_norm import normalise
from deltavlm.training.collate import Rows, collate_rows
from deltavlm.training.config import ASKING, Phase
from deltavlm.training.distributed import world
from deltavlm.training.losses import alike, contrastive_loss, density_loss, hardest, mask_loss
from deltavlm.training.sampling import Batch

SHARED_WIDTH = 256  # in which pairs and captions are compared, as in BLIP-2
ALARMS = 4  # false alarms along a side of a picture, about
LOSSES = ("mask", "density", "words", "contrastive", "matching")  # what is added up; the rest is only told


@dataclass(frozen=True, slots=True)
class TrainBatch:
    """A batch as the learner reads it. `counts`: how many terms each of its sums has."""

    before: Tensor  # (B, 3, P, P) uint8
    after: Tensor
    counts: dict[str, float]
    mask: Tensor | None = None  # (M, ...)
    density: Tensor | None = None
    rows: tuple[Rows, ...] = ()
    caption: Text | None = None  # (B, S)
    group: Tensor | None = None  # (B,) captions with one number say the same
    noise: int = 0

    def to(self, device: torch.device) -> TrainBatch:
        mask, density, group = (
            None if tensor is None else tensor.to(device) for tensor in (self.mask, self.density, self.group)
        )
        return TrainBatch(
            self.before.to(device),
            self.after.to(device),
            self.counts,
            mask,
            density,
            tuple(rows.to(device) for rows in self.rows),
            self.caption.to(device) if self.caption else None,
            group,
            self.noise,
        )


def collate(batch: Batch, phase: Phase, config: DeltaVLMConfig, codecs: tuple[Codec, Codec]) -> TrainBatch:
    """A batch in tensors, with what the phase needs of it."""
    lesson = TrainBatch(torch.from_numpy(batch.before), torch.from_numpy(batch.after), {}, noise=batch.noise)
    counts: dict[str, float] = {}
    if phase.part in ("vision", "joint"):
        there = batch.mask is not None and batch.density is not None
        counts |= dict.fromkeys(("mask", "density"), float(there))
        if batch.mask is not None and batch.density is not None:
            lesson = replace(
                lesson, mask=torch.from_numpy(batch.mask), density=torch.from_numpy(batch.density)
            )
    if phase.part in ASKING:
        rows = tuple(collate_rows(config, codecs, batch.rows))
        by_token = phase.balance == "token"
        counts["words"] = float(sum(one.tokens if by_token else len(one.pairs) for one in rows))
        lesson = replace(lesson, rows=rows)
    if phase.part == "align":
        told = [normalise(rows[0][1]) for rows in batch.rows]
        most = config.qformer.max_text_tokens
        ids = [codecs[0].encode_question(text, most) for text in told]
        # all ways of saying that nothing has changed say the same
        groups = [
            zlib.crc32(text.encode()) if moved else 0 for text, moved in zip(told, batch.changed, strict=True)
        ]
        counts |= dict.fromkeys(("contrastive", "matching", "recall_at_1"), float(len(told)))
        lesson = replace(lesson, caption=codecs[0].pad_batch(ids, "right"), group=torch.tensor(groups))
    return replace(lesson, counts=counts)


class Align(nn.Module):
    """What the contrastive and the matching loss need beside the model; no checkpoint for use holds it."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.pair = nn.Linear(hidden, SHARED_WIDTH)
        self.caption = nn.Linear(hidden, SHARED_WIDTH)
        self.temperature = nn.Parameter(torch.full((1,), 0.07))  # FSDP takes no scalars
        self.match = nn.Linear(hidden, 2)


class Learner(nn.Module):
    """A model and what a phase asks of it: a lesson -> sums of losses by name."""

    def __init__(self, model: DeltaVLM, config: DeltaVLMConfig, phase: Phase) -> None:
        super().__init__()
        self.model, self.phase = model, phase
        self.heads = Align(config.qformer.hidden) if phase.part == "align" else None
        self.evidence = config.dense.evidence_tokens if config.dense else 0  # the last ones

    def forward(self, lesson: TrainBatch) -> dict[str, Tensor]:
        look = self.model.vision.normalise
        pair = self.model.encode_pair(look(lesson.before), look(lesson.after))
        sums: dict[str, Tensor] = {}
        if lesson.mask is not None and lesson.density is not None:
            assert pair.mask_logits is not None
            assert pair.density is not None
            sums["mask"] = mask_loss(pair.mask_logits[: len(lesson.mask)], lesson.mask)
            sums["density"] = density_loss(pair.density[: len(lesson.mask)], lesson.density)
        if lesson.rows:
            sums["words"] = self.phase.words * self.words(self.augment_evidence(pair), lesson.rows)
        if lesson.caption is not None and lesson.group is not None:
            sums |= self.align(pair.tokens, lesson.caption, lesson.group, lesson.noise)
        return sums

    def words(self, tokens_BTD: Tensor, groups: tuple[Rows, ...]) -> Tensor:
        """Sum over all answers, each by its length (phase.balance) or by the root of it."""
        weighed = []
        for rows in groups:
            seen = self.drop_tokens(tokens_BTD[rows.pairs], self.phase.token_dropout)
            told = self.model.token_losses(seen, rows.question, rows.text, rows.labels).sum(dim=1)
            if self.phase.balance == "root":  # a "yes" must not drown in lists of cells
                told = told / (rows.labels != IGNORE_INDEX).sum(dim=1).sqrt()
            weighed.append(told.sum())
        return torch.stack(weighed).sum()

    def augment_evidence(self, pair: PairFeatures) -> Tensor:
        """Tokens (B, T, D), of the share `faint` of the pairs with evidence as strange pictures give it:
        masks less sure of themselves, leaning to one side, with smooth false alarms; counts too high or too
        low. The answers stay what is true, so that words learn to read a faint mask too."""
        if not self.phase.evidence_noise or not self.training or not self.evidence:
            return pair.tokens
        assert pair.mask_logits is not None
        assert pair.density is not None
        mask, density = pair.mask_logits.float(), pair.density.float()
        pairs, classes, *shape = mask.shape
        draw = torch.rand(4, pairs, 1, 1, 1, device=mask.device)
        alarms = torch.randn(pairs, classes, ALARMS, ALARMS, device=mask.device)
        faint = (0.4 + 0.6 * draw[1]) * mask
        faint = faint + 0.7 * F.interpolate(alarms, size=shape, mode="bilinear")
        faint[:, :1] += 3 * draw[2] - 1  # less or more of nothing
        chosen = draw[0] < self.phase.evidence_noise
        evidence = self.model.dense.evidence(  # type: ignore[union-attr]
            torch.where(chosen, faint, mask), torch.where(chosen, density * 2 ** (2 * draw[3] - 1.2), density)
        )
        return torch.cat([pair.tokens[:, : -self.evidence], evidence.to(pair.tokens.dtype)], dim=1)

    def drop_tokens(self, tokens_RTD: Tensor, share: float) -> Tensor:
        """Difference tokens with some set to zero, of each row another part, from none to twice the share;
        the dense head's evidence stays, so that an answer has to rest on both."""
        if not share or not self.training:
            return tokens_RTD
        rows, tokens, _ = tokens_RTD.shape
        device = tokens_RTD.device
        least = 2 * share * torch.rand(rows, 1, 1, device=device)
        keep = torch.rand(rows, tokens, 1, device=device) >= least
        keep[:, tokens - self.evidence :] = True
        return tokens_RTD * keep.to(tokens_RTD.dtype)

    def align(self, tokens_BTD: Tensor, caption: Text, group_B: Tensor, noise: int) -> dict[str, Tensor]:
        """Contrastive loss over all pairs and captions of a step's piece, and whether a caption fits a pair,
        against a likely wrong one both ways. Captions that say the same are no wrong ones."""
        heads, qformer = self.heads, self.model.qformer
        assert heads is not None
        pair_BQE = F.normalize(heads.pair(qformer.encode_image(tokens_BTD)).float(), dim=-1)
        read = qformer.encode_text(caption.ids, caption.mask)[:, 0]
        text_BE = F.normalize(heads.caption(read).float(), dim=-1)
        mine, all_groups = world.own(len(group_B)), world.gathered(group_B)
        pair_NQE, text_NE = world.gathered(pair_BQE), world.gathered(text_BE)
        warmth = heads.temperature.clamp(min=0.001)
        to_text = torch.einsum("bqe,ne->bqn", pair_BQE, text_NE).amax(dim=1) / warmth
        to_pair = torch.einsum("be,nqe->bqn", text_BE, pair_NQE).amax(dim=1) / warmth
        same = alike(group_B, all_groups)
        entropy = 0.5 * (contrastive_loss(to_text, same) + contrastive_loss(to_pair, same))

        draw = torch.Generator().manual_seed(noise)
        gumbel = -torch.log(-torch.log(torch.rand(2, len(all_groups), len(all_groups), generator=draw)))
        gumbel = gumbel[:, mine].to(tokens_BTD.device)
        wrong_text = hardest(to_text, same, gumbel[0])
        wrong_pair = hardest(to_pair, same, gumbel[1])
        ids_NS, mask_NS, tokens_NTD = self._of_all(tokens_BTD, caption)
        known = torch.arange(len(ids_NS), device=ids_NS.device)[mine]
        pairs = torch.cat([known, known, wrong_pair])
        texts = torch.cat([known, wrong_text, known])
        there = (pairs >= 0) & (texts >= 0)
        fits = (torch.arange(len(pairs), device=pairs.device) < len(known)).long()[there]
        found = qformer(tokens_NTD[pairs[there]], ids_NS[texts[there]], mask_NS[texts[there]])
        verdict = heads.match(found).float().mean(dim=1)
        return {
            "contrastive": entropy,
            "matching": F.cross_entropy(verdict, fits, reduction="sum") / 3,
            "recall_at_1": same.gather(1, to_text.argmax(dim=1, keepdim=True)).sum().float(),
        }

    def _of_all(self, tokens_BTD: Tensor, caption: Text) -> tuple[Tensor, Tensor, Tensor]:
        """Captions (N, S) and image tokens (N, T, D) of all processes."""
        room = self.model.qformer.bert.config.max_position_embeddings - caption.ids.shape[1]
        if world.size > 1:  # the same length in every process
            ids = world.gathered(F.pad(caption.ids, (0, room)))
            mask = world.gathered(F.pad(caption.mask, (0, room)))
            longest = int(mask.sum(dim=1).max())
            return ids[:, :longest], mask[:, :longest], world.gathered(tokens_BTD)
        return caption.ids, caption.mask, tokens_BTD
