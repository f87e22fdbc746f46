"""Server of objects in memory, in this process: byte ranges, ETags, objects by query, a log of requests."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs


@dataclass
class Objects:
    """Objects by name: the value of `scene` in the query, else the last part of the path."""

    url: str = ""
    contents: dict[str, bytes] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)  # of every response; "ETag": "" leaves it out
    requests: list[str] = field(default_factory=list)
    status: int = 200  # other ones are errors


@contextmanager
def served() -> Iterator[Objects]:
    """Objects that are served on 127.0.0.1 inside the `with`."""
    objects = Objects()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            objects.requests.append(f"{self.command} {self.path}")
            path, _, query = self.path.partition("?")
            name = parse_qs(query).get("scene", [path.rpartition("/")[2]])[0]
            content = objects.contents.get(name)
            status = objects.status if content is not None else 404
            part = b"" if content is None or status != 200 else content
            headers = {"ETag": f'"{zlib.crc32(part):08x}"', "Accept-Ranges": "bytes"} if part else {}
            if part and (wanted := self.headers.get("Range")):
                first, _, last = wanted.removeprefix("bytes=").partition("-")
                begin, end = int(first), min(int(last or len(part)), len(part) - 1) + 1
                headers["Content-Range"] = f"bytes {begin}-{end - 1}/{len(part)}"
                status, part = 206, part[begin:end]
            self.send_response(status)
            for key, value in {**headers, **objects.headers, "Content-Length": str(len(part))}.items():
                if value:
                    self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(part)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            """Log nothing to stderr."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        objects.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield objects
        server.shutdown()
        thread.join()
