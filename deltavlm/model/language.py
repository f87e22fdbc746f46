"""Causal language model: a Llama of transformers, built from our configuration."""

from __future__ import annotations

import inspect
from functools import cache
from typing import TYPE_CHECKING

from deltavlm.model.config import LanguageConfig

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM


@cache
def cache_argument() -> str:
    """Name of the argument of `LlamaModel.forward` that takes the key-value cache.

    "past_key_values" in transformers 5.0, "cache" in 5.24, where the old name raises a FutureWarning.
    """
    from transformers import LlamaModel

    return "cache" if "cache" in inspect.signature(LlamaModel.forward).parameters else "past_key_values"


def llama(config: LanguageConfig) -> LlamaForCausalLM:
    """Build a Llama with freshly initialized weights; `GenerationOptions` has its special token ids."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab,
            hidden_size=config.hidden,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            intermediate_size=config.intermediate,
            max_position_embeddings=config.context,
            rms_norm_eps=config.rms_eps,
            tie_word_embeddings=config.tied,
            pad_token_id=None,
            bos_token_id=1,
            eos_token_id=2,
        )
    )
