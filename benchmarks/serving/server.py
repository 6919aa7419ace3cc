"""The OpenAI server of vLLM on a converted model: requests with pictures, answered with the words of the transformers runtime.

    python benchmarks/serving/server.py FOLDER PLAN [--requests 20]

FOLDER is the demo's, as `prepare.py` wrote it. Starts the server, asks by the OpenAI client, stops it. Prints one JSON line; exits with 1
where a word differs.
"""

import argparse
import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

PATIENCE = 600.0  # seconds that a server may take to start


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def started(folder: Path, port: int, name: str, length: int) -> "subprocess.Popen[bytes]":
    """The server, once it answers."""
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--served-model-name", name]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager", "--max-model-len", str(length)]
    usual = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    server = subprocess.Popen(command, env={**os.environ, **usual}, stdout=sys.stderr, stderr=sys.stderr)
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until and server.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
        except (urllib.error.URLError, OSError):
            time.sleep(1)
        else:
            return server
    server.kill()
    raise SystemExit("The server did not start.")


def stopped(server: "subprocess.Popen[bytes]") -> int:
    """Its exit code, after an interrupt."""
    server.send_signal(signal.SIGINT)
    return server.wait(60)


def answer(client: Any, question: str, picture: Path) -> str:
    """Eight forced tokens of an answer."""
    url = "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
    extra = {"min_tokens": 8, "skip_special_tokens": False, "add_special_tokens": True}  # the template does not begin with <s>
    options = {"temperature": 0, "max_tokens": 8, "extra_body": extra}
    done = client.chat.completions.create(model="demo", messages=[{"role": "user", "content": content}], **options)
    return str(done.choices[0].message.content).strip()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("plan")
    parser.add_argument("--requests", type=int, default=20)
    given = parser.parse_args()
    from openai import OpenAI

    found = json.loads((given.folder / "words.json").read_text(encoding="utf-8"))
    asked = found["asked"]["pictures"]
    expected = found["plans"][given.plan]["pictures"][: given.requests]
    port = free_port()
    server = started(given.folder / given.plan, port, "demo", 512)
    try:
        client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none")
        got = [answer(client, asked["questions"][place], given.folder / asked["files"][place][0]) for place in range(given.requests)]
    finally:
        code = stopped(server)
    same = sum(map(str.__eq__, got, expected))
    print(json.dumps({"plan": given.plan, "same": f"{same}/{given.requests}", "server_exit": code, "first": got[0]}), flush=True)
    return same != given.requests


if __name__ == "__main__":
    sys.exit(main())
