"""Text to ids and back, for the Q-Former's side and the language model's side.

R rows, S tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from deltavlm.errors import ModelError
from deltavlm.model.deltavlm import Text

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PAD, BOS, EOS, UNK = "<pad>", "<s>", "</s>", "<unk>"


@dataclass(frozen=True, slots=True)
class Codec:
    """One tokenizer with the ids of padding, begin and end of text."""

    tokenizer: Tokenizer
    pad: int
    bos: int
    eos: int

    def encode(self, text: str) -> list[int]:
        """Ids without begin or end; what looks like a special token in the text is text."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text up to the end of text."""
        kept = []
        for id_ in ids:
            if id_ == self.eos:
                break
            if id_ not in (self.pad, self.bos):
                kept.append(id_)
        text: str = self.tokenizer.decode(kept, skip_special_tokens=True)
        return text.strip()

    def batch(self, rows: Sequence[Sequence[int]], pad_side: Literal["left", "right"]) -> Text:
        """Rows of ids padded to the longest."""
        longest = max(len(row) for row in rows)
        ids = torch.full((len(rows), longest), self.pad)
        mask = torch.zeros((len(rows), longest), dtype=torch.long)
        for index, row in enumerate(rows):
            where = slice(longest - len(row), None) if pad_side == "left" else slice(0, len(row))
            ids[index, where] = torch.tensor(row, dtype=torch.long)
            mask[index, where] = 1
        return Text(ids, mask)


def load_codec(path: Path) -> Codec:
    """A codec from a `tokenizer.json`. Raises: ModelError."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise ModelError(
            f"cannot read the tokenizer {path}: {error}; copy the whole checkpoint folder again"
        ) from error
    tokenizer.encode_special_tokens = True  # "</s>" inside a question is text
    pad, bos, eos = (tokenizer.token_to_id(token) for token in (PAD, BOS, EOS))
    if pad is None or bos is None or eos is None:
        raise ModelError(f"the tokenizer {path} lacks one of {PAD} {BOS} {EOS}; it is not one of deltavlm's")
    return Codec(tokenizer, pad, bos, eos)


def train_codec(corpus: Iterable[str], vocab: int, path: Path) -> Codec:
    """A byte-fallback BPE over whole words, trained on `corpus` and written to `path`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Fuse(), decoders.Replace("▁", " "), decoders.Strip(" ", 1, 0)]
    )
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=[PAD, BOS, EOS, UNK, *bytes_], show_progress=False, min_frequency=2
    )
    tokenizer.train_from_iterator(corpus, trainer)
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))
    return load_codec(path)
