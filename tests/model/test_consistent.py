"""Answers that agree by decoding: about any pair, whatever a model would rather say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle, product
from typing import Any

import numpy as np
import pytest
import torch

from deltavlm.errors import AnswerParseError
from deltavlm.model.answering import BUILDINGS
from deltavlm.model.config import Decoding, DenseConfig, RuntimeOptions
from deltavlm.model.constraint import Constraint
from deltavlm.model.deltavlm import IGNORE_INDEX, Generation, GenerationOptions, PairFeatures, Text
from deltavlm.model.interface import Question, standard_question
from deltavlm.model.predictor import Predictor
from deltavlm.model.tokenizer import Codec, train_codec
from deltavlm.pipeline.answers import question_of
from deltavlm.pipeline.consistency import ChipStatements, find_conflicts
from deltavlm.tasks import TASKS
from deltavlm.tasks.base import Form
from deltavlm.tasks.count import Counts
from deltavlm.tasks.questions import QuestionSpec
from deltavlm.tasks.text import NO_CHANGE, clean
from tests.tiny import TINY, tiny_model

STANDARD = ("caption", "change", "count", "location")
CONSISTENT = replace(TINY, language=replace(TINY.language, context=1024), decoding=Decoding(consistent=True))


CAPTIONS = (
    *NO_CHANGE,
    "nothing is different, but a villa appears",
    "everything is unchanged",
    "there is a new pond",
    "many houses and a road are built on the grass",
    "a house is demolished and a road is built",
    "an old house and a road are removed",
)
COUNTS = (
    "there are no changes in roads or buildings",
    "no new roads or buildings",
    "no new roads and 12 new buildings",
    "1 new road and 1 new building",
    "2 new roads and no new buildings",
    "many",
)
CELLS = (
    "roads [] buildings []",
    "roads ['top-left'] buildings []",
    "roads ['center-right', 'bottom-left'] buildings ['top-left', 'top-left']",
)
LETTERS = "0 1 2 3 4 5 6 7 8 9 top-right center-left bottom-center"


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> Codec:
    """Tokenizer with tokens for all letters of the answers; many words are spelled in single letters."""
    texts = [*CAPTIONS, *COUNTS, *CELLS, LETTERS] * 2
    return train_codec(texts, TINY.language.vocab, tmp_path_factory.mktemp("codec") / "tokenizer.json")


def predictor_of(codec: Codec, seed: int = 0) -> Predictor:
    return Predictor(tiny_model(seed, CONSISTENT), CONSISTENT, codec, codec, "cpu", "0" * 16)


def encode(predictor: Predictor, number: int, seed: int = 0) -> PairFeatures:
    before, after = np.random.default_rng(seed).integers(0, 256, (2, number, 3, 64, 64), dtype=np.uint8)
    return predictor.encode(before, after)


def questions(threshold: float | None = None) -> list[Question]:
    """The standard questions; cells spelled in single letters need more tokens than usual."""
    asked = [standard_question(TASKS[name], threshold) for name in STANDARD]
    return [*asked[:3], replace(asked[3], max_new_tokens=400)]


def conflicts_of(texts: list[str]) -> list[str]:
    """Rules that the answers to the questions STANDARD break; each answer can be parsed."""
    caption, changed, counts, cells = (
        TASKS[name].parse(clean(text)) for name, text in zip(STANDARD, texts, strict=True)
    )
    return find_conflicts(ChipStatements(changed=changed, caption=caption, counts=counts, cells=cells))


@pytest.mark.parametrize("threshold", [0.0, 1.0])
@pytest.mark.parametrize("seed", range(2))
def test_the_answers_of_random_weights_agree(codec: Codec, seed: int, threshold: float) -> None:
    predictor = predictor_of(codec, seed)
    for replies in predictor.answer(encode(predictor, 2, seed), questions(threshold)):
        texts = [reply.text for reply in replies]
        assert texts[1] == ("no" if threshold else "yes")
        assert conflicts_of(texts) == []


class Wishful:
    """In place of a DeltaVLM: prefers at each step the next token of what it wishes to answer to a prompt."""

    def __init__(self, codec: Codec, changed: bool, wishes: dict[str, str]) -> None:
        self.codec, self.changed = codec, changed
        self.wishes = {
            tuple(codec.encode(CONSISTENT.prompt.format(TASKS[name].prompt))): codec.encode(wish)
            for name, wish in wishes.items()
        }

    def generate(
        self,
        tokens: torch.Tensor,
        question: Text,
        text: Text,
        options: GenerationOptions,
        stop_after_first_RK: torch.Tensor,
        constraints: Sequence[Constraint | None],
    ) -> Generation:
        codec, vocab = self.codec, TINY.language.vocab
        random = torch.Generator().manual_seed(0)
        answers = torch.full((len(tokens), options.max_new_tokens), codec.pad)
        for answer, prompt, mask, constraint in zip(answers, text.ids, text.mask, constraints, strict=True):
            _, *ids = prompt[mask == 1].tolist()
            wish = self.wishes.get(tuple(ids), [])
            for step in range(options.max_new_tokens):
                logits = torch.randn(vocab, generator=random)
                wished = wish[step] if step < len(wish) else codec.eos
                logits[wished] = 10
                answer[step] = constraint.choose(wished, logits.numpy()) if constraint else wished
                if answer[step] == codec.eos:
                    break
        first_logits = torch.zeros(len(tokens), vocab)
        first_logits[:, codec.encode("yes")[0]] = 1 if self.changed else -1
        return Generation(answers, torch.zeros(answers.shape), first_logits)


@pytest.mark.parametrize("changed", [True, False])
def test_answers_agree_whatever_the_model_wishes(codec: Codec, changed: bool) -> None:
    features = PairFeatures(torch.zeros(1, 1, 1))
    seen = set()
    for (caption, count), cells in zip(product(CAPTIONS, COUNTS), cycle(CELLS), strict=False):
        wishes = {"caption": caption, "count": count, "location": cells}
        model: Any = Wishful(codec, changed, wishes)
        predictor = replace(predictor_of(codec), model=model)
        texts = [reply.text for reply in predictor.answer(features, questions())[0]]
        assert conflicts_of(texts) == [], (wishes, texts)
        wished = [caption, "yes" if changed else "no", count, cells]
        if agrees(wished):
            assert texts == wished
            seen.add(tuple(texts))
    assert len(seen) >= 2


def agrees(texts: list[str]) -> bool:
    """True for answers in the standard form without a contradiction."""
    is_standard = all(
        TASKS[name].format(TASKS[name].parse(text)) == text
        for name, text in zip(STANDARD, texts, strict=True)
        if text != "many"
    )
    return "many" not in texts and is_standard and conflicts_of(texts) == []


def test_what_the_other_answers_decide_is_not_asked(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts and cells of an unchanged pair, and all but the first token of a yes or no, cost as much as the
    rest of its answers."""
    predictor = predictor_of(codec)
    asked: list[tuple[str, int]] = []
    generate_rows = Predictor.generate_rows

    def recorded(self: Predictor, encoded: Any, rows: Sequence[tuple[int, Question]], *rest: Any) -> Any:
        asked.extend((question.name, question.max_new_tokens) for _, question in rows)
        return generate_rows(self, encoded, rows, *rest)

    monkeypatch.setattr(Predictor, "generate_rows", recorded)
    (replies,) = predictor.answer(encode(predictor, 1), questions(threshold=1.0))
    assert {name for name, _ in asked} == {"caption", "change"}
    assert {tokens for name, tokens in asked if name == "change"} == {1}
    assert [(reply.text, reply.score) for reply in replies[2:]] == [
        (TASKS["count"].unchanged, 0.0),
        (TASKS["location"].unchanged, 0.0),
    ]
    counts = predictor.answer(encode(predictor, 1), questions(threshold=1.0)[2:3])
    assert counts == [[replies[2]]]  # nothing but the yes or no is asked for it


@pytest.mark.parametrize("seed", range(2))
def test_an_answer_depends_on_pair_and_question_alone(codec: Codec, seed: int) -> None:
    """Not on the other rows of its batch, which end earlier or later, nor on what else is asked."""
    predictor = predictor_of(codec, seed)
    encoded = encode(predictor, 3)
    asked = [*questions(), Question("open", "how many roads?", max_new_tokens=6)]
    together = predictor.answer(encoded, asked)
    for pair, question in product(range(3), asked):
        (alone,) = predictor.answer_rows(encoded, [(pair, question)])
        expected = together[pair][asked.index(question)]
        assert alone.text == expected.text
        assert alone.score == pytest.approx(expected.score, abs=1e-4)


def test_the_cells_asked_alone_follow_from_all_other_answers(codec: Codec) -> None:
    """Prerequisites are asked by the predictor: these wishes contradict each other at every step."""
    wishes = {
        "caption": "many houses and a road are built on the grass",
        "count": "no new roads and 12 new buildings",
        "location": "roads [] buildings []",
    }
    model: Any = Wishful(codec, True, wishes)
    predictor = replace(predictor_of(codec), model=model)
    features = PairFeatures(torch.zeros(1, 1, 1))
    ((count,),) = predictor.answer(features, questions()[2:3])
    ((cells,),) = predictor.answer(features, questions()[3:])
    assert count.text.endswith(" and 12 new buildings")
    assert not count.text.startswith("no ")
    assert "[]" not in cells.text


@pytest.mark.parametrize(
    ("density", "expected", "in_words"),
    [(7.4, "7 new buildings", "many houses"), (0.2, "1 new building", "a house")],
)
def test_the_mask_head_counts_new_buildings(
    codec: Codec, density: float, expected: str, in_words: str
) -> None:
    """With `counts: dense` the language model says whether there are any, and how many new roads."""
    config = replace(
        CONSISTENT,
        dense=DenseConfig(classes=("none", BUILDINGS), counted=("road_built", BUILDINGS), width=8),
        decoding=Decoding(consistent=True, counts="dense"),
    )
    of_counts = torch.full((1, 2, 4, 4), 9.0)
    of_counts[:, 1] = density / 16
    features = PairFeatures(torch.zeros(1, 1, 1), density=of_counts)
    caption = "many houses and a road are built on the grass"
    for count, buildings in [
        ("1 new road and 12 new buildings", expected),
        ("1 new road and no new buildings", expected),  # against its own caption
    ]:
        model: Any = Wishful(codec, True, {"caption": caption, "count": count})
        predictor = replace(predictor_of(codec), model=model, config=config)
        described, counted = predictor.answer(features, [questions()[0], questions()[2]])[0]
        assert counted.text == f"1 new road and {buildings}"
        assert described.text.startswith(f"{in_words} ")
    model = Wishful(codec, True, {"caption": "a road is built", "count": "1 new road and no new buildings"})
    predictor = replace(predictor_of(codec), model=model, config=config)
    assert predictor.answer(features, questions()[2:3])[0][0].text == "1 new road and no new buildings"
    model = Wishful(codec, False, {"count": "1 new road and 12 new buildings"})
    predictor = replace(predictor_of(codec), model=model, config=config)
    assert TASKS["count"].parse(predictor.answer(features, questions(1.0)[2:3])[0][0].text) == Counts(0, 0)


def test_without_the_option_every_question_is_answered_by_itself(codec: Codec) -> None:
    """As before there were constraints: the same text and score as for a question that agrees with none."""
    predictor = predictor_of(codec)
    predictor = replace(predictor, config=replace(CONSISTENT, decoding=Decoding()))
    encoded = encode(predictor, 3)
    alone = [replace(question, agrees_with=(), form=None) for question in questions()]
    replies = predictor.answer(encoded, questions())
    assert replies == predictor.answer(encoded, alone)
    with pytest.raises(AnswerParseError):
        conflicts_of([reply.text for reply in replies[0]])


def test_questions_in_own_words_are_not_constrained(codec: Codec) -> None:
    """Neither an open question, nor a task's question in other words than the standard ones."""
    typed = QuestionSpec("number", "count", "How many sheds are there?")
    opened = QuestionSpec("same", "open", TASKS["count"].prompt)
    assert not question_of(typed).agrees_with
    assert not question_of(opened).agrees_with
    assert question_of(QuestionSpec("number", "count")) == standard_question(TASKS["count"])
    predictor = predictor_of(codec)
    free = replace(predictor, config=replace(CONSISTENT, decoding=Decoding()))
    encoded = encode(predictor, 2)
    for question in (question_of(typed), question_of(opened)):
        assert predictor.answer(encoded, [question]) == free.answer(encoded, [question])


def test_scores_are_of_the_model_itself(codec: Codec) -> None:
    """P(yes) is that of the free model; log-probabilities of a constrained text are not renormalized."""
    predictor = predictor_of(codec)
    free = replace(predictor, config=replace(CONSISTENT, decoding=Decoding()))
    encoded = encode(predictor, 2)
    caption, change = questions(threshold=1.0)[:2]
    assert [row[0].score for row in predictor.answer(encoded, [change])] == pytest.approx(
        [row[0].score for row in free.answer(encoded, [change])]
    )
    prompt = CONSISTENT.prompt.format(caption.prompt)
    for pair, (reply,) in enumerate(predictor.answer(encoded, [caption])):
        assert reply.text in NO_CHANGE
        constraint = Constraint(Form.of_texts(reply.text), codec.pieces(TINY.language.vocab), codec.eos)
        question, text = predictor.tokenize([prompt])
        generation = predictor.model.generate(
            encoded.tokens[[pair]],
            question,
            text,
            predictor.generation_options(64, Decoding()),
            constraints=[constraint],
        )
        ids = generation.ids[0].tolist()
        assert codec.decode(ids) == reply.text
        prompt_ids = text.ids[0].tolist()
        labels = torch.tensor([[IGNORE_INDEX] * len(prompt_ids) + ids])
        whole = codec.pad_batch([prompt_ids + ids], "right")
        with torch.inference_mode():
            losses = predictor.model.token_losses(encoded.tokens[[pair]], question, whole, labels)
        mean = -float(losses.sum()) / len(ids)
        assert reply.score == pytest.approx(mean, abs=1e-3)
        assert mean < -1  # the model would not have said so


def test_beam_search_is_not_constrained(codec: Codec) -> None:
    predictor = predictor_of(codec)
    caption = replace(questions()[0], max_new_tokens=8)
    encoded = encode(predictor, 1)
    both = (
        replace(predictor, config=replace(CONSISTENT, decoding=Decoding(beams=2, consistent=consistent)))
        for consistent in (True, False)
    )
    constrained, free = (model.answer(encoded, [caption]) for model in both)
    assert constrained == free


@pytest.mark.parametrize("decode", ["fast", "upstream"])
def test_other_decoding_keeps_the_answers_consistent(decode: Any) -> None:
    assert RuntimeOptions(decode=decode, beams=3).apply_to(CONSISTENT).decoding.consistent


def test_tokens_add_their_text(codec: Codec) -> None:
    pieces = codec.pieces(TINY.language.vocab)
    for text in (*CAPTIONS, *COUNTS, *CELLS):
        assert "".join(pieces[each] for each in codec.encode(text)) == f" {text}"
    assert {pieces[each] for each in (codec.pad, codec.bos, codec.eos)} == {""}
