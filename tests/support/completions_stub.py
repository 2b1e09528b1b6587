"""A small OpenAI-compatible server that answers what a test tells it to."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Asked = dict[str, Any]
Reply = Callable[[Asked], "dict[str, Any] | int | None"]
"""From a request: the one choice of the answer, a status code, or None to drop the connection."""


@dataclass
class Stub:
    """The server.

    Attributes:
        reply: What it does next.
        served: Names of models.
        asked: Bodies of the requests for completions so far.
        keys: Their ``Authorization`` headers.
        url: Where it listens.
    """

    reply: Reply
    served: tuple[str, ...] = ("embedded/addition",)
    asked: list[Asked] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    url: str = ""


@contextmanager
def completions_stub(reply: Reply) -> Iterator[Stub]:
    """Serve inside the context, on a free port of this machine."""
    stub, lock = Stub(reply), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(200, {"object": "list", "data": [{"id": name} for name in stub.served]})

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                stub.asked.append(asked)
                stub.keys.append(self.headers["Authorization"])
            made = stub.reply(asked)
            if made is None:
                self.close_connection = True
            elif isinstance(made, int):
                self._answer(made, {"error": {"message": "the stub says no"}})
            else:
                self._answer(200, {"object": "text_completion", "choices": [made]})

        def _answer(self, status: int, body: dict[str, Any]) -> None:
            content = json.dumps(body).encode()
            self.send_response(status)
            if 300 <= status < 400:
                self.send_header("Location", f"{stub.url}/elsewhere")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_arguments: object) -> None:
            """Say nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

        def handle_error(self, *_arguments: object) -> None:
            """Clients that gave up are no concern."""

    server = Server(("127.0.0.1", 0), Handler)
    stub.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield stub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
