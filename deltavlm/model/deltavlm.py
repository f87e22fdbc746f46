"""DeltaVLM (arXiv 2507.22346): two dates of a place and a question in, an answer out.

    before, after -> VisionEncoder -> DifferencePerception -> [DenseHead] -> QFormer(question) -> Linear ->
    Llama

`encode_pair` holds no question and is paid once a pair; `query` holds one. `loss` and `generate` both go
through these two, so that training and use can never see different features.

B pairs, R rows (one a question), T image tokens, D vision width, Q queries, S text tokens, L language width.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltavlm.model.config import DeltaVLMConfig
from deltavlm.model.dense import DenseHead
from deltavlm.model.difference import DifferencePerception
from deltavlm.model.language import cache_argument, llama
from deltavlm.model.qformer import QFormer
from deltavlm.model.vision import VisionEncoder

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

IGNORE_INDEX = -100  # label of a position that carries no loss


@dataclass(frozen=True, slots=True)
class PairFeatures:
    """What is known of B pairs before any question."""

    tokens: Tensor  # (B, T, D)
    mask_logits: Tensor | None = None  # (B, C, rows, cols)
    density: Tensor | None = None  # (B, K, G, G)

    def __len__(self) -> int:
        return len(self.tokens)

    @classmethod
    def concat(cls, parts: Sequence[PairFeatures]) -> PairFeatures:
        """One batch of several, of which all or none have masks."""
        if len(parts) == 1:
            return parts[0]

        def cat(tensors: Sequence[Tensor | None]) -> Tensor | None:
            there = [x for x in tensors if x is not None]
            return torch.cat(there) if there else None

        tokens = torch.cat([part.tokens for part in parts])
        return cls(tokens, cat([part.mask_logits for part in parts]), cat([part.density for part in parts]))

    def to(self, dtype: torch.dtype) -> PairFeatures:
        mask, density = (None if x is None else x.to(dtype) for x in (self.mask_logits, self.density))
        return PairFeatures(self.tokens.to(dtype), mask, density)


@dataclass(frozen=True, slots=True)
class Text:
    """A padded batch of token ids with 1 where a token is real."""

    ids: Tensor  # (R, S)
    mask: Tensor  # (R, S)

    def to(self, device: str | torch.device) -> Text:
        return Text(self.ids.to(device), self.mask.to(device))


@dataclass(frozen=True, slots=True)
class Generation:
    """What was answered to R rows, in at most N tokens."""

    ids: Tensor  # (R, N), padded behind an answer's end
    log_probs: Tensor  # (R, N) log-probability of each, 0 on padding
    first_logits: Tensor  # (R, vocabulary) float32 logits of the first token, before any penalty


class DeltaVLM(nn.Module):
    """The whole model. Its parts are made outside and handed in; `build` makes them from numbers."""

    def __init__(
        self,
        vision: VisionEncoder,
        difference: DifferencePerception,
        dense: DenseHead | None,
        qformer: QFormer,
        projection: nn.Linear,
        language: LlamaForCausalLM,
    ) -> None:
        super().__init__()
        self.vision = vision
        self.difference = difference
        self.dense = dense
        self.qformer = qformer
        self.projection = projection
        self.language = language

    def encode_pair(self, before_B3HW: Tensor, after_B3HW: Tensor) -> PairFeatures:
        """Normalised pixels of both dates -> features without a question."""
        both, maps = self.vision(torch.cat([before_B3HW, after_B3HW]))
        before_BND, after_BND = both.chunk(2)
        tokens = self.difference(before_BND, after_BND)
        if self.dense is None:
            return PairFeatures(tokens)
        prefix = self.vision.config.prefix_tokens
        halves = [half[:, prefix:] for half in tokens.chunk(2, dim=1)]
        mask_logits, density = self.dense(
            torch.cat(halves, dim=2), [torch.cat(m.chunk(2), dim=1) for m in maps]
        )
        if self.dense.config.evidence:
            tokens = torch.cat([tokens, self.dense.evidence(mask_logits, density).to(tokens.dtype)], dim=1)
        return PairFeatures(tokens, mask_logits, density)

    def query(self, tokens_RTD: Tensor, question: Text) -> Tensor:
        """Image tokens, a row for each question, and the questions -> soft prompt (R, Q, L)."""
        soft: Tensor = self.projection(self.qformer(tokens_RTD, question.ids, question.mask))
        return soft

    def prompt(self, soft_RQL: Tensor, text: Text) -> tuple[Tensor, Tensor]:
        """Embeddings [soft prompt ; text] and their attention mask, for the language model."""
        words = self.language.get_input_embeddings()(text.ids)
        seen = text.mask.new_ones(soft_RQL.shape[:2])
        return torch.cat([soft_RQL.to(words.dtype), words], dim=1), torch.cat([seen, text.mask], dim=1)

    def token_losses(self, tokens_RTD: Tensor, question: Text, text: Text, labels_RS: Tensor) -> Tensor:
        """Cross-entropy of each answer token (R, S), 0 elsewhere; `text` is question and answer,
        right-padded, `labels` are IGNORE_INDEX outside the answer."""
        embeds, mask = self.prompt(self.query(tokens_RTD, question), text)
        hidden = self.language.model(
            inputs_embeds=embeds, attention_mask=mask, use_cache=False
        ).last_hidden_state
        told = hidden[:, -labels_RS.shape[1] - 1 : -1]  # the state before each text token predicts it
        wanted = labels_RS != IGNORE_INDEX
        logits = self.language.lm_head(told[wanted])
        losses = torch.zeros(labels_RS.shape, device=logits.device)
        losses[wanted] = F.cross_entropy(logits.float(), labels_RS[wanted], reduction="none")
        return losses

    def loss(self, tokens_RTD: Tensor, question: Text, text: Text, labels_RS: Tensor) -> Tensor:
        """Mean cross-entropy over all answer tokens, as the published model was trained with."""
        return (
            self.token_losses(tokens_RTD, question, text, labels_RS).sum() / (labels_RS != IGNORE_INDEX).sum()
        )

    def set_attention(self, kind: Literal["eager", "sdpa"]) -> None:
        """How attention is computed. "eager" trains several times faster on a CPU in bf16; "sdpa" is best
        on a GPU."""
        self.language.set_attn_implementation(kind)
        self.qformer.bert.set_attn_implementation(kind)
        for module in self.vision.modules():
            if hasattr(module, "fused_attn"):
                module.fused_attn = kind == "sdpa"  # type: ignore[assignment]

    @torch.inference_mode()
    def generate(
        self,
        tokens_RTD: Tensor,
        question: Text,
        text: Text,
        *,
        max_new_tokens: int,
        bos: int,
        eos: int,
        pad: int,
        beams: int = 1,
        repetition_penalty: float = 1.0,
        whole_RK: Tensor | None = None,
    ) -> Generation:
        """Answers to R rows; the prompt is read once, for the first logits and the words alike.

        `text` is padded on the left. Greedy unless `beams` is above 1. `repetition_penalty` makes what an
        answer has said already less likely; it does not look at the prompt. `whole_RK` are ids that are an
        answer in themselves: a greedy answer that begins with one ends with it.
        """
        embeds, mask = self.prompt(self.query(tokens_RTD, question), text)
        if beams == 1:
            limits = {"max_new_tokens": max_new_tokens, "bos": bos, "eos": eos, "pad": pad}
            return self.greedy(embeds, mask, **limits, penalty=repetition_penalty, whole_RK=whole_RK)
        language: Any = self.language  # the types of its mix-in do not fit a Llama
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that the penalty does not look at the prompt
            out = language.generate(
                inputs_embeds=embeds,
                attention_mask=mask,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                num_beams=beams,
                repetition_penalty=repetition_penalty,
                bos_token_id=bos,
                eos_token_id=eos,
                pad_token_id=pad,
                output_scores=True,
                output_logits=True,
                return_dict_in_generate=True,
            )
        ids: Tensor = out.sequences
        steps = language.compute_transition_scores(ids, out.scores, out.beam_indices, normalize_logits=False)
        ended = (ids == eos).cumsum(dim=1) - (ids == eos).int() > 0
        return Generation(
            ids=ids.masked_fill(ended, pad),
            log_probs=steps[:, : ids.shape[1]].masked_fill(ended, 0.0),
            first_logits=out.logits[0][::beams].float(),  # all beams of a row begin alike
        )

    def greedy(
        self,
        embeds_RSL: Tensor,
        mask_RS: Tensor,
        *,
        max_new_tokens: int,
        bos: int,
        eos: int,
        pad: int,
        penalty: float,
        whole_RK: Tensor | None = None,
    ) -> Generation:
        """The likeliest token at every step, as `generate` returns it.

        Rows that have ended leave the batch when a quarter of it has, so that a long answer does not keep
        the short ones computing. The penalty counts `bos` as said, as the published model's code did.
        """
        from transformers import DynamicCache

        count, device = len(embeds_RSL), embeds_RSL.device
        ids = torch.full((count, max_new_tokens), pad, device=device)
        begin = torch.full((count, 1), bos, device=device)
        log_probs = torch.zeros((count, max_new_tokens), device=device)
        first = None
        cache = DynamicCache(config=self.language.config)
        rows = torch.arange(count, device=device)  # those that are still in the batch
        running = torch.ones(count, dtype=torch.bool, device=device)
        positions = (mask_RS.cumsum(dim=1) - 1).clamp(min=0)
        for step in range(max_new_tokens):
            hidden = self.language.model(
                inputs_embeds=embeds_RSL,
                attention_mask=mask_RS,
                position_ids=positions,
                use_cache=True,
                **{cache_argument(): cache},
            ).last_hidden_state
            logits = self.language.lm_head(hidden[:, -1]).float()
            wanted = logits
            if penalty != 1.0:
                said = torch.cat([begin[rows], ids[rows, :step]], dim=1)
                seen = logits.gather(1, said)
                wanted = logits.scatter(1, said, torch.where(seen > 0, seen / penalty, seen * penalty))
            token = wanted.argmax(dim=1)
            chance = logits.log_softmax(dim=1).gather(1, token[:, None])[:, 0]
            ids[rows[running], step] = token[running]
            log_probs[rows[running], step] = chance[running]
            running = running & (token != eos)
            if first is None:
                first = logits
                if whole_RK is not None:
                    running = running & (token[:, None] != whole_RK).all(dim=1)
            left = int(running.sum())
            if left == 0:
                return Generation(ids[:, : step + 1], log_probs[:, : step + 1], first)
            if left <= 0.75 * len(rows):
                rows, mask_RS, token, positions = (x[running] for x in (rows, mask_RS, token, positions))
                cache.batch_select_indices(running.nonzero()[:, 0])
                running = running[running]
            embeds_RSL = self.language.get_input_embeddings()(token)[:, None]
            mask_RS = torch.cat([mask_RS, mask_RS.new_ones(len(rows), 1)], dim=1)
            positions = positions[:, -1:] + 1
        assert first is not None  # an answer has at least one token
        return Generation(ids, log_probs, first)

    @torch.inference_mode()
    def first_logits(self, tokens_RTD: Tensor, question: Text, text: Text) -> Tensor:
        """Logits (R, vocabulary) of the first answer token; `text` is padded on the left."""
        embeds, mask = self.prompt(self.query(tokens_RTD, question), text)
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        out = self.language.model(inputs_embeds=embeds, attention_mask=mask, position_ids=positions)
        logits: Tensor = self.language.lm_head(out.last_hidden_state[:, -1])
        return logits.float()


def build(config: DeltaVLMConfig) -> DeltaVLM:
    """A model with fresh weights."""
    width = config.vision.width
    return DeltaVLM(
        VisionEncoder(config.vision),
        DifferencePerception(width, config.difference),
        DenseHead(width, config.dense, config.vision) if config.dense else None,
        QFormer(config.qformer, width),
        nn.Linear(config.qformer.hidden, config.language.hidden),
        llama(config.language),
    )
