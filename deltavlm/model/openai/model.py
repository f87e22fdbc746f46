"""ChangeModel that asks a server: one request for each question about a pair, several at a time."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import logging
import math
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from queue import SimpleQueue
from typing import Any

import numpy as np

from deltavlm.errors import ConfigError, InputError, ModelError, ToolError
from deltavlm.messages import pluralize, preview
from deltavlm.model.calibration import apply_calibration, logits
from deltavlm.model.chat_turns import CHIP_PX, REASONING_TOKENS, ChatFacts
from deltavlm.model.config import RuntimeOptions, ScoreCalibration
from deltavlm.model.interface import PairContext, Pixels, Question, Reply
from deltavlm.model.kinds import ModelSpec
from deltavlm.model.openai.address import KEY, parse_address, read_key
from deltavlm.model.openai.chat import (
    Completion,
    Features,
    NoCompletion,
    read_completion,
    request_body,
)
from deltavlm.model.openai.client import Client, NoAnswer, NoServer, Response

__all__ = ["EncodedPairs", "ServerModel", "load", "read_spec"]

logger = logging.getLogger(__name__)

MAX_REPLIES = 20_000  # that are kept, so that a batch that is repeated asks nothing twice
MAX_FAILED_PAIRS = 8  # in a row, before the fault is that of the server
LISTED = 8  # models of a server that a message names
PROBE = Question(
    "probe", "Do the two images differ? Answer with one word, yes or no.", yes_no=True, max_new_tokens=8
)
PROBE_PX = 64
_OTHER_MODEL = "choose a model that reads several images"
LOCAL_OPTIONS = (
    *("device", "runtime", "dtype", "quantize", "decode"),
    *("beams", "prompt_style", "offline", "trust_remote_code"),
)
"""Fields of `RuntimeOptions` for models on this machine alone."""


@dataclass(frozen=True, slots=True)
class _Pair:
    images: tuple[str, str]  # data URLs of before and after
    context: PairContext

    @property
    def digest(self) -> str:
        return hashlib.sha256(repr((self.images, self.context)).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class EncodedPairs:
    """Images of N pairs as data URLs of PNG files, and what is known about each pair."""

    pairs: tuple[_Pair, ...]
    digests: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.pairs)


class _Refusal(ModelError):
    """A response with an error that another try will not change."""


@dataclass(repr=False)
class ServerModel(ChatFacts):
    """A ChangeModel whose weights are on a server, and which is asked as any instruction-tuned model is.

    The requests of a batch run in threads of their own, so there is one worker.
    """

    client: Client
    fingerprint: str
    requests: int = 4  # at a time
    calibration: ScoreCalibration | None = None
    features: Features = field(default_factory=Features)
    served_model: str = ""  # as the server calls it
    _replies: OrderedDict[Hashable, Reply | ModelError] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _notes: set[str] = field(default_factory=set)  # kinds of messages that were logged
    _answered: tuple[_Pair, Question] | None = None  # the last question that the server has answered
    _answered_fields: set[str] = field(default_factory=set)  # of requests that the server has answered
    _failed_pairs: dict[Question, set[str]] = field(default_factory=dict)
    """Question -> digests of pairs in a row to which the server has not answered it."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.label} at {self.client.address.url}>"

    @property
    def name(self) -> str:
        return self.client.address.model

    @property
    def device(self) -> str:
        return self.client.address.host

    @property
    def details(self) -> dict[str, Any]:
        return {
            "server": self.client.address.url,
            "weights": "not known: the server does not show them",
            "calibration": None if self.calibration is None else asdict(self.calibration),
        }

    def auto_batch_size(self) -> int:
        """As many pairs as requests, so that little is asked again after an interruption."""
        return self.requests

    def encode(self, before: Pixels, after: Pixels, contexts: Sequence[PairContext] = ()) -> EncodedPairs:
        """Images of N pairs, (N, 3, H, W) uint8 RGB each, as data URLs."""
        contexts = contexts or [PairContext()] * len(before)
        pairs = tuple(
            _Pair((_data_url(first), _data_url(second)), context)
            for first, second, context in zip(before, after, contexts, strict=True)
        )
        return EncodedPairs(pairs, tuple(pair.digest for pair in pairs))

    def answer(
        self, encoded: EncodedPairs, questions: Sequence[Question], pairs: Sequence[int] | None = None
    ) -> list[list[Reply]]:
        """Replies as [pair][question]; see `answer_rows`."""
        indices = range(len(encoded)) if pairs is None else pairs
        replies = self.answer_rows(encoded, [(pair, question) for pair in indices for question in questions])
        count = len(questions)
        return [replies[start * count : (start + 1) * count] for start in range(len(indices))]

    def answer_rows(self, encoded: EncodedPairs, rows: Sequence[tuple[int, Question]]) -> list[Reply]:
        """Replies to rows of (index of a pair, question), in their order; equal rows are asked once.

        Replies are kept: where one of several pairs fails, and the others are asked again, they are at hand.

        Raises: ModelError where a question got no answer, after all others have theirs; InputError where the
            server refuses the key or the model; ToolError where it is gone or fails for every pair.
        """
        keys = [(encoded.digests[pair], question) for pair, question in rows]
        distinct = dict(zip(keys, rows, strict=True))
        outcomes = {key: self._replies[key] for key in distinct if key in self._replies}
        missing = [key for key in distinct if key not in outcomes]
        asked = [(encoded.pairs[distinct[key][0]], distinct[key][1]) for key in missing]
        for index, outcome in _run_in_threads(self._ask, asked, self.requests):
            outcomes[missing[index]] = outcome
            self._keep(missing[index], outcome)
        self._count_failed_pairs(outcomes)
        failed = [key for key in distinct if isinstance(outcomes[key], ModelError)]
        if failed and len(encoded) == 1:  # nobody repeats this for the sake of another pair
            for key in failed:
                self._replies.pop(key, None)
        replies = []
        for key in keys:
            outcome = outcomes[key]
            if isinstance(outcome, ModelError):
                raise outcome
            replies.append(outcome)
        return replies

    def check_server(self) -> None:
        """Ask about two small images, as the first request.

        Raises: InputError where the server is not there or refuses, for the reason that it gives.
        """
        shades = np.linspace(0, 255, PROBE_PX * PROBE_PX).reshape(PROBE_PX, PROBE_PX).astype(np.uint8)
        (pair,) = self.encode(np.stack([[shades] * 3]), np.stack([[shades.T] * 3])).pairs
        address = self.client.address
        try:
            completion = self._complete(pair, PROBE, threading.Event(), is_first=True)
        except NoServer as error:
            raise InputError(f"{error}; start it, or correct the address") from error
        except NoAnswer as error:
            hint = "try again later"
            if error.status == 500:  # some servers fail where others refuse
                doubt = f"{hint}, or is there no model {self.name}?"
                hint = _OTHER_MODEL if "image" in error.detail.lower() else doubt
            raise InputError(f"{error}; {hint}") from error
        except NoCompletion as error:
            raise InputError(
                f"{error}; is this the address up to /v1 of an OpenAI-compatible server?"
            ) from error
        except _Refusal as error:
            raise InputError(f"{error}, in answer to a question with two images; {_OTHER_MODEL}") from error
        except ModelError as error:  # about the answer, not the server
            logger.info("first question to %s: %s", address.url, error)
            self._answered = pair, PROBE
        else:
            self._answered = pair, PROBE
            if completion.is_cut and not _says_yes_or_no(completion.text):
                logger.warning(
                    "%s begins its answer to a yes/no question with %s: if it reasons first, start the server"
                    " so that it marks reasoning, or choose another model; otherwise answers are cut off",
                    *(self.name, preview(completion.text)),
                )

    def _keep(self, key: Hashable, outcome: Reply | ModelError) -> None:
        self._replies[key] = outcome
        while len(self._replies) > MAX_REPLIES:
            self._replies.popitem(last=False)

    def _ask(self, row: tuple[_Pair, Question], stop: threading.Event) -> Reply:
        """Reply to one question. Raises: ModelError; InputError or ToolError that ends the run."""
        pair, question = row
        try:
            completion = self._complete(pair, question, stop)
        except NoAnswer:
            self._repeat_answered(stop)
            raise
        self._answered = row
        if completion.is_cut and question.schema and _is_cut_json(completion.text):
            raise ModelError(
                f"the JSON of the answer is cut off at {question.max_new_tokens} tokens: "
                f"{preview(completion.text[-40:])}"
            )
        begins_otherwise = question.typed and completion.has_tokens  # than with yes or no
        if math.isnan(completion.score) and question.yes_no and not begins_otherwise:
            self._warn_once(
                "score",
                f"{self.device} gives no probabilities of yes and no: chips have no score of change, and are "
                "changed by the word of the answer, whatever the threshold is",
            )
        if completion.model and completion.model != self.name:
            self._warn_once("model", f"{self.device} answers as {preview(completion.model)}, not {self.name}")
        return Reply(completion.text, self._calibrated(completion.score, question))

    def _repeat_answered(self, stop: threading.Event) -> None:
        """Ask again what the server has answered before, to tell a fault of the server from one of a pair.

        Raises: ToolError where it has no answer now.
        """
        if self._answered is None:
            return
        try:
            self._complete(*self._answered, stop)
        except NoAnswer as error:
            raise ToolError(
                f"{error}, nor to a question that it has answered before; try again later"
            ) from error
        except ModelError:  # it answers
            pass

    def _count_failed_pairs(self, outcomes: Mapping[tuple[str, Question], Reply | ModelError]) -> None:
        """Count, for each question, pairs in a row without an answer of the server to it.

        Raises: ToolError where these are MAX_FAILED_PAIRS.
        """
        for question in dict.fromkeys(question for _, question in outcomes):
            by_pair = {pair: outcome for (pair, asked), outcome in outcomes.items() if asked == question}
            if not all(isinstance(outcome, NoAnswer) for outcome in by_pair.values()):
                self._failed_pairs.pop(question, None)
                continue
            failed = self._failed_pairs.setdefault(question, set())
            failed.update(by_pair)
            if len(failed) >= MAX_FAILED_PAIRS:
                self._failed_pairs.clear()
                raise ToolError(
                    f"{next(reversed(by_pair.values()))}, to {preview(question.prompt)} for "
                    f"{pluralize(len(failed), 'pair')} in a row; see the log of the server"
                )

    def _calibrated(self, score: float, question: Question) -> float:
        if self.calibration is None or not question.yes_no or math.isnan(score):
            return score
        return float(apply_calibration(self.calibration, logits(score)))

    def _complete(
        self, pair: _Pair, question: Question, stop: threading.Event, *, is_first: bool = False
    ) -> Completion:
        """Completion of a request, without the optional fields that the server turns out to refuse."""
        features = self.features
        while True:
            body = request_body(self.name, pair.images, pair.context, question, features)
            try:
                response = self.client.request("/chat/completions", body, stop=stop, is_first=is_first)
            except NoAnswer as error:
                simpler = self._without_failing(features, body, error)
                if simpler is None:
                    raise
                features = simpler
                continue
            if response.status in (400, 422, 501):
                detail = self.client.detail(response)
                simpler = features.without_refused(body, detail)
                if simpler is not None:
                    logger.debug("%s refuses a field of the request: %s", self.device, detail)
                    features = simpler
                    continue
            content = self._content(response)
            self.features = features
            self._answered_fields |= body.keys()
            completion = read_completion(content, question)
            if not completion.is_reasoning:
                self.served_model = completion.model
                return completion
            if features.reasoning_tokens:
                raise ModelError(f"no answer within {REASONING_TOKENS} tokens of reasoning")
            features = replace(features, reasoning_tokens=REASONING_TOKENS)

    def _without_failing(
        self, features: Features, body: Mapping[str, Any], error: NoAnswer
    ) -> Features | None:
        """Features without an optional field for which a server may fail (HTTP 500) instead of refusing it;
        None where there is none. A field that it has answered before is not the reason, and logprobs only
        where it names them, as a server that still loads its model fails too."""
        doubtful = {name: body[name] for name in body.keys() - self._answered_fields}
        if "logprob" not in error.detail.lower():
            doubtful.pop("logprobs", None)
        return features.without_refused(doubtful, error.detail) if error.status == 500 else None

    def _content(self, response: Response) -> Any:
        """JSON of a response. Raises: _Refusal, NoCompletion; InputError for a refusal of everything."""
        url, status = self.client.address.url, response.status
        if 200 <= status < 300:
            try:
                return response.json()
            except ValueError:
                page = "an HTML page" if response.content.lstrip().startswith(b"<") else "no JSON"
                raise NoCompletion(f"{url} answers with {page}") from None
        if 300 <= status < 400:
            raise InputError(f"{url} redirects to {response.location or 'another address'}; use that one")
        if status in (401, 403):
            reason = "the key was refused" if self.client.key else "it asks for a key"
            raise InputError(f"{url} (HTTP {status}): {reason}; set {KEY} to a valid key")
        message = f"{url} (HTTP {status}): {self.client.detail(response)}"
        if status == 404:
            raise InputError(
                f"{message}; no model {self.name} there, or another address{_list_models(self.client)}"
            )
        raise _Refusal(message)

    def _warn_once(self, kind: str, message: str) -> None:
        with self._lock:
            is_new = kind not in self._notes
            self._notes.add(kind)
        if is_new:
            logger.warning("%s", message)


def read_spec(name: str, options: RuntimeOptions) -> ModelSpec:
    """What is known of a model on a server without asking it; see `kinds.read_spec`."""
    address = parse_address(name)
    for field_name in LOCAL_OPTIONS:
        value = getattr(options, field_name)
        if value not in (None, "auto", False):
            raise ConfigError(f"`{field_name}={value!r}`: is for models on this machine; leave it out")
    return ModelSpec(address.model, CHIP_PX, None, False, 0, "" if address.is_local else address.url)


def load(name: str, options: RuntimeOptions) -> ServerModel:
    """Model on a server, after a first question to it; see `kinds.load_model`.

    Raises: InputError where the server is on another machine and `options.allow_upload` is not set, or it is
        not there, or refuses the key, the model or images.
    """
    read_spec(name, options)
    address, key = parse_address(name), read_key()
    if not address.is_local and not options.allow_upload:
        raise InputError(
            f"{address.url} is not this machine, and the pictures would be sent there; `allow_upload=True` "
            "allows that"
        )
    client = Client(address, key, options.timeout_s)
    model = ServerModel(client, "", options.requests)
    model.check_server()
    listed = _read_models(client)  # behind the first question, as some servers list what they have loaded
    facts = {name: listed.get(address.model, {}).get(name) for name in ("owned_by", "root")}
    identity = [address.url, address.model, model.served_model, facts]
    model.fingerprint = hashlib.sha256(json.dumps(identity, default=str).encode()).hexdigest()[:16]
    if options.calibration is not None:
        options.calibration.check_model(model.name, model.fingerprint)
        model.calibration = options.calibration
    return model


def _read_models(client: Client) -> Mapping[str, Mapping[str, Any]]:
    """Models by name that a server lists; empty where it has no list."""
    try:
        entries = client.request("/models", stop=threading.Event()).json()["data"]
        return {str(entry["id"]): entry for entry in entries if isinstance(entry, dict)}
    except (NoServer, NoAnswer, ValueError, KeyError, TypeError):
        return {}


def _list_models(client: Client) -> str:
    names = [*_read_models(client)]
    if not names:
        return "; most addresses end in /v1"
    return f"; it has {', '.join(names[:LISTED])}{', ...' if len(names) > LISTED else ''}"


def _says_yes_or_no(text: str) -> bool:
    return re.search(r"\b(yes|no)\b", text, re.IGNORECASE) is not None


def _is_cut_json(text: str) -> bool:
    """True if a text begins a JSON object that it does not end."""
    try:
        json.loads(text[text.find("{") : text.rfind("}") + 1])
    except ValueError:
        return "{" in text
    return False


def _data_url(image: Pixels) -> str:
    """Data URL of a PNG file of an image, (3, H, W) uint8 RGB."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _run_in_threads(
    work: Callable[[Any, threading.Event], Reply], items: Sequence[Any], threads: int
) -> Iterator[tuple[int, Reply | ModelError]]:
    """Results of `work` on items, or its ModelError, each with the index of the item, as they come.

    The threads are daemons, and an interruption waits for none of them. Raises: what else `work` raises.
    """
    stop, results = threading.Event(), SimpleQueue[tuple[int, Any]]()
    pending = iter(enumerate(items))
    lock = threading.Lock()

    def run() -> None:
        while not stop.is_set():
            with lock:
                index, item = next(pending, (-1, None))
            if index < 0:
                return
            try:
                results.put((index, work(item, stop)))
            except BaseException as error:  # raised again below
                results.put((index, error))

    for _ in range(min(threads, len(items))):
        threading.Thread(target=run, name="request", daemon=True).start()
    try:
        for _ in items:
            index, outcome = results.get()
            if isinstance(outcome, BaseException) and not isinstance(outcome, ModelError):
                raise outcome
            yield index, outcome
    finally:
        stop.set()
