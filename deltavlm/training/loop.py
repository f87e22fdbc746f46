"""The training loop: phases in order, one optimiser each, a running mean of the weights, checkpoints to
resume from."""

from __future__ import annotations

import json
import logging
import math
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from deltavlm.data.batches import Batch, assemble, draw_pairs, lesson
from deltavlm.data.synthetic.cache import open_cache
from deltavlm.model.config import DeltaVLMConfig
from deltavlm.model.deltavlm import IGNORED, DeltaVLM
from deltavlm.model.tokenizer import Codec
from deltavlm.training.config import Part, Phase, TrainConfig
from deltavlm.training.losses import density_loss, mask_loss
from deltavlm.training.rows import make_rows

log = logging.getLogger(__name__)

EVIDENCE = ("dense.totals.", "dense.place", "dense.norm.")  # what the language reads of the dense head
SEES = ("vision.", "difference.", "dense.")


def parameters(model: DeltaVLM, part: Part) -> list[nn.Parameter]:
    """What a phase fits: "vision" all that sees, "language" all the rest, "joint" everything."""
    sees = {
        name: name.startswith(SEES) and not name.startswith(EVIDENCE) for name, _ in model.named_parameters()
    }
    wanted = {"vision": (True,), "language": (False,), "joint": (True, False)}[part]
    return [parameter for name, parameter in model.named_parameters() if sees[name] in wanted]


def optimiser(model: DeltaVLM, phase: Phase) -> torch.optim.AdamW:
    """AdamW; weight decay on matrices alone."""
    every = parameters(model, phase.part)
    groups = [
        {"params": [p for p in every if p.ndim > 1], "weight_decay": phase.weight_decay},
        {"params": [p for p in every if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=phase.lr, betas=(0.9, 0.98))


def rate(phase: Phase, step: int) -> float:
    """Linear warm-up, then a cosine to a hundredth."""
    if step < phase.warmup:
        return (step + 1) / phase.warmup
    done = (step - phase.warmup) / max(1, phase.steps - phase.warmup)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def taught(rng: np.random.Generator, rows: list[tuple[str, str]], most: int) -> list[tuple[str, str]]:
    """At most so many of the rows, drawn anew every time."""
    return [rows[at] for at in rng.permutation(len(rows))[:most]]


class Trainer:
    """State of a run. Everything random comes from the seed and the step, so that a resumed run goes on as
    it would have."""

    def __init__(
        self,
        config: TrainConfig,
        model_config: DeltaVLMConfig,
        model: DeltaVLM,
        codec: Codec,
        out: Path,
    ) -> None:
        self.config, self.model_config, self.model, self.codec, self.out = (
            config,
            model_config,
            model,
            codec,
            out,
        )
        self.near = open_cache(out / "scenes")
        others = {"far": config.scenes.far, "stormy": config.scenes.stormy}
        self.others = {name: open_cache(out / name) for name, number in others.items() if number}
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        model.use_attention("eager")
        self.mean = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    def batch(self, name: str, phase: Phase, step: int) -> tuple[Batch, np.random.Generator]:
        rng = np.random.default_rng([self.config.seed, step, self.rank, *name.encode()])
        size = phase.batch // self.world
        draw = partial(draw_pairs, rng, crop_px=phase.crop_px, toned=phase.toned)
        shares = {name: getattr(phase, name) for name in self.others}
        drawn = {name: rng.binomial(size, share) for name, share in shares.items() if share}
        pairs = draw(*self.near, max(0, size - sum(drawn.values())))
        for name, number in drawn.items():
            pairs += draw(*self.others[name], number)
        return assemble(pairs[:size]), rng

    def loss(self, phase: Phase, batch: Batch, rng: np.random.Generator) -> dict[str, Tensor]:
        """Named losses of a batch, to be added up."""
        model = self.model
        assert model.dense is not None, "the recipe trains a dense head"
        losses: dict[str, Tensor] = {}
        pair = model.encode_pair(
            *(model.vision.normalise(torch.from_numpy(p)) for p in (batch.before, batch.after))
        )
        assert pair.mask_logits is not None
        assert pair.density is not None
        if phase.part != "language":
            losses["mask"] = mask_loss(pair.mask_logits, torch.from_numpy(batch.mask))
            losses["density"] = density_loss(pair.density, torch.from_numpy(batch.density))
        if phase.part != "vision":
            groups = make_rows(
                self.model_config,
                self.codec,
                [taught(rng, lesson(rng, facts, phase.extra), phase.rows) for facts in batch.facts],
            )
            weighed = []
            for rows in groups:
                seen = self.hide(pair.tokens[rows.pairs], phase.hidden)
                told = model.token_losses(seen, rows.question, rows.text, rows.labels)
                length = (rows.labels != IGNORED).sum(dim=1)
                weighed.append(
                    (told.sum(dim=1) / length.sqrt()).sum()
                )  # a "yes" must not drown in lists of cells
            losses["words"] = (
                phase.words * torch.stack(weighed).sum() / sum(len(rows.pairs) for rows in groups)
            )
        return losses

    def hide(self, tokens_RTD: Tensor, share: float) -> Tensor:
        """Difference tokens with some set to zero, of each row another part, from none to twice the share;
        the dense head's evidence stays, so that an answer has to rest on both."""
        if not share:
            return tokens_RTD
        evidence = len(self.model.dense.place) if self.model.dense and self.model.dense.config.evidence else 0
        rows, tokens, _ = tokens_RTD.shape
        keep = torch.rand(rows, tokens, 1) >= 2 * share * torch.rand(rows, 1, 1)
        keep[:, tokens - evidence :] = True
        return tokens_RTD * keep.to(tokens_RTD.dtype)

    def run(self, name: str, *, until: float = math.inf) -> bool:
        """Runs a phase from its last checkpoint. Stops early at the time `until`; returns whether it is
        finished."""
        phase, model = self.config.phases[name], self.model
        optim = optimiser(model, phase)
        start = self.resume(name, optim)
        fitted = [p for group in optim.param_groups for p in group["params"]]
        chosen = {id(p) for p in fitted}
        for p in model.parameters():
            p.requires_grad_(id(p) in chosen)
        model.train()
        if phase.part == "language":  # what sees stays as it is, statistics included
            model.vision.eval()
            model.difference.eval()
            model.dense.eval()  # type: ignore[union-attr]
        shown, since, told = dict[str, float](), time.monotonic(), start
        reader = ThreadPoolExecutor(1)  # the next batch is read while this one is learnt
        ahead = reader.submit(self.batch, name, phase, start)
        for step in range(start, phase.steps):
            for group in optim.param_groups:
                group["lr"] = phase.lr * rate(phase, step)
            torch.manual_seed(hash((self.config.seed, step, self.rank)) % 2**31)
            batch, rng = ahead.result()
            ahead = reader.submit(self.batch, name, phase, step + 1)
            with torch.autocast("cpu", torch.bfloat16):
                losses = self.loss(phase, batch, rng)
            total = torch.stack([loss.float() for loss in losses.values()]).sum()
            optim.zero_grad(set_to_none=True)
            total.backward()  # type: ignore[no-untyped-call]
            self.share(fitted)
            norm = nn.utils.clip_grad_norm_(fitted, self.config.clip)
            if torch.isfinite(norm):
                optim.step()
            self.average(step - start)
            for key, loss in losses.items():
                shown[key] = 0.98 * shown.get(key, loss.item()) + 0.02 * loss.item()
            if (step + 1) % 50 == 0 and self.rank == 0:
                speed = (step + 1 - told) * phase.batch / (time.monotonic() - since)
                since, told = time.monotonic(), step + 1
                text = " ".join(f"{key} {value:.3f}" for key, value in shown.items())
                log.info("%s %d/%d %s | %.1f pairs/s", name, step + 1, phase.steps, text, speed)
            if (
                (step + 1) % self.config.checkpoint_every == 0
                or step + 1 == phase.steps
                or time.time() > until
            ):
                self.keep(name, step + 1, optim)
                if time.time() > until:
                    return step + 1 == phase.steps
        return True

    def share(self, fitted: list[nn.Parameter]) -> None:
        """Means of the gradients over all processes, in one message."""
        if self.world == 1:
            return
        grads = [p.grad for p in fitted if p.grad is not None]
        flat = torch.cat([grad.flatten() for grad in grads])
        dist.all_reduce(flat)
        flat /= self.world
        for grad, part in zip(grads, torch.split(flat, [grad.numel() for grad in grads]), strict=True):
            grad.copy_(part.view_as(grad))

    def average(self, step: int) -> None:
        """Exponential moving average of weights and statistics, short at first."""
        decay = min(self.config.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            for key, tensor in self.model.state_dict().items():
                if tensor.is_floating_point():
                    self.mean[key].lerp_(tensor, 1 - decay)

    def keep(self, name: str, step: int, optim: torch.optim.Optimizer) -> None:
        """Writes what `resume` needs; whole or not at all."""
        if self.rank:
            return
        self.out.mkdir(parents=True, exist_ok=True)
        state = {
            "step": step,
            "model": self.model.state_dict(),
            "mean": self.mean,
            "optim": optim.state_dict(),
        }
        scratch = self.out / f".{name}.tmp"
        torch.save(state, scratch)
        scratch.replace(self.out / f"{name}.pt")
        (self.out / f"{name}.json").write_text(json.dumps({"step": step}))

    def resume(self, name: str, optim: torch.optim.Optimizer) -> int:
        path = self.out / f"{name}.pt"
        if not path.exists():
            return 0
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.mean = state["mean"]
        optim.load_state_dict(state["optim"])
        return int(state["step"])
