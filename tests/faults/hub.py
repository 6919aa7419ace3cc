"""A Hub that answers anything but what was asked."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any

from .cases import Ended, Tally

SILENCE = 2.0
LATE = 40.0
PROGRAM = f"import converters.checkpoint.source as source; source.SILENCE_SECONDS = {SILENCE}; from yopo_cli.app import main; main()"
STATUSES = (400, 401, 403, 404, 418, 429, 500, 502, 503)
BODIES: dict[str, bytes] = {
    "nothing": b"", "a page": b"<html>", "a list": b"[1, 2]", "a number": b"7", "null": b"null",
    "other types": b'{"id": 3, "sha": 5, "siblings": 1}',
    "no commit": b'{"id": "a/b", "siblings": []}', "no files": b'{"id": "a/b", "sha": "' + b"a" * 40 + b'", "siblings": []}',
    "a way out": json.dumps({"id": "a/b", "sha": "a" * 40, "siblings": [{"rfilename": "../../out.json"}]}).encode(),
    "nested": b"[" * 10000, "half": b'{"id": "a/b", "sha": "', "bytes": bytes(range(256)),
}  # fmt: skip
ODD = ("silence", "garbage", "redirect", "closed", "endless header")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    mode = ""

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        mode = self.server.mode  # type: ignore[attr-defined]
        if mode == "silence":
            time.sleep(LATE)
        elif mode == "garbage":
            self.wfile.write(b"\x00\xff neither this nor that\r\n\r\n")
        elif mode == "endless header":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nX: " + b"a" * 10_000_000)
        elif mode == "redirect":
            self._send(302, b"", Location=self.path)
        elif mode in BODIES:
            self._send(200, BODIES[mode])
        elif mode.isdigit():
            self._send(int(mode), b"{}")
        self.close_connection = True

    def do_HEAD(self) -> None:
        self.do_GET()

    def _send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextmanager
def _serving(mode: str) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads, server.mode = True, mode  # type: ignore[attr-defined]
    server.handle_error = lambda *arguments: None  # type: ignore[method-assign]
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def attack(tally: Tally, cases: int, number: int) -> None:
    modes = [*map(str, STATUSES), *BODIES, *ODD]
    Random(number).shuffle(modes)
    for mode in modes[:cases]:
        with _serving(mode) as address, TemporaryDirectory() as cache:
            ended = tally.judged(_ask(address, cache), f"Hub: {mode}")
            if ended.status != 1:
                tally.add("wrong", f"Hub: {mode}: status {ended.status}")
            if mode.isdigit() and f"HTTP {mode}" not in ended.stderr:
                tally.add("wrong", f"Hub: {mode} is told as {ended.stderr[:200]!r}")
            if list(Path(cache).rglob("*.json")):
                tally.add("leftovers", f"Hub: {mode}")


def _ask(address: str, cache: str) -> Ended:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_") and "proxy" not in name.lower()}
    environment = kept | {"HF_ENDPOINT": address, "HF_HOME": cache, "HF_HUB_DISABLE_TELEMETRY": "1"}
    command = [sys.executable, "-c", PROGRAM, "inspect", "someone/model"]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=LATE)
    except subprocess.TimeoutExpired:
        return Ended(-9, "", "", True)
    return Ended(done.returncode, done.stdout, done.stderr)
