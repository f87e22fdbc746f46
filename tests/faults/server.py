"""HTTP server with range requests that fails on demand.

    python -m tests.faults.server FOLDER

Before each response it reads FOLDER/faults.json: {"times": N, "from": BYTE, "status": CODE}. Range requests
that reach beyond that byte fail with that status, or with a closed connection if it is 0: N times, or
always with -1. FOLDER/requests.log has one line per request.
"""

from __future__ import annotations

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock

folder = Path(sys.argv[-1])  # unused when this module is only imported
lock = Lock()


class RangeHandler(BaseHTTPRequestHandler):
    """GET and HEAD of files, whole or by range."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = folder / self.path.lstrip("/")
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        byte_range = self.headers.get("Range", "").removeprefix("bytes=")
        first, _, last = byte_range.partition("-")
        begin, end = int(first or 0), min(int(last) if last else len(content), len(content) - 1) + 1
        with lock:
            status = self._fault(end) if byte_range else None
            with (folder / "requests.log").open("a") as log:
                log.write(f"{self.command} {begin} {end} {status}\n")
        if status == 0:
            self.close_connection = True
            return
        if status is not None:
            self.send_error(status)
            return
        self.send_response(206 if byte_range else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(end - begin))
        if byte_range:
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{len(content)}")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[begin:end])

    do_HEAD = do_GET

    def _fault(self, end: int) -> int | None:
        settings = folder / "faults.json"
        faults = json.loads(settings.read_text()) if settings.exists() else {"times": 0}
        if not faults["times"] or end <= faults["from"]:
            return None
        faults["times"] -= 1
        settings.write_text(json.dumps(faults))
        return int(faults["status"])

    def log_message(self, *_: object) -> None:
        """Log nothing to stderr."""


if __name__ == "__main__":
    with ThreadingHTTPServer(("127.0.0.1", 0), RangeHandler) as server:
        print(server.server_address[1], flush=True)
        server.serve_forever()
