"""Tokenizers (codecs) of the Q-Former and the language model: text to token ids and back.

R rows, S tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from deltavlm.errors import InputError, ModelError
from deltavlm.files import format_bytes, read_text
from deltavlm.model.folder import QUESTION_TOKENIZER, SENTENCEPIECE, TOKENIZER

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor
    from tokenizers import Tokenizer

    from deltavlm.model.deltavlm import Text

Ids = npt.NDArray[np.int64]

MAX_TOKENIZER_BYTES = 64 * 2**20
MAX_LETTERS = 64  # of a trained tokenizer
PAD, BOS, EOS, UNK = "<pad>", "<s>", "</s>", "<unk>"


@dataclass(frozen=True, slots=True)
class Codec(ABC):
    """Tokenizer with its special token ids."""

    pad: int
    bos: int  # begin of text in the language model's configuration
    eos: int
    start: int  # first token of a prompt

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Token ids without begin and end of text; special tokens in the text are encoded as text."""

    @abstractmethod
    def detokenize(self, ids: list[int]) -> str:
        """Text of ids without special tokens."""

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids up to the first end of text, without padding and begin of text."""
        text_ids = []
        for id_ in ids:
            if id_ == self.eos:
                break
            if id_ not in (self.pad, self.bos):
                text_ids.append(id_)
        return self.detokenize(text_ids).strip()

    def pieces(self, vocab: int) -> list[str]:
        """Text that each id below `vocab` adds to a text: none for special tokens, U+FFFD for a part of a
        letter."""
        before = self.encode("a")
        start = self.detokenize(before)
        return [self.detokenize([*before, id_]).removeprefix(start) for id_ in range(vocab)]

    def encode_question(self, text: str, max_tokens: int) -> list[int]:
        """Ids for the Q-Former; a longer question is truncated to its last `max_tokens`."""
        return self.encode(text)[-max_tokens:]

    def pad_rows(self, rows: Sequence[Sequence[int]], pad_side: Literal["left", "right"]) -> tuple[Ids, Ids]:
        """Pad R rows of ids to the longest: ids and attention mask, (R, S)."""
        longest = max(len(row) for row in rows)
        ids = np.full((len(rows), longest), self.pad, np.int64)
        mask = np.zeros_like(ids)
        for index, row in enumerate(rows):
            columns = slice(longest - len(row), None) if pad_side == "left" else slice(0, len(row))
            ids[index, columns] = row
            mask[index, columns] = 1
        return ids, mask

    def pad_batch(self, rows: Sequence[Sequence[int]], pad_side: Literal["left", "right"]) -> Text:
        """The same as tensors."""
        import torch

        from deltavlm.model.deltavlm import Text

        ids, mask = self.pad_rows(rows, pad_side)
        return Text(torch.from_numpy(ids), torch.from_numpy(mask))


@dataclass(frozen=True, slots=True)
class WordPieces(Codec):
    """Tokenizer of the `tokenizers` library."""

    tokenizer: Tokenizer

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def detokenize(self, ids: list[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text


class Bert(WordPieces):
    """BERT's lower-case WordPiece; a question is enclosed in [CLS] and [SEP], here `start` and `eos`."""

    def encode_question(self, text: str, max_tokens: int) -> list[int]:
        return [self.start, *self.encode(text)[-(max_tokens - 2) :], self.eos]


@dataclass(frozen=True, slots=True)
class SentencePiece(Codec):
    """Llama's SentencePiece tokenizer, from a `tokenizer.model`.

    The published model was trained with a tokenizer whose begin of text had been set to `</s>`, so that
    every prompt begins with id 2; today's transformers would give 1 or nothing.
    """

    processor: SentencePieceProcessor

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.processor.encode(text)
        return ids

    def detokenize(self, ids: list[int]) -> str:
        text: str = self.processor.decode([id_ for id_ in ids if id_ < self.processor.get_piece_size()])
        return text


def load_codecs(folder: Path) -> tuple[Codec, Codec]:
    """Load the tokenizers of a checkpoint: (of the Q-Former, of the language model).

    A folder has one `tokenizer.json` for both, or a `tokenizer.model` and a `question_tokenizer.json`.
    Raises: ModelError.
    """
    if (folder / SENTENCEPIECE).is_file():
        return load_bert(folder / QUESTION_TOKENIZER), load_sentencepiece(folder / SENTENCEPIECE)
    codec = load_codec(folder / TOKENIZER)
    return codec, codec


def load_codec(path: Path) -> WordPieces:
    """Load a `tokenizer.json` that `train_codec` wrote. Raises: ModelError."""
    tokenizer = _read(path)
    pad, bos, eos = (tokenizer.token_to_id(token) for token in (PAD, BOS, EOS))
    if pad is None or bos is None or eos is None:
        raise ModelError(f"the tokenizer {path} lacks one of {PAD} {BOS} {EOS}; it is not one of deltavlm")
    return WordPieces(pad, bos, eos, bos, tokenizer)


def load_bert(path: Path) -> Bert:
    """Load BERT's tokenizer from a `tokenizer.json`. Raises: ModelError."""
    tokenizer = _read(path)
    pad, cls, sep = (tokenizer.token_to_id(token) for token in ("[PAD]", "[CLS]", "[SEP]"))
    if pad is None or cls is None or sep is None:
        raise ModelError(f"the tokenizer {path} lacks one of [PAD] [CLS] [SEP]; it is not a BERT tokenizer")
    return Bert(pad, cls, sep, cls, tokenizer)


def load_sentencepiece(path: Path) -> SentencePiece:
    """Load Llama's tokenizer from a `tokenizer.model`. Raises: ModelError."""
    from sentencepiece import SentencePieceProcessor

    _check_size(path)
    try:
        processor = SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError) as error:
        raise ModelError(
            f"cannot read the tokenizer {path}: {str(error).splitlines()[0]}; copy the file again"
        ) from error
    return SentencePiece(
        pad=processor.unk_id(),
        bos=processor.bos_id(),
        eos=processor.eos_id(),
        start=processor.eos_id(),
        processor=processor,
    )


def bert_tokenizer(vocab: Path) -> Tokenizer:
    """Lower-case BERT WordPiece tokenizer from a `vocab.txt`, one token per line. Raises: InputError."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    try:
        tokens = read_text(vocab).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the vocabulary {vocab}; copy the BERT folder again") from error
    ids = {token: index for index, token in enumerate(tokens)}
    missing = [token for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]") if token not in ids]
    if missing:
        raise InputError(f"{vocab} lacks {' '.join(missing)}; give the vocab.txt of bert-base-uncased")
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def _read(path: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    _check_size(path)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise ModelError(
            f"cannot read the tokenizer {path}: {error}; copy the whole checkpoint folder again"
        ) from error
    tokenizer.encode_special_tokens = True  # "</s>" inside a question is text
    return tokenizer


def _check_size(path: Path) -> None:
    """Raises: ModelError for a file that is far larger than any tokenizer; libraries read it at once."""
    if path.is_file() and path.stat().st_size > MAX_TOKENIZER_BYTES:
        raise ModelError(
            f"the tokenizer {path} is larger than {format_bytes(MAX_TOKENIZER_BYTES)};"
            " copy the whole checkpoint folder again"
        )


def train_codec(corpus: Iterable[str], vocab: int, path: Path) -> WordPieces:
    """Train a BPE tokenizer with byte fallback on the texts of `corpus` and write it to `path`.

    The letters of the corpus that are rare, as those of other scripts, have no token of their own.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Fuse(), decoders.Replace("▁", " "), decoders.Strip(" ", 1, 0)]
    )
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[PAD, BOS, EOS, UNK, *bytes_],
        show_progress=False,
        min_frequency=2,
    )
    texts = list(corpus)
    counts = Counter(letter for text in texts for letter in text)
    # ties in the order of code points: the library's own limit breaks them at random
    letters = sorted(counts, key=lambda letter: (-counts[letter], letter))[:MAX_LETTERS]
    rare = dict.fromkeys(map(ord, counts.keys() - set(letters)), " ")
    tokenizer.train_from_iterator((text.translate(rare) for text in texts), trainer)
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))
    return load_codec(path)
