"""Servers in processes of their own, of `stir-train serve` and of vLLM alone, and what is asked of them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

READY = "Application startup complete"
CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
"""The embedded models have none."""
SMALL = (
    "--max-num-seqs=4",
    "--block-size=32",
    "--kv-cache-memory-bytes=67108864",
    "--gpu-memory-utilization=0.05",
    f"--chat-template={CHAT_TEMPLATE}",
)
CHEAP = {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # Not of the model: of the log-probabilities, for which a compiler would run at the first request.
    "TORCHDYNAMO_DISABLE": "1",
}
STOP_SECONDS, ANSWER_SECONDS = 300, 1800
"""Long, since a busy machine takes long to import vLLM three times."""


@dataclass(frozen=True)
class Answer:
    """A completion over HTTP.

    Attributes:
        name: By which the log knows its request.
        token_ids: Sampled.
        logprobs: Of them, in nats.
    """

    name: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]


@dataclass
class Server:
    """A server that runs."""

    process: subprocess.Popen[str]
    port: int
    log: list[str] = field(default_factory=list)
    _grown: threading.Condition = field(default_factory=threading.Condition)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """What the server answers, an error too."""
        request = urllib.request.Request(
            f"{self.url}/{path}",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as response:
                return dict(json.load(response))
        except urllib.error.HTTPError as error:
            return {"status": error.code, **json.load(error)}

    def complete(
        self,
        model: str,
        prompt: Sequence[int],
        max_tokens: int,
        strength: float | None = None,
        **others: Any,
    ) -> Answer:
        """A greedy completion of a prompt's tokens."""
        asked = {} if strength is None else {"vllm_xargs": {"steering_strength": strength}}
        body = {"model": model, "prompt": list(prompt), "max_tokens": max_tokens, "temperature": 0}
        body |= {"logprobs": 1, "return_token_ids": True, **asked, **others}
        answered = self.post("completions", body)
        assert "choices" in answered, answered
        (choice,) = answered["choices"]
        return Answer(
            answered["id"], tuple(choice["token_ids"]), tuple(choice["logprobs"]["token_logprobs"])
        )

    def said(self, text: str) -> str:
        """The first line of the log that holds a text; waited for, as it may follow what it is about."""

        def found() -> list[str]:
            return [line for line in self.log if text in line]

        with self._grown:
            assert self._grown.wait_for(lambda: found() or self.is_over, ANSWER_SECONDS)
        assert found(), "".join(self.log[-40:])
        return found()[0]

    def wait_until_it_listens(self) -> None:
        """Wait for the port, which opens a moment after the log says that all is ready."""
        deadline = time.monotonic() + STOP_SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
            except ConnectionRefusedError:
                assert not self.is_over, "".join(self.log[-40:])
                assert time.monotonic() < deadline, "".join(self.log[-40:])
                time.sleep(0.02)  # watching for a port, not waiting out a race
            else:
                return

    @property
    def is_over(self) -> bool:
        return self.process.poll() is not None

    def listen(self) -> None:
        """Read the log for as long as there is one."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._grown:
                self.log.append(line)
                self._grown.notify_all()
        with self._grown:
            self._grown.notify_all()

    def metric(self, name: str) -> float:
        """One of vLLM's counters, over all models."""
        with urllib.request.urlopen(f"{self.url.removesuffix('/v1')}/metrics") as response:
            lines = response.read().decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(f"{name}{{"))


@contextmanager
def serving(run: Path, *arguments: str, module: str = "stir_train") -> Iterator[Server]:
    """Start a server of a run on a free port; stop it as a terminal or a cluster does.

    Args:
        run: Its directory.
        arguments: Of vLLM's.
        module: Whose command line it is.
    """
    port = _free_port()
    command = [module, "serve", str(run), "--port", str(port), "--", *SMALL, *arguments]
    with _started(command, port) as server:
        yield server


@contextmanager
def serving_alone(model: Path, *arguments: str) -> Iterator[Server]:
    """Start vLLM's own server of a model on a free port; stop it likewise."""
    port = _free_port()
    command = ["vllm.entrypoints.openai.api_server", "--model", str(model), "--port", str(port)]
    with _started([*command, *SMALL, *arguments], port) as server:
        yield server


@contextmanager
def _started(command: Sequence[str], port: int) -> Iterator[Server]:
    """Run a module with its arguments until it listens to a port."""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, **CHEAP},
    )
    server = Server(process, port)
    listener = threading.Thread(target=server.listen, daemon=True)
    listener.start()
    try:
        server.said(READY)
        server.wait_until_it_listens()
        yield server
        process.send_signal(signal.SIGTERM)
        assert process.wait(STOP_SECONDS) == 0, "".join(server.log[-40:])
    finally:
        _end_group(process)
        process.wait()
        listener.join()
        assert process.stdout is not None
        process.stdout.close()


def _end_group(process: subprocess.Popen[str]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
