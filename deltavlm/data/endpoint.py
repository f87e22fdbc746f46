"""Open questions from a language model behind an OpenAI-compatible endpoint, kept as they come.

    ask = QuestionWriter(Endpoint(url, model, key), ReplyLog(folder / "replies.jsonl"))
    ask("test/x.png", facts)

Every usable reply is stored at once, by pair and by what was asked, so that a run that was cut off goes on
where it stopped. The key is sent and nothing else is done with it.
"""

from __future__ import annotations

import hashlib
import json
import time
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from deltavlm.data.build import PairFacts
from deltavlm.data.synthetic.phrases import Turn, count_answer, join_labels
from deltavlm.errors import InputError, OutputError, ToolError
from deltavlm.tasks.text import clean

__all__ = ["Endpoint", "QuestionWriter", "ReplyLog", "make_prompt", "parse_reply"]

MOST_QUESTIONS, LONGEST_QUESTION, LONGEST_ANSWER = 6, 300, 600  # characters
LARGEST_REPLY = 1_000_000  # bytes
REPLIES, PATIENCE = 3, 5  # replies that are tried for a pair; pairs in a row without any
TASK = (
    "You write questions and answers about what changed between two aerial images of one place, taken at"
    " different times. You are told what is true of the pair. Write 3 questions that a person who looks at"
    " both images might ask, each with a short answer that follows from what you are told and from nothing"
    " else. Do not ask for yes or no alone, and do not mention that you were told anything. Reply with a JSON"
    ' list only: [{"question": "...", "answer": "..."}]'
)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a model answers, and how patiently it is asked. `url` ends before /chat/completions."""

    url: str
    model: str
    key: str | None = field(default=None, repr=False)
    timeout_s: float = 120.0
    tries: int = 5  # of a request that meets trouble
    pause: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        """Raises: InputError for what is no address."""
        try:
            parts = urlsplit(self.url)
            is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            is_address = False
        if not is_address or not self.url.isprintable() or " " in self.url:
            raise InputError(
                f"{self.url!r} is not the address of an endpoint, such as http://localhost:8000/v1"
            )
        if parts.username is not None:
            raise InputError("the address of the endpoint holds a name or password; set the key instead")
        if self.key is not None and not (self.key.isascii() and self.key.isprintable()):
            raise InputError("the key of the endpoint has characters that no HTTP header can have")


class ReplyLog:
    """Replies in a file of one JSON object a line, read once and added to."""

    def __init__(self, path: Path) -> None:
        """Raises: InputError where the file is there and cannot be read."""
        self.path = path
        self.known: dict[tuple[str, str], tuple[Turn, ...]] = {}
        try:
            text = path.read_text(encoding="utf-8") if path.exists() else ""
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read {path}: {error}; delete it to ask anew") from error
        for line in text.splitlines():
            try:
                entry = json.loads(line)
                turns = _checked(entry["questions"])
                self.known[str(entry["id"]), str(entry["asked"])] = turns
            except (ValueError, KeyError, TypeError, RecursionError):
                continue  # the last line of a run that was cut off: it is asked again
        self.needs_break = bool(text) and not text.endswith("\n")

    def add(self, name: str, asked: str, model: str, turns: Sequence[Turn]) -> None:
        """Raises: OutputError."""
        questions = [{"question": turn.question, "answer": turn.answer} for turn in turns]
        line = json.dumps({"id": name, "asked": asked, "model": model, "questions": questions})
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(("\n" if self.needs_break else "") + line + "\n")
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror or error}") from error
        self.needs_break = False
        self.known[name, asked] = tuple(turns)


@dataclass(slots=True)
class QuestionWriter:
    """Asks for the open questions of a pair, or finds them in the store."""

    endpoint: Endpoint
    store: ReplyLog
    asked: int = 0  # replies that came from the endpoint
    in_vain: int = 0  # pairs in a row without a usable reply

    def __call__(self, name: str, facts: PairFacts) -> tuple[Turn, ...]:
        """Raises: ValueError where no reply could be used; InputError or ToolError where none came."""
        prompt = make_prompt(facts)
        what = f"{self.endpoint.model}\n{TASK}\n{prompt}"
        asked = hashlib.sha256(what.encode("utf-8", "replace")).hexdigest()
        if (name, asked) in self.store.known:
            return self.store.known[name, asked]
        fault = ""
        for _ in range(REPLIES):
            try:
                turns = parse_reply(_reply(self.endpoint, self.store.path, prompt))
            except ValueError as error:
                fault = str(error)
                continue
            self.asked, self.in_vain = self.asked + 1, 0
            self.store.add(name, asked, self.endpoint.model, turns)
            return turns
        self.in_vain += 1
        told = f"{REPLIES} replies of {self.endpoint.model} could not be used; the last: {fault}"
        if self.in_vain == PATIENCE:
            raise ToolError(f"{PATIENCE} pairs in a row: {told}; take another --llm-model")
        raise ValueError(told)


def make_prompt(facts: PairFacts) -> str:
    """What the model is told of a pair: what people said, the counts and the cells."""
    lines = [
        f"Have the two images changed? {'yes' if facts.changed else 'no'}",
        f"New roads and buildings: {count_answer(facts.changed, facts.counts)}",
        f"Changed roads lie in these cells of a 3x3 grid: {join_labels(facts.cells.roads)}",
        f"Changed buildings lie in these cells: {join_labels(facts.cells.buildings)}",
        *(f"A person who saw both says: {caption}" for caption in facts.captions),
    ]
    return "\n".join(lines)


def parse_reply(text: str) -> tuple[Turn, ...]:
    """The questions and answers of a reply, which may stand in a code fence. Raises: ValueError."""
    body = text.strip()
    if body.startswith("```"):
        body = body.removeprefix("```json").removeprefix("```").removesuffix("```").strip()
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {clean(text)[:80]!r}") from error
    return _checked(found)


def _checked(found: Any) -> tuple[Turn, ...]:
    """Raises: ValueError saying what a list of questions lacks."""
    if not isinstance(found, list) or not 1 <= len(found) <= MOST_QUESTIONS:
        raise ValueError(f"not a list of 1 to {MOST_QUESTIONS} questions")
    turns = []
    for one in found:
        if not isinstance(one, dict):
            raise ValueError("an entry is not an object with question and answer")
        texts = []
        for key, longest in (("question", LONGEST_QUESTION), ("answer", LONGEST_ANSWER)):
            value = one.get(key)
            if not isinstance(value, str) or not value.strip():
                raise ValueError(f"{key} is missing or not text")
            if len(value) > longest:
                raise ValueError(f"{key} has {len(value)} characters, more than {longest}")
            # control characters, lone surrogates; "<image>" marks pictures in the released schema
            if any(unicodedata.category(char) in ("Cc", "Cs") for char in value) or "<image>" in value:
                raise ValueError(f"{key} has characters that no record can have")
            texts.append(value.strip())
        turns.append(Turn(*texts))
    if len({turn.question for turn in turns}) < len(turns):
        raise ValueError("a question stands there twice")
    return tuple(turns)


def _reply(endpoint: Endpoint, store: Path, prompt: str) -> str:
    """The text of one reply.

    Raises: ValueError where it has none; InputError where the endpoint refuses; ToolError where it does not
    answer.
    """
    messages = [{"role": "system", "content": TASK}, {"role": "user", "content": prompt}]
    body = json.dumps({"model": endpoint.model, "messages": messages}).encode()
    address = endpoint.url.rstrip("/") + "/chat/completions"
    fault = ""
    for attempt in range(endpoint.tries):
        request = Request(address, body, {"Content-Type": "application/json"}, method="POST")
        if endpoint.key:
            request.add_unredirected_header("Authorization", f"Bearer {endpoint.key}")
        rest_s = min(60.0, 2.0**attempt)
        try:
            with urlopen(request, timeout=endpoint.timeout_s) as response:
                content = response.read(LARGEST_REPLY)
            return _said(endpoint, content)
        except HTTPError as error:
            with error:
                if error.code != 429 and error.code < 500:
                    raise InputError(_refusal(endpoint, error)) from error
                fault = f"HTTP {error.code}"
                wanted = error.headers.get("Retry-After", "")
                if wanted.isdecimal():
                    rest_s = min(60.0, float(wanted))
        except (URLError, HTTPException, OSError) as error:  # no connection, cut off, too slow
            fault = str(getattr(error, "reason", "") or error) or type(error).__name__
        if attempt + 1 < endpoint.tries:
            endpoint.pause(rest_s)
    kept = f"; replies so far are kept in {store}" if store.exists() else ""
    raise ToolError(
        f"{endpoint.url} did not answer in {endpoint.tries} tries ({fault}){kept};"
        f" run the same again to go on"
    )


def _refusal(endpoint: Endpoint, error: HTTPError) -> str:
    """Why the endpoint will not answer, and what to do; a key that it repeats is not shown."""
    if error.code in (401, 403):
        given = "the key was refused" if endpoint.key else "it asks for a key"
        return f"{endpoint.url} (HTTP {error.code}): {given}; set DELTAVLM_LLM_KEY to one that may ask"
    try:
        detail = clean(error.read(LARGEST_REPLY).decode("utf-8", "replace"))[:200]
    except (OSError, HTTPException):
        detail = ""
    if endpoint.key:
        detail = detail.replace(endpoint.key, "***")
    return (
        f"{endpoint.url} (HTTP {error.code}) refuses to be asked for {endpoint.model}:"
        f" {detail or error.reason}; check --llm-endpoint and --llm-model"
    )


def _said(endpoint: Endpoint, content: bytes) -> str:
    """The text in an answer. Raises: ValueError where it has none; InputError where it is no such answer."""
    try:
        text = json.loads(content)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
        raise InputError(
            f"{endpoint.url} does not answer as an OpenAI-compatible endpoint does; check --llm-endpoint"
        ) from error
    if not isinstance(text, str):
        raise ValueError("the answer has no text")
    return text
