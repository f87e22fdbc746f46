"""Text to ids and back, for the Q-Former's side and the language model's side.

R rows, S tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from deltavlm.errors import InputError, ModelError
from deltavlm.model.deltavlm import Text
from deltavlm.model.folder import QUESTION_TOKENIZER, SENTENCEPIECE, TOKENIZER

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor
    from tokenizers import Tokenizer

PAD, BOS, EOS, UNK = "<pad>", "<s>", "</s>", "<unk>"


@dataclass(frozen=True, slots=True)
class Codec(ABC):
    """Text to ids and back, and the ids that stand for no text."""

    pad: int
    bos: int  # begin of text as the language model's own configuration has it
    eos: int
    start: int  # what a prompt begins with

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Ids without begin or end; what looks like a special token in the text is text."""

    @abstractmethod
    def spell(self, ids: list[int]) -> str:
        """Text of ids that all stand for text."""

    def decode(self, ids: Iterable[int]) -> str:
        """Text up to the end of text."""
        kept = []
        for id_ in ids:
            if id_ == self.eos:
                break
            if id_ not in (self.pad, self.bos):
                kept.append(id_)
        return self.spell(kept).strip()

    def encode_question(self, text: str, most: int) -> list[int]:
        """Ids for the Q-Former, `most` at most: the end of a longer question is kept."""
        return self.encode(text)[-most:]

    def pad_batch(self, rows: Sequence[Sequence[int]], pad_side: Literal["left", "right"]) -> Text:
        """Rows of ids padded to the longest."""
        longest = max(len(row) for row in rows)
        ids = torch.full((len(rows), longest), self.pad)
        mask = torch.zeros((len(rows), longest), dtype=torch.long)
        for index, row in enumerate(rows):
            where = slice(longest - len(row), None) if pad_side == "left" else slice(0, len(row))
            ids[index, where] = torch.tensor(row, dtype=torch.long)
            mask[index, where] = 1
        return Text(ids, mask)


@dataclass(frozen=True, slots=True)
class WordPieces(Codec):
    """A tokenizer of the `tokenizers` library."""

    tokenizer: Tokenizer

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def spell(self, ids: list[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text


class Bert(WordPieces):
    """BERT's lower-case word pieces; a question stands between [CLS] and [SEP], here `start` and `eos`."""

    def encode_question(self, text: str, most: int) -> list[int]:
        return [self.start, *self.encode(text)[-(most - 2) :], self.eos]


@dataclass(frozen=True, slots=True)
class SentencePiece(Codec):
    """Llama's pieces, from a `tokenizer.model`.

    The published model was trained with a tokenizer whose begin of text had been set to `</s>`, so that
    every prompt begins with id 2; today's transformers would give 1 or nothing.
    """

    pieces: SentencePieceProcessor

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.pieces.encode(text)
        return ids

    def spell(self, ids: list[int]) -> str:
        text: str = self.pieces.decode([id_ for id_ in ids if id_ < self.pieces.get_piece_size()])
        return text


def load_codecs(folder: Path) -> tuple[Codec, Codec]:
    """The codecs of a checkpoint: for the question to the Q-Former, and for the language model's text.

    A folder has one `tokenizer.json` for both, or a `tokenizer.model` and a `question_tokenizer.json`.
    Raises: ModelError.
    """
    if (folder / SENTENCEPIECE).is_file():
        return load_bert(folder / QUESTION_TOKENIZER), load_sentencepiece(folder / SENTENCEPIECE)
    codec = load_codec(folder / TOKENIZER)
    return codec, codec


def load_codec(path: Path) -> WordPieces:
    """A codec from one of our own `tokenizer.json`. Raises: ModelError."""
    tokenizer = _read(path)
    pad, bos, eos = (tokenizer.token_to_id(token) for token in (PAD, BOS, EOS))
    if pad is None or bos is None or eos is None:
        raise ModelError(f"the tokenizer {path} lacks one of {PAD} {BOS} {EOS}; it is not one of deltavlm's")
    return WordPieces(pad, bos, eos, bos, tokenizer)


def load_bert(path: Path) -> Bert:
    """BERT's codec from a `tokenizer.json`. Raises: ModelError."""
    tokenizer = _read(path)
    pad, cls, sep = (tokenizer.token_to_id(token) for token in ("[PAD]", "[CLS]", "[SEP]"))
    if pad is None or cls is None or sep is None:
        raise ModelError(f"the tokenizer {path} lacks one of [PAD] [CLS] [SEP]; it is not a BERT's")
    return Bert(pad, cls, sep, cls, tokenizer)


def load_sentencepiece(path: Path) -> SentencePiece:
    """Llama's codec. Raises: ModelError."""
    from sentencepiece import SentencePieceProcessor

    try:
        pieces = SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError) as error:
        raise ModelError(
            f"cannot read the tokenizer {path}: {str(error).splitlines()[0]}; copy the file again"
        ) from error
    return SentencePiece(
        pad=pieces.unk_id(), bos=pieces.bos_id(), eos=pieces.eos_id(), start=pieces.eos_id(), pieces=pieces
    )


def bert_tokenizer(vocab: Path) -> Tokenizer:
    """Lower-case BERT word pieces from a `vocab.txt`, a token a line. Raises: InputError."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    try:
        tokens = vocab.read_text(encoding="utf-8").splitlines()
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

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise ModelError(
            f"cannot read the tokenizer {path}: {error}; copy the whole checkpoint folder again"
        ) from error
    tokenizer.encode_special_tokens = True  # "</s>" inside a question is text
    return tokenizer


def train_codec(corpus: Iterable[str], vocab: int, path: Path) -> WordPieces:
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
