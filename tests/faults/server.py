"""A server of files in parts, which fails as it is told.

    python -m tests.faults.server FOLDER

Before each answer it reads FOLDER/faults.json: {"times": N, "from": BYTE, "status": CODE}. Requests for parts
that reach beyond that byte fail with that status, or with a cut connection where it is 0: N times, or always
with -1. FOLDER/requests.log has a line for each request.
"""

from __future__ import annotations

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock

folder = Path(sys.argv[-1])  # of no use where this is only imported
lock = Lock()


class Parts(BaseHTTPRequestHandler):
    """GET and HEAD of files, whole or in parts."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = folder / self.path.lstrip("/")
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        asked = self.headers.get("Range", "").removeprefix("bytes=")
        first, _, last = asked.partition("-")
        begin, end = int(first or 0), min(int(last) if last else len(content), len(content) - 1) + 1
        with lock:
            status = self._fault(end) if asked else None
            with (folder / "requests.log").open("a") as log:
                log.write(f"{self.command} {begin} {end} {status}\n")
        if status == 0:
            self.close_connection = True
            return
        if status is not None:
            self.send_error(status)
            return
        self.send_response(206 if asked else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(end - begin))
        if asked:
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{len(content)}")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[begin:end])

    do_HEAD = do_GET

    def _fault(self, end: int) -> int | None:
        told = folder / "faults.json"
        faults = json.loads(told.read_text()) if told.exists() else {"times": 0}
        if not faults["times"] or end <= faults["from"]:
            return None
        faults["times"] -= 1
        told.write_text(json.dumps(faults))
        return int(faults["status"])

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""


if __name__ == "__main__":
    with ThreadingHTTPServer(("127.0.0.1", 0), Parts) as server:
        print(server.server_address[1], flush=True)
        server.serve_forever()
