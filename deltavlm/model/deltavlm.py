"""DeltaVLM (arXiv 2507.22346): answers a question about two images of one place, with a change mask.

    before, after -> VisionEncoder -> DifferencePerception -> [DenseHead] -> QFormer(question) -> Linear ->
    Llama

`encode_pair` does not depend on the question and runs once per pair; `query` runs once per question. `loss`
and `generate` both call these two, so that training and inference cannot see different features.

Shape suffixes: B pairs, R rows (one per question), T image tokens, D vision width, N patch tokens of one
date, Q queries, S text tokens, L language width, K stop tokens.
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
from deltavlm.model.constraint import Constraint
from deltavlm.model.dense import DenseHead
from deltavlm.model.difference import DifferencePerception
from deltavlm.model.language import cache_argument, llama
from deltavlm.model.qformer import QFormer
from deltavlm.model.vision import VisionEncoder

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

IGNORE_INDEX = -100  # label of a position without loss


@dataclass(frozen=True, slots=True)
class PairFeatures:
    """Question-independent features of B pairs."""

    tokens: Tensor  # (B, T, D)
    mask_logits: Tensor | None = None  # (B, classes, rows, cols)
    density: Tensor | None = None  # (B, counted classes, G, G), G patches along a side
    distances: tuple[Tensor, ...] = ()  # (B, 1, h, w) of the tower's maps

    def __len__(self) -> int:
        return len(self.tokens)

    @classmethod
    def concat(cls, batches: Sequence[PairFeatures]) -> PairFeatures:
        """Concatenate batches along B; either all or none of them have masks."""
        if len(batches) == 1:
            return batches[0]

        def cat(tensors: Sequence[Tensor | None]) -> Tensor | None:
            present = [x for x in tensors if x is not None]
            return torch.cat(present) if present else None

        tokens = torch.cat([batch.tokens for batch in batches])
        masks, densities = [batch.mask_logits for batch in batches], [batch.density for batch in batches]
        return cls(tokens, cat(masks), cat(densities))

    def to(self, dtype: torch.dtype) -> PairFeatures:
        mask, density = (None if x is None else x.to(dtype) for x in (self.mask_logits, self.density))
        return PairFeatures(self.tokens.to(dtype), mask, density)


@dataclass(frozen=True, slots=True)
class Text:
    """Padded batch of token ids and its attention mask (1 for a token, 0 for padding)."""

    ids: Tensor  # (R, S)
    mask: Tensor  # (R, S)

    def to(self, device: str | torch.device) -> Text:
        return Text(self.ids.to(device), self.mask.to(device))


@dataclass(frozen=True, slots=True)
class GenerationOptions:
    """Length limit, special token ids and decoding strategy of `DeltaVLM.generate`.

    `repetition_penalty` (CTRL, arXiv 1909.05858) applies to generated tokens and to `bos`, which the
    published code counted too, not to the prompt.
    """

    max_new_tokens: int
    bos: int
    eos: int
    pad: int
    beams: int = 1  # 1 is greedy decoding
    repetition_penalty: float = 1.0


@dataclass(frozen=True, slots=True)
class Generation:
    """Generated tokens of R rows, N at most per row."""

    ids: Tensor  # (R, N), padded after the end of an answer
    log_probs: Tensor  # (R, N) log-probability of each token, 0 on padding
    first_logits: Tensor  # (R, vocabulary) float32 logits of the first token, before any penalty


class DeltaVLM(nn.Module):
    """The complete model. It takes its modules as arguments; `build` makes them from a configuration."""

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
        """Encode normalised pixels of both dates, (B, 3, H, W) each, into question-independent features."""
        dates_2BND, maps = self.vision(torch.cat([before_B3HW, after_B3HW]))
        before_BND, after_BND = dates_2BND.chunk(2)
        maps, distances = self.difference.compare(maps)
        tokens = self.difference(before_BND, after_BND, distances)
        if self.dense is None:
            return PairFeatures(tokens)
        prefix = self.vision.config.prefix_tokens
        halves = [half[:, prefix:] for half in tokens.chunk(2, dim=1)]
        mask_logits, density = self.dense(torch.cat(halves, dim=2), maps, distances)
        if self.dense.config.evidence:
            evidence = self.dense.evidence(mask_logits, density, distances)
            tokens = torch.cat([tokens, evidence.to(tokens.dtype)], dim=1)
        return PairFeatures(tokens, mask_logits, density, distances)

    def query(self, tokens_RTD: Tensor, question: Text) -> Tensor:
        """Soft prompt (R, Q, L) of image tokens (R, T, D) and one question per row."""
        soft: Tensor = self.projection(self.qformer(tokens_RTD, question.ids, question.mask))
        return soft

    def prompt(self, soft_RQL: Tensor, text: Text) -> tuple[Tensor, Tensor]:
        """Input embeddings (R, Q + S, L) of [soft prompt ; text] and their attention mask (R, Q + S)."""
        words_RSL = self.language.get_input_embeddings()(text.ids)
        soft_mask_RQ = text.mask.new_ones(soft_RQL.shape[:2])
        embeds = torch.cat([soft_RQL.to(words_RSL.dtype), words_RSL], dim=1)
        return embeds, torch.cat([soft_mask_RQ, text.mask], dim=1)

    def token_losses(self, tokens_RTD: Tensor, question: Text, text: Text, labels_RS: Tensor) -> Tensor:
        """Cross-entropy (R, S) of each answer token, 0 elsewhere.

        `text` is question and answer, padded on the right; `labels_RS` is IGNORE_INDEX outside the answer.
        """
        embeds, mask = self.prompt(self.query(tokens_RTD, question), text)
        hidden = self.language.model(
            inputs_embeds=embeds, attention_mask=mask, use_cache=False
        ).last_hidden_state
        shifted = hidden[:, -labels_RS.shape[1] - 1 : -1]  # the state before each text token predicts it
        answer_mask = labels_RS != IGNORE_INDEX
        logits = self.language.lm_head(shifted[answer_mask])
        losses = torch.zeros(labels_RS.shape, device=logits.device)
        losses[answer_mask] = F.cross_entropy(logits.float(), labels_RS[answer_mask], reduction="none")
        return losses

    def loss(self, tokens_RTD: Tensor, question: Text, text: Text, labels_RS: Tensor) -> Tensor:
        """Mean cross-entropy over all answer tokens, the loss of the published model."""
        return (
            self.token_losses(tokens_RTD, question, text, labels_RS).sum() / (labels_RS != IGNORE_INDEX).sum()
        )

    def set_attention(self, kind: Literal["eager", "sdpa"]) -> None:
        """Select the attention implementation of all modules.

        "eager" trains several times faster on a CPU in bf16; "sdpa" is best on a GPU.
        """
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
        options: GenerationOptions,
        stop_after_first_RK: Tensor | None = None,
        constraints: Sequence[Constraint | None] = (),
    ) -> Generation:
        """Generate answers to R rows; the prompt runs through the model once, also for `first_logits`.

        Args:
            tokens_RTD: image tokens of each row's pair, (R, T, D).
            question: tokens for the Q-Former, padded on the right.
            text: tokens of the prompt for the language model, padded on the left.
            options: limits and decoding strategy.
            stop_after_first_RK: token ids, (R, K); a greedy row stops after its first token if that is one
                of them. Beam search ignores it.
            constraints: of R new answers, None for a row without one; they choose the tokens, and leave log
                probabilities as they are. Beam search ignores them.
        """
        embeds, mask = self.prompt(self.query(tokens_RTD, question), text)
        if options.beams == 1:
            return self._greedy(embeds, mask, options, stop_after_first_RK, constraints)
        return self._beam_search(embeds, mask, options)

    def _beam_search(self, embeds_RSL: Tensor, mask_RS: Tensor, options: GenerationOptions) -> Generation:
        """Beam search of transformers."""
        language: Any = self.language  # the types of GenerationMixin do not fit LlamaForCausalLM
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that the penalty does not apply to the prompt
            out = language.generate(
                inputs_embeds=embeds_RSL,
                attention_mask=mask_RS,
                max_new_tokens=options.max_new_tokens,
                do_sample=False,
                num_beams=options.beams,
                repetition_penalty=options.repetition_penalty,
                bos_token_id=options.bos,
                eos_token_id=options.eos,
                pad_token_id=options.pad,
                output_scores=True,
                output_logits=True,
                return_dict_in_generate=True,
            )
        ids: Tensor = out.sequences
        steps = language.compute_transition_scores(ids, out.scores, out.beam_indices, normalize_logits=False)
        is_eos = ids == options.eos
        ended = is_eos.cumsum(dim=1) - is_eos.int() > 0
        return Generation(
            ids=ids.masked_fill(ended, options.pad),
            log_probs=steps[:, : ids.shape[1]].masked_fill(ended, 0.0),
            first_logits=out.logits[0][:: options.beams].float(),  # all beams of a row begin alike
        )

    def _greedy(
        self,
        embeds_RSL: Tensor,
        mask_RS: Tensor,
        options: GenerationOptions,
        stop_after_first_RK: Tensor | None,
        constraints: Sequence[Constraint | None],
    ) -> Generation:
        """Greedy decoding, token for token equal to that of transformers where there is no constraint.

        Finished rows leave the batch as soon as they are a quarter of it, so that one long answer does not
        keep the short ones computing.
        """
        from transformers import DynamicCache

        count, device = len(embeds_RSL), embeds_RSL.device
        ids = torch.full((count, options.max_new_tokens), options.pad, device=device)
        begin = torch.full((count, 1), options.bos, device=device)
        log_probs = torch.zeros((count, options.max_new_tokens), device=device)
        first_logits = None
        cache = DynamicCache(config=self.language.config)
        rows = torch.arange(count, device=device)  # still in the batch
        unfinished = torch.ones(count, dtype=torch.bool, device=device)
        positions = (mask_RS.cumsum(dim=1) - 1).clamp(min=0)
        for step in range(options.max_new_tokens):
            hidden = self.language.model(
                inputs_embeds=embeds_RSL,
                attention_mask=mask_RS,
                position_ids=positions,
                use_cache=True,
                **{cache_argument(): cache},
            ).last_hidden_state
            logits = self.language.lm_head(hidden[:, -1]).float()
            penalized = logits
            if options.repetition_penalty != 1.0:
                previous = torch.cat([begin[rows], ids[rows, :step]], dim=1)
                penalized = penalize(logits, previous, options.repetition_penalty)
            token = penalized.argmax(dim=1)
            if any(constraints):
                chosen = token.tolist()
                for index, (row, is_open) in enumerate(zip(rows.tolist(), unfinished.tolist(), strict=True)):
                    constraint = constraints[row] if is_open else None
                    if constraint is not None:
                        chosen[index] = constraint.choose(chosen[index], penalized[index].cpu().numpy())
                token = torch.tensor(chosen, device=device)
            log_prob = logits.log_softmax(dim=1).gather(1, token[:, None])[:, 0]
            ids[rows[unfinished], step] = token[unfinished]
            log_probs[rows[unfinished], step] = log_prob[unfinished]
            unfinished = unfinished & (token != options.eos)
            if first_logits is None:
                first_logits = logits
                if stop_after_first_RK is not None:
                    unfinished = unfinished & (token[:, None] != stop_after_first_RK).all(dim=1)
            remaining = int(unfinished.sum())
            if remaining == 0:
                return Generation(ids[:, : step + 1], log_probs[:, : step + 1], first_logits)
            if remaining <= 0.75 * len(rows):
                rows, mask_RS, token, positions = (x[unfinished] for x in (rows, mask_RS, token, positions))
                cache.batch_select_indices(unfinished.nonzero()[:, 0])
                unfinished = unfinished[unfinished]
            embeds_RSL = self.language.get_input_embeddings()(token)[:, None]
            mask_RS = torch.cat([mask_RS, mask_RS.new_ones(len(rows), 1)], dim=1)
            positions = positions[:, -1:] + 1
        assert first_logits is not None  # an answer has at least one token
        return Generation(ids, log_probs, first_logits)

    @torch.inference_mode()
    def first_logits(self, tokens_RTD: Tensor, question: Text, text: Text) -> Tensor:
        """Float32 logits (R, vocabulary) of the first answer token; `text` is padded on the left."""
        embeds, mask = self.prompt(self.query(tokens_RTD, question), text)
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        out = self.language.model(inputs_embeds=embeds, attention_mask=mask, position_ids=positions)
        logits: Tensor = self.language.lm_head(out.last_hidden_state[:, -1])
        return logits.float()


def penalize(logits_RV: Tensor, previous_RN: Tensor, penalty: float) -> Tensor:
    """Logits (R, V) with the repetition penalty applied to the ids of `previous_RN`, as transformers does."""
    scores = logits_RV.gather(1, previous_RN)
    return logits_RV.scatter(1, previous_RN, torch.where(scores > 0, scores / penalty, scores * penalty))


def build(config: DeltaVLMConfig) -> DeltaVLM:
    """Build a model with freshly initialized weights."""
    width = config.vision.width
    return DeltaVLM(
        VisionEncoder(config.vision),
        DifferencePerception(width, config.difference, config.vision.map_channels),
        DenseHead(width, config.dense, config.vision) if config.dense else None,
        QFormer(config.qformer, width),
        nn.Linear(config.qformer.hidden, config.language.hidden),
        llama(config.language),
    )
