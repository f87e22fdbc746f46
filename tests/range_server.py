"""Serves a folder over HTTP with byte ranges, which Python's own server does not know: a process for tests.

python range_server.py FOLDER        prints its port; a line on stderr for each request: method, path, range
"""

from __future__ import annotations

import re
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._send(with_body=False)

    def do_GET(self) -> None:
        self._send(with_body=True)

    def _send(self, *, with_body: bool) -> None:
        wanted = self.headers.get("Range", "")
        # in one piece: requests come side by side, and print() writes word by word
        sys.stderr.write(f"{self.command} {self.path} {wanted or 'whole'}\n")
        path = Path(sys.argv[1], self.path.partition("?")[0].lstrip("/"))
        content = path.read_bytes() if path.is_file() else None
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted)
        if content is None:
            self.send_response(404)
            part = b""
        elif span:
            first, last = int(span[1]), min(int(span[2] or len(content) - 1), len(content) - 1)
            part = content[first : last + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        else:
            part = content
            self.send_response(200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        if with_body:
            self.wfile.write(part)

    def log_message(self, format: str, *args: object) -> None:
        """Said already."""


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()
