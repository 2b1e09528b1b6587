"""The rollout stage with vLLM's own OpenAI-compatible server as the sampler."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from stir_train.artifacts.run_dir import RunDir
from stir_train.stores.rollouts import RolloutStore
from tests.support.smoke import run_smoke
from tests.vllm.models import save_widened

START_SECONDS = 600
"""Half a minute on a free core; a busy machine takes longer."""
ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
SMALL = (
    "splits={num_harvest: 4, num_tune: 4, num_test: 4}",
    "generation={max_new_tokens: 48, max_rows: 16, chunk_completions: 8}",
    "rollout.num_samples=2",
)
KEY = "a-key-of-the-test"


@contextmanager
def _vllm_server(model: Path, log: Path) -> Iterator[str]:
    """The address of a server that is ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--served-model-name", "wide", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--dtype", "float32", "--max-model-len", "256", "--max-num-seqs", "4"]
    command += ["--enforce-eager", "--api-key", KEY]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=output,
            env={**os.environ, **ENVIRONMENT},
            start_new_session=True,
        )
    try:
        _wait_until_healthy(process, f"http://127.0.0.1:{port}/health", log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # its own group: it and its engine
            process.wait()


def _wait_until_healthy(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    for _ in range(START_SECONDS):
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError):
            try:
                process.wait(timeout=1)  # a second, unless it died
            except subprocess.TimeoutExpired:
                continue
        break
    raise AssertionError(f"the server did not start:\n{log.read_text()[-4000:]}")


def test_a_vllm_server_samples_the_rollouts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save_widened(tmp_path / "wide")
    monkeypatch.setenv("STIR_TEST_KEY", KEY)
    with _vllm_server(model, tmp_path / "server.log") as url:
        done = run_smoke(
            tmp_path,
            *SMALL,
            f"model.name={model}",
            f"external={{server: '{url}', served_model: wide, key_variable: STIR_TEST_KEY}}",
            verb="rollout",
        )
    assert done.returncode == 0, done.stderr
    made = RolloutStore(RunDir(tmp_path / "smoke").stage("rollout")).read()
    assert len(made) == 8
    assert len({graded.rollout.token_ids for graded in made}) > 1
    # That they are of this model, whole and under its stop tokens, the stage itself has checked.
    assert any(graded.grade.had_marker for graded in made)
