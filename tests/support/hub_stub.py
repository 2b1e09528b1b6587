"""Answers over HTTP as the Hugging Face hub does, as far as one upload and one download go."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

COMMIT = "c" * 40


class HubStub(ThreadingHTTPServer):
    """The files of its one repository by name, and the requests that it got."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.files: dict[str, bytes] = {}
        self.made: list[dict[str, object]] = []
        self.commits: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Answer(BaseHTTPRequestHandler):
    server: HubStub

    def log_message(self, *_args: object) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        path = urlsplit(self.path).path
        if path == "/api/repos/create":
            self.server.made.append(json.loads(body))
            self._json({"url": f"{self.server.address}/me/mine"})
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif "/preupload/" in path:
            named = [file["path"] for file in json.loads(body)["files"]]
            ways = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
            self._json({"files": [{"path": name, **ways} for name in named]})
        elif "/commit/" in path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.server.files[line["value"]["path"]] = content
                else:
                    self.server.commits.append(line["value"]["summary"])
            url = f"{self.server.address}/me/mine/commit/{COMMIT}"
            self._json({"commitUrl": url, "commitOid": COMMIT, "pullRequestUrl": None})
        else:
            self._json({"error": "not found"}, status=404)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        _, resolved, name = path.partition("/me/mine/resolve/")
        name = name.partition("/")[2]
        if resolved and name in self.server.files:
            self._bytes(self.server.files[name], "application/octet-stream")
        elif path.startswith("/api/models/me/mine/tree/"):
            files = self.server.files.items()
            self._json(
                [{"type": "file", "path": n, "size": len(c), "oid": _oid(c)} for n, c in files]
            )
        elif path.startswith("/api/models/me/mine") and self.server.files:
            names = [{"rfilename": name} for name in self.server.files]
            self._json({"id": "me/mine", "sha": COMMIT, "siblings": names})
        else:
            self._json({"error": "not found"}, status=404)

    def _json(self, value: object, *, status: int = 200) -> None:
        self._bytes(json.dumps(value).encode(), "application/json", status=status)

    def _bytes(self, content: bytes, kind: str, *, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{_oid(content)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        if status == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _oid(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


@contextmanager
def hub_stub(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[HubStub]:
    """A hub at which huggingface_hub looks, and its cache in a directory of its own."""
    hub = HubStub()
    thread = threading.Thread(target=hub.serve_forever)
    thread.start()
    for name, value in {
        "ENDPOINT": hub.address,
        "HUGGINGFACE_CO_URL_TEMPLATE": f"{hub.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DISABLE_TELEMETRY": True,
    }.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()
