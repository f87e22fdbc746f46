"""Open questions about a pair, written by a language model behind an OpenAI-compatible endpoint.

    writer = QuestionWriter(Endpoint(url, model, key), ReplyLog(folder / "replies.jsonl"))
    questions = writer("test/x.png", facts)

Each usable reply is logged at once, by pair and prompt, so that an interrupted run resumes without asking
again. The key is sent to the endpoint, and never shown or stored.
"""

from __future__ import annotations

import hashlib
import threading
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from deltavlm.data.build import PairFacts
from deltavlm.data.synthetic.phrases import QuestionAnswer, count_answer, join_labels
from deltavlm.errors import InputError, OutputError, ToolError
from deltavlm.files import JsonLines, parse_json, read_text
from deltavlm.model.openai.address import Address
from deltavlm.model.openai.client import Client, NoAnswer, NoServer, Response
from deltavlm.tasks.text import clean

__all__ = ["Endpoint", "QuestionWriter", "ReplyLog", "make_prompt", "parse_reply"]

MAX_QUESTIONS, MAX_QUESTION_CHARS, MAX_ANSWER_CHARS = 6, 300, 600
MAX_REPLIES = 3  # asked for one pair until one of them is usable
MAX_FAILED_PAIRS = 5  # in a row; then the model is the wrong one
TIMEOUT_S = 60.0
TASK = (
    "You write questions and answers about what changed between two aerial images of one place, taken at"
    " different times. You are told what is true of the pair. Write 3 questions that a person who looks at"
    " both images might ask, each with a short answer that follows from what you are told and from nothing"
    " else. Do not ask for yes or no alone, and do not mention that you were told anything. Reply with a JSON"
    ' list only: [{"question": "...", "answer": "..."}]'
)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Address, model and key of an endpoint, and the retries of a request."""

    url: str  # up to /chat/completions
    model: str
    key: str | None = field(default=None, repr=False)
    timeout_s: float = TIMEOUT_S  # of a whole reply
    tries: int = 5  # of a request that fails with 429, 5xx or without a connection
    stop: threading.Event = field(default_factory=threading.Event)  # ends the pauses between tries

    def __post_init__(self) -> None:
        """Raises: InputError for an address or a key that HTTP cannot use."""
        try:
            address = urlsplit(self.url)
            is_valid = address.scheme in ("http", "https") and bool(address.hostname) and address.port != 0
        except ValueError:
            is_valid = False
        if not is_valid or not self.url.isprintable() or " " in self.url:
            raise InputError(
                f"{self.url!r} is not the address of an endpoint, such as http://localhost:8000/v1"
            )
        if address.username is not None:
            raise InputError("the address of the endpoint holds a name or password; set the key instead")
        if self.key is not None and not (self.key.isascii() and self.key.isprintable()):
            raise InputError("the key of the endpoint has characters that no HTTP header can have")


class ReplyLog:
    """Replies by pair and digest of the prompt, in a file of JSON lines."""

    def __init__(self, path: Path) -> None:
        """Read the file where it exists. Raises: InputError when it cannot be read."""
        self.path = path
        self.replies: dict[tuple[str, str], tuple[QuestionAnswer, ...]] = {}
        try:
            text = read_text(path) if path.exists() else ""
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read {path}: {error}; delete it to ask again") from error
        for line in text.splitlines():
            try:
                record = parse_json(line)
                questions = _check_questions(record["questions"])
                self.replies[str(record["id"]), str(record["asked"])] = questions
            except (ValueError, KeyError, TypeError):
                continue  # the incomplete last line of an interrupted run: that pair is asked again

    def add(self, pair: str, digest: str, model: str, questions: Sequence[QuestionAnswer]) -> None:
        """Append a reply. Raises: OutputError."""
        texts = [{"question": turn.question, "answer": turn.answer} for turn in questions]
        record = {"id": pair, "asked": digest, "model": model, "questions": texts}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with JsonLines.open(self.path) as lines:
                lines.append([record])
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror or error}") from error
        self.replies[pair, digest] = tuple(questions)


@dataclass(slots=True)
class QuestionWriter:
    """Callable that takes the open questions of a pair from the log, else from the endpoint."""

    endpoint: Endpoint
    log: ReplyLog
    new_replies: int = 0  # from the endpoint
    failed_pairs: int = 0  # in a row, without a usable reply

    def __call__(self, pair: str, facts: PairFacts) -> tuple[QuestionAnswer, ...]:
        """Open questions of a pair (SPLIT/NAME).

        Raises: ValueError when no reply is usable; InputError or ToolError when the endpoint gives none.
        """
        prompt = make_prompt(facts)
        request = f"{self.endpoint.model}\n{TASK}\n{prompt}"
        digest = hashlib.sha256(request.encode("utf-8", "replace")).hexdigest()
        if (pair, digest) in self.log.replies:
            return self.log.replies[pair, digest]
        fault = ""
        for _ in range(MAX_REPLIES):
            try:
                questions = parse_reply(request_reply(self.endpoint, self.log.path, prompt))
            except ValueError as error:
                fault = str(error)
                continue
            self.new_replies, self.failed_pairs = self.new_replies + 1, 0
            self.log.add(pair, digest, self.endpoint.model, questions)
            return questions
        self.failed_pairs += 1
        message = f"{MAX_REPLIES} replies of {self.endpoint.model} could not be used; the last: {fault}"
        if self.failed_pairs == MAX_FAILED_PAIRS:
            raise ToolError(f"{MAX_FAILED_PAIRS} pairs in a row: {message}; take another `llm_model`")
        raise ValueError(message)


def make_prompt(facts: PairFacts) -> str:
    """User message about a pair: change flag, counts, cells and captions."""
    lines = [
        f"Have the two images changed? {'yes' if facts.changed else 'no'}",
        f"New roads and buildings: {count_answer(facts.changed, facts.counts)}",
        f"Changed roads lie in these cells of a 3x3 grid: {join_labels(facts.cells.roads)}",
        f"Changed buildings lie in these cells: {join_labels(facts.cells.buildings)}",
        *(f"A person who saw both says: {caption}" for caption in facts.captions),
    ]
    return "\n".join(lines)


def parse_reply(text: str) -> tuple[QuestionAnswer, ...]:
    """Questions and answers of a reply, with or without a code fence. Raises: ValueError."""
    body = text.strip()
    if body.startswith("```"):
        body = body.removeprefix("```json").removeprefix("```").removesuffix("```").strip()
    try:
        content = parse_json(body)
    except ValueError as error:
        raise ValueError(f"not JSON: {clean(text)[:80]!r}") from error
    return _check_questions(content)


def _check_questions(content: Any) -> tuple[QuestionAnswer, ...]:
    """Questions and answers of parsed JSON. Raises: ValueError saying what is wrong."""
    if not isinstance(content, list) or not 1 <= len(content) <= MAX_QUESTIONS:
        raise ValueError(f"not a list of 1 to {MAX_QUESTIONS} questions")
    questions = []
    for entry in content:
        if not isinstance(entry, dict):
            raise ValueError("an entry is not an object with question and answer")
        texts = []
        for key, max_chars in (("question", MAX_QUESTION_CHARS), ("answer", MAX_ANSWER_CHARS)):
            value = entry.get(key)
            if not isinstance(value, str) or not value.strip():
                raise ValueError(f"{key} is missing or not text")
            if len(value) > max_chars:
                raise ValueError(f"{key} has {len(value)} characters, more than {max_chars}")
            # control characters, lone surrogates; "<image>" marks images in the released schema
            if any(unicodedata.category(char) in ("Cc", "Cs") for char in value) or "<image>" in value:
                raise ValueError(f"{key} has characters that no record can have")
            texts.append(value.strip())
        questions.append(QuestionAnswer(*texts))
    if len({turn.question for turn in questions}) < len(questions):
        raise ValueError("a question occurs twice")
    return tuple(questions)


def request_reply(endpoint: Endpoint, log: Path, prompt: str) -> str:
    """Ask the endpoint and return the text of its reply; `log` is named in errors.

    Raises: ValueError when the reply has no text; InputError when the endpoint refuses; ToolError when it
    does not answer.
    """
    messages = [{"role": "system", "content": TASK}, {"role": "user", "content": prompt}]
    address = Address(endpoint.url.rstrip("/"), endpoint.model)
    hint = "a longer `llm_timeout` may help"
    client = Client(address, endpoint.key, endpoint.timeout_s, endpoint.tries, timeout_hint=hint)
    body = {"model": endpoint.model, "messages": messages}
    try:
        response = client.request("/chat/completions", body, stop=endpoint.stop)
    except (NoAnswer, NoServer) as error:
        saved = f"; replies so far are saved in {log}" if log.exists() else ""
        raise ToolError(f"{error}{saved}; run the same command again to resume") from error
    if not 200 <= response.status < 300:
        raise InputError(_explain_refusal(endpoint, client, response))
    return _message_text(endpoint, response.content)


def _explain_refusal(endpoint: Endpoint, client: Client, response: Response) -> str:
    """Message for a refusal: its reason and the next step, without the key if the reply repeats it."""
    if response.status in (401, 403):
        reason = "the key was refused" if endpoint.key else "it asks for a key"
        return f"{endpoint.url} (HTTP {response.status}): {reason}; set DELTAVLM_LLM_KEY to a valid key"
    detail = f"a redirect to {response.location}" if response.location else client.detail(response)
    return (
        f"{endpoint.url} (HTTP {response.status}) refuses a request for {endpoint.model}: {detail}; check "
        "`llm_endpoint` and `llm_model`"
    )


def _message_text(endpoint: Endpoint, content: bytes) -> str:
    """Text of the first choice. Raises: ValueError when it has none; InputError for another protocol."""
    try:
        text = parse_json(content)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise InputError(
            f"{endpoint.url} does not answer as an OpenAI-compatible endpoint does; check `llm_endpoint`"
        ) from error
    if not isinstance(text, str):
        raise ValueError("the answer has no text")
    return text
