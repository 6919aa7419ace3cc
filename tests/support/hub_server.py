"""The part of the Hugging Face Hub's HTTP API that fetching and pushing needs, on loopback, over repositories in memory.

Data sets are those repositories whose name begins with `datasets/`.
"""

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass(frozen=True)
class Repository:
    """Files by revision (branch or tag). `token`: what a request must bring; `gated`: whether its terms were not accepted; `pushed`: the
    commits of revisions that were pushed to; `card`: what the Hub reads from the README's head."""

    revisions: MutableMapping[str, Mapping[str, bytes]]
    token: str | None = None
    gated: bool = False
    private: bool = False
    pushed: dict[str, str] = field(default_factory=dict)
    card: Mapping[str, Any] = field(default_factory=dict)

    def commit(self, revision: str) -> str | None:
        """The full hash that a branch, a tag or the hash itself stands for."""
        commits = {name: hashlib.sha1(name.encode()).hexdigest() for name in self.revisions} | self.pushed
        return commits.get(revision) or (revision if revision in commits.values() else None)

    def push(self, revision: str, files: Mapping[str, bytes]) -> str:
        """Make these the revision's files; the new commit's hash."""
        self.revisions[revision] = files
        listed = json.dumps([revision, {name: _oid(data) for name, data in sorted(files.items())}])
        self.pushed[revision] = hashlib.sha1(listed.encode()).hexdigest()
        return self.pushed[revision]

    def files(self, commit: str) -> Mapping[str, bytes]:
        return next(files for name, files in self.revisions.items() if self.commit(name) == commit)


@dataclass
class Hub:
    """A running server: its address and the requests it got. `cut` files end after so many bytes, once. `token`: what pushing needs;
    `large`: files that were uploaded, by sha256; `sent`: the bytes of files that were got."""

    address: str
    repositories: dict[str, Repository]
    requests: list[tuple[str, str, Mapping[str, str]]] = field(default_factory=list)
    cut: dict[str, int] = field(default_factory=dict)
    token: str | None = None
    large: dict[str, bytes] = field(default_factory=dict)
    sent: int = 0


@contextmanager
def hub(repositories: dict[str, Repository], token: str | None = None) -> Iterator[Hub]:
    state = Hub("", repositories, token=token)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"state": state}))
    state.address = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: Hub

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/").split("/")
        self.state.requests.append((self.command, self.path, {name.lower(): value for name, value in self.headers.items()}))
        api = path[0] == "api"
        path = path[1:] if api else path
        kind = "datasets/" if path[0] == "datasets" else ""
        path = path[1:] if path[0] in ("models", "datasets") else path
        name = kind + "/".join(path[:2])
        action, revision, *file = path[2:] or ("revision", "main")
        repository = self.state.repositories.get(name)
        if repository is None:
            return self._refuse(404, "RepoNotFound", "Repository not found")
        if repository.token and self.headers.get("Authorization") != f"Bearer {repository.token}":
            return self._refuse(401, "RepoNotFound", "Invalid username or password.")
        if repository.gated:
            return self._refuse(403, "GatedRepo", "Access to this model is restricted.")
        commit = repository.commit(revision)
        if commit is None:
            return self._refuse(404, "RevisionNotFound", "Invalid rev id")
        files = repository.files(commit)
        if action == "revision":
            siblings = [{"rfilename": file} for file in files]
            return self._json({"id": name, "sha": commit, "private": repository.private, "siblings": siblings, "cardData": repository.card})
        if action == "tree":
            return self._json([{"type": "file", "path": path, "size": len(data), "oid": _oid(data)} for path, data in files.items()])
        return self._file("/".join(file), files, commit)

    def do_PUT(self) -> None:
        """A large file, where `_batch` told to put it."""
        body = self._body()
        self.state.large[hashlib.sha256(body).hexdigest()] = body
        self._send(200, b"", {})

    def do_POST(self) -> None:
        body = self._body()
        path = unquote(urlsplit(self.path).path).strip("/").split("/")
        self.state.requests.append((self.command, self.path, {name.lower(): value for name, value in self.headers.items()}))
        if path == ["api", "validate-yaml"]:
            return self._json({"errors": [], "warnings": []})
        if self.state.token and self.headers.get("Authorization") != f"Bearer {self.state.token}":
            return self._refuse(401, "", "Invalid username or password.")
        if path == ["api", "repos", "create"]:
            return self._create(json.loads(body))
        if path[-3:] == ["lfs", "objects", "batch"]:
            return self._batch(json.loads(body))
        name, action, revision = "/".join(path[2:4]), path[4], path[5]
        return getattr(self, f"_{action}")(self.state.repositories[name], name, revision, body)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers["Content-Length"]))

    def _create(self, asked: Mapping[str, Any]) -> None:
        name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
        there = name in self.state.repositories
        if not there:
            self.state.repositories[name] = Repository({"main": {".gitattributes": b""}}, private=asked.get("visibility") == "private")
        self._json({"url": f"{self.state.address}/{name}"}, 409 if there else 200)

    def _branch(self, repository: Repository, name: str, revision: str, body: bytes) -> None:
        there = revision in repository.revisions
        repository.revisions.setdefault(revision, repository.revisions["main"])
        self._json({}, 409 if there else 200)

    def _preupload(self, repository: Repository, name: str, revision: str, body: bytes) -> None:
        there = repository.revisions[revision]
        modes = [
            {
                "path": path, "uploadMode": "lfs" if large(path) else "regular", "shouldIgnore": False,
                "oid": _oid(there[path]) if path in there else None,
            }
            for path in (file["path"] for file in json.loads(body)["files"])
        ]  # fmt: skip
        self._json({"files": modes})

    def _batch(self, asked: Mapping[str, Any]) -> None:
        actions = [{"actions": {"upload": {"href": f"{self.state.address}/large/{one['oid']}"}}, **one} for one in asked["objects"]]
        self._json({"transfer": "basic", "objects": actions})

    def _commit(self, repository: Repository, name: str, revision: str, body: bytes) -> None:
        files = dict(repository.revisions[revision])
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "deletedFile":
                del files[value["path"]]
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.state.large[value["oid"]]
        commit = repository.push(revision, files)
        self._json({"success": True, "commitOid": commit, "commitUrl": f"{self.state.address}/{name}/commit/{commit}"})

    def _file(self, path: str, files: Mapping[str, bytes], commit: str) -> None:
        if path not in files:
            return self._refuse(404, "EntryNotFound", "Entry not found")
        data, total = files[path], len(files[path])
        first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        start, end = int(first), int(last or total - 1) + 1
        part = "Range" in self.headers
        headers = {"ETag": f'"{_oid(data)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if part:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{total}"
        self.state.sent += end - start if self.command == "GET" else 0
        self._send(206 if part else 200, data[start:end], headers, self.state.cut.pop(path, None) if self.command == "GET" else None)

    def _json(self, data: Any, status: int = 200) -> None:
        self._send(status, json.dumps(data).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str, message: str) -> None:
        self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": message})

    def _send(self, status: int, body: bytes, headers: Mapping[str, str], cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(body[:cut])
        if cut is not None:
            self.close_connection = True


def large(path: str) -> bool:
    """Whether a file is uploaded apart from the commit."""
    return path.endswith((".safetensors", ".onnx", ".onnx_data"))


def _oid(data: bytes) -> str:
    """Git's name for a file of these bytes."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
