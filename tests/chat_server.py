"""OpenAI-compatible server in this process: answers about two images by a script, with faults of its own.

It decodes both images of a request. Where they differ the pair has changed, as for `scripted_model`.
"""

from __future__ import annotations

import base64
import io
import json
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from PIL import Image

from deltavlm.tasks.phrasing import GENERIC

KEY = "sk-SEKRIT-of-somebody"
OBJECTS = {
    True: {"new_roads": 1, "new_buildings": 2, "road_cells": [], "building_cells": ["top-left"]},
    False: {"new_roads": 0, "new_buildings": 0, "road_cells": [], "building_cells": []},
}
REPLIES = {
    GENERIC.phrase("change").prompt: ("Yes.", "No."),
    GENERIC.phrase("caption").prompt: ("Two houses were built.", "there is no difference"),
    GENERIC.phrase("count").prompt: (json.dumps(OBJECTS[True]), json.dumps(OBJECTS[False])),
}
COUNT = GENERIC.phrase("count").prompt


@dataclass
class Asked:
    """A question as the server got it."""

    body: dict[str, Any]
    texts: list[str]  # of the last turn
    images: list[np.ndarray]  # (rows, columns, 3) uint8
    headers: dict[str, str]

    @property
    def prompt(self) -> str:
        return self.texts[-1]

    @property
    def changed(self) -> bool:
        return bool((self.images[0] != self.images[1]).any())


@dataclass
class Answer:
    """Response of the server: a text as a completion, or any status and body."""

    text: str | None = None
    status: int = 200
    body: Any = None  # bytes as they are, else JSON; None: a completion with the text
    headers: dict[str, str] = field(default_factory=dict)
    cut_at: int | None = None  # bytes of the body that are sent, of all that are announced
    finish_reason: str = "stop"
    message: dict[str, Any] = field(default_factory=dict)
    probability: float | None = None  # of yes, in the top_logprobs of the first token
    choices: int = 1


Script = Callable[[Asked], Answer | None]


@dataclass
class ChatServer:
    """Server whose `script` answers, or with None leaves that to `REPLIES`."""

    url: str = ""
    script: Script = lambda asked: None
    asked: list[Asked] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    models: Any = field(default_factory=lambda: {"data": [{"id": "tiny", "owned_by": "tests"}]})
    models_status: int = 200
    served_model: str = "tiny"
    most_at_once: int = 0  # requests
    stop: Callable[[], None] = lambda: None  # from then on nothing listens there
    probes: bool = False  # the script answers the first question of a model too
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def name(self) -> str:
        """Name for `--model`."""
        return f"openai:{self.url}#tiny"

    @property
    def questions(self) -> list[Asked]:
        """Questions without the first one of each model."""
        return [each for each in self.asked if not is_probe(each)]


def is_probe(asked: Asked) -> bool:
    return asked.prompt.startswith("Do the two images differ?")


def completion(server: ChatServer, asked: Asked, answer: Answer) -> dict[str, Any]:
    """Body of a completion."""
    message = {"role": "assistant", "content": answer.text, **answer.message}
    choice: dict[str, Any] = {"index": 0, "message": message, "finish_reason": answer.finish_reason}
    if asked.body.get("logprobs") and answer.text:
        first, *others = [f"{word} " for word in answer.text.replace(".", " .").split()] or [""]
        tokens: list[dict[str, Any]] = [{"token": first, "logprob": -0.5}]
        tokens += [{"token": word, "logprob": -0.25} for word in others]
        if asked.body.get("top_logprobs"):
            chance = answer.probability
            chance = (0.9 if asked.changed else 0.1) if chance is None else chance
            shares = {"Yes": chance / 2, " yes": chance / 2, "No": (1 - chance) / 2, "NO": (1 - chance) / 2}
            tokens[0]["top_logprobs"] = [
                {"token": token, "logprob": math.log(share)} for token, share in shares.items() if share > 0
            ]
            tokens[0].update(
                next((each for each in tokens[0]["top_logprobs"] if each["token"] == first[:-1]), {})
            )
        choice["logprobs"] = {"content": tokens}
    return {"id": "1", "model": server.served_model, "choices": [choice] * answer.choices}


def read_request(body: dict[str, Any], headers: dict[str, str]) -> Asked:
    items = [item for turn in body["messages"] for item in turn["content"]]
    urls = [item["image_url"]["url"] for item in items if item["type"] == "image_url"]
    images = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,")))))
        for url in urls
    ]
    texts = [item["text"] for item in body["messages"][-1]["content"] if item["type"] == "text"]
    return Asked(body, texts, images, headers)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: ChatServer

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing to stderr."""

    def send(self, answer: Answer, value: Any) -> None:
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(answer.status)
        for name, text in {"Content-Length": str(len(content)), **answer.headers}.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(content[: answer.cut_at])
        if answer.cut_at is not None:
            self.close_connection = True

    def do_GET(self) -> None:
        self.state.paths.append(self.path)
        self.send(Answer(status=self.state.models_status), self.state.models)

    def do_POST(self) -> None:
        state = self.state
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        asked = read_request(body, dict(self.headers))
        with state.lock:
            state.paths.append(self.path)
            state.asked.append(asked)
            running[0] += 1
            state.most_at_once = max(state.most_at_once, running[0])
        try:
            answer = state.script(asked) if state.probes or not is_probe(asked) else None
        finally:
            with state.lock:
                running[0] -= 1
        if answer is None:
            changed, unchanged = REPLIES.get(asked.prompt, ("something", "nothing"))
            answer = Answer("Yes" if is_probe(asked) else changed if asked.changed else unchanged)
        self.send(answer, completion(state, asked, answer) if answer.body is None else answer.body)


running = [0]


@contextmanager
def chat_server(script: Script = lambda asked: None, port: int = 0) -> Iterator[ChatServer]:
    """Server on a port of 127.0.0.1, 0: a free one, inside the `with`."""
    state = ChatServer(script=script)
    running[0] = 0
    with ThreadingHTTPServer(("127.0.0.1", port), type("Bound", (_Handler,), {"state": state})) as server:
        server.daemon_threads = True
        state.url = f"http://127.0.0.1:{server.server_port}/v1"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()

        def stop() -> None:
            server.shutdown()
            server.server_close()

        state.stop = stop
        yield state
        server.shutdown()
        thread.join()
