"""Chat protocol: the body of a request about a pair, and the text and score in the body of its reply."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from deltavlm.errors import ModelError
from deltavlm.model.chat_turns import AFTER, BEFORE, THINK_END, chat_turns, drop_marks, drop_reasoning
from deltavlm.model.interface import PairContext, Question

__all__ = ["Completion", "Features", "NoCompletion", "read_completion", "request_body"]

TOP_TOKENS, FEW_TOP_TOKENS = 20, 5  # alternatives of a token that are asked for
_WORD = re.compile(r"[^\W_]+")


class NoCompletion(ModelError):
    """A response that no OpenAI-compatible server gives."""


@dataclass(frozen=True, slots=True)
class Features:
    """Optional fields of a request that a server takes."""

    schema: bool = True
    logprobs: bool = True
    top_logprobs: int = TOP_TOKENS
    temperature: bool = True
    length_field: str = "max_tokens"
    reasoning_tokens: int = 0

    def without_refused(self, body: Mapping[str, Any], detail: str) -> Features | None:
        """Features without the field that a server refuses, by its words, or else without the next optional
        field of the request; None where there is none left.

        >>> Features().without_refused({"max_tokens": 8}, "use 'max_completion_tokens' instead").length_field
        'max_completion_tokens'
        """
        words = detail.lower()
        if "max_completion_tokens" in words and "max_tokens" in body:
            return replace(self, length_field="max_completion_tokens")
        if "temperature" in words and "temperature" in body:
            return replace(self, temperature=False)
        names_schema = re.search(r"response_format|schema|grammar", words) is not None
        names_logprobs = "logprob" in words
        if "response_format" in body and (names_schema or not names_logprobs):
            return replace(self, schema=False)
        if body.get("top_logprobs", 0) > FEW_TOP_TOKENS and names_logprobs and re.search(r"\d", words):
            return replace(self, top_logprobs=FEW_TOP_TOKENS)
        if "logprobs" in body:
            return replace(self, logprobs=False)
        return None


@dataclass(frozen=True, slots=True)
class Completion:
    """Text of a reply, and its score: P(yes) for a yes/no question, else the mean log-probability of its
    tokens; NaN where the server does not say."""

    text: str
    score: float
    model: str  # as the server calls it
    is_cut: bool  # at the maximum length
    is_reasoning: bool = False  # cut before the answer began
    has_tokens: bool = False  # with their probabilities


def request_body(
    model: str, images: tuple[str, str], context: PairContext, question: Question, features: Features
) -> dict[str, Any]:
    """Body of a request; `images` are the URLs of both dates, perhaps data URLs."""
    turns = chat_turns(context, question)
    urls = {BEFORE["date"]: images[0], AFTER["date"]: images[1]}
    messages = [
        {"role": turn["role"], "content": [_item(item, urls) for item in turn["content"]]} for turn in turns
    ]
    length = question.max_new_tokens + features.reasoning_tokens
    body: dict[str, Any] = {"model": model, "messages": messages, features.length_field: length}
    if features.temperature:
        body["temperature"] = 0
    if features.logprobs:
        body["logprobs"] = True
        if question.yes_no:
            body["top_logprobs"] = features.top_logprobs
    if question.schema and features.schema:
        schema = {"name": "answer", "strict": True, "schema": json.loads(question.schema)}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    return body


def _item(item: Mapping[str, str], urls: Mapping[str, str]) -> dict[str, Any]:
    if item["type"] == "image":
        return {"type": "image_url", "image_url": {"url": urls[item["date"]]}}
    return {"type": "text", "text": item["text"]}


def read_completion(value: Any, question: Question) -> Completion:
    """Completion in the parsed body of a response.

    Raises: NoCompletion for another protocol; ModelError where there is no answer in it.
    """
    choices = value.get("choices") if isinstance(value, dict) else None
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise NoCompletion("the reply has no list of choices")
    if len(choices) != 1:
        raise ModelError(f"the reply has {len(choices)} choices, not one")
    (choice,) = choices
    message = choice.get("message")
    if not isinstance(message, dict):
        raise NoCompletion("the reply has no message")
    content = _content(message.get("content"))
    text = drop_reasoning(content)
    has_reasoned = text != content.strip() or any(
        message.get(name) for name in ("reasoning", "reasoning_content")
    )
    text = drop_marks(text)
    reason = choice.get("finish_reason")
    is_cut, model = reason == "length", str(value.get("model") or "")
    if not text:
        if is_cut and (has_reasoned or not content.strip()):
            return Completion("", math.nan, model, True, is_reasoning=True)
        if message.get("refusal") or reason == "content_filter":
            raise ModelError(f"the server declines to answer: {message.get('refusal') or reason}")
        raise ModelError("the reply is empty")
    tokens = list(_answer_tokens(choice.get("logprobs"), text))
    score = _yes_probability(tokens) if question.yes_no else _mean(tokens)
    return Completion(text, score, model, is_cut, has_tokens=bool(tokens))


def _content(content: Any) -> str:
    """Text of a message: a string, or a list of parts. Raises: NoCompletion."""
    if content is None:
        return ""
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        content = "".join(part for part in parts if isinstance(part, str))
    if not isinstance(content, str):
        raise NoCompletion("the reply has a message that is no text")
    return content


@dataclass(frozen=True, slots=True)
class _Token:
    text: str
    logprob: float
    alternatives: tuple[tuple[str, float], ...]  # itself among them


def _answer_tokens(logprobs: Any, text: str) -> Iterator[_Token]:
    """Tokens of the answer, without those of the reasoning before it; none where they are not known."""
    tokens = [*_read_tokens(logprobs)]
    start, joined = 0, ""
    for index, token in enumerate(tokens):
        joined += token.text
        if joined.endswith(THINK_END):
            start = index + 1
    words = _WORD.search(text)
    for token in tokens[start:]:
        first = _WORD.search(token.text)
        if first and words:  # the first token with letters begins the answer, or they are of something else
            if not words[0].startswith(first[0]):
                return
            break
    yield from tokens[start:]


def _read_tokens(logprobs: Any) -> Iterator[_Token]:
    entries = logprobs.get("content") if isinstance(logprobs, dict) else None
    for entry in entries if isinstance(entries, list) else ():
        token = _read_token(entry)
        if token is not None:
            top = entry.get("top_logprobs")
            others = [_read_token(each) for each in top] if isinstance(top, list) else []
            alternatives = {each[0]: each[1] for each in (*others, token) if each is not None}
            yield _Token(*token, tuple(alternatives.items()))


def _read_token(entry: Any) -> tuple[str, float] | None:
    if not isinstance(entry, dict):
        return None
    text, logprob = entry.get("token"), entry.get("logprob")
    if not isinstance(text, str) or not isinstance(logprob, int | float) or not logprob <= 0:
        return None
    return text.replace("\u2581", " ").replace("\u0120", " "), float(logprob)


def _yes_probability(tokens: Sequence[_Token]) -> float:
    """P(yes) / (P(yes) + P(no)) at the first token with letters, over all spellings; NaN where neither is
    among its alternatives."""
    first = next((token for token in tokens if _WORD.search(token.text)), None)
    sums = {"yes": 0.0, "no": 0.0}
    for text, logprob in first.alternatives if first else ():
        word = text.strip(" \t\r\n\"'*`.,:;!").lower()
        if word in sums:
            sums[word] += math.exp(logprob)
    total = sums["yes"] + sums["no"]
    return sums["yes"] / total if total > 0 else math.nan


def _mean(tokens: Sequence[_Token]) -> float:
    return sum(token.logprob for token in tokens) / len(tokens) if tokens else math.nan
