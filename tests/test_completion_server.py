"""A server is asked for exactly what the run would sample, again where that helps, and never told more."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from stir_train.errors import StageError
from stir_train.generation.backend import GenerationRequest, SamplingParams
from stir_train.generation.external.completion import Completion
from stir_train.generation.external.server import CompletionServer, RequestLimits, ServerAddress
from stir_train.types.rollout import Prompt
from tests.support.completions_stub import Asked, Stub, completions_stub

STOP, VOCAB, BUDGET = 9, 10, 4
SAMPLING = SamplingParams(BUDGET, (STOP,), temperature=0.7, top_p=0.95, top_k=5)
REQUESTS = [
    GenerationRequest(Prompt(f"p{number}", "", "", (1, 2, number), ""), sample)
    for number in range(3)
    for sample in range(2)
]
CHOICE = {"index": 0, "text": "", "finish_reason": "stop", "token_ids": [3, STOP]}


def _server(
    stub: Stub, *, num_requests: int = 2, timeout: float = 20.0, retries: int = 3, key: str = ""
) -> tuple[CompletionServer, list[float]]:
    """The client, and the pauses that it made."""
    pauses: list[float] = []
    address = ServerAddress(stub.url, "embedded/addition", key or None)
    limits = RequestLimits(num_requests, timeout, retries)
    return (
        CompletionServer(address, limits, seed=3, vocab_size=VOCAB, pause=pauses.append),
        pauses,
    )


def _echo(asked: Asked) -> dict[str, Any]:
    """A completion that shows which prompt it is of."""
    prompt = asked["prompt"]
    return {**CHOICE, "token_ids": [prompt[-1], STOP], "prompt_token_ids": prompt}


def _in_turn(*replies: Any) -> Callable[[Asked], Any]:
    left = list(replies)
    return lambda asked: left.pop(0) if left else _echo(asked)


def test_completions_come_in_the_order_of_the_requests_and_all_settings_are_sent() -> None:
    with completions_stub(_echo) as stub:
        server, _ = _server(stub, num_requests=4, key="secret")
        server.require_served()
        made = server.complete(REQUESTS, SAMPLING)
        again = server.complete(REQUESTS, SAMPLING)
    assert made == again
    assert made == [Completion((r.prompt.token_ids[-1], STOP), "stop") for r in REQUESTS]
    assert set(stub.keys) == {"Bearer secret"}
    first, second = stub.asked[:6], stub.asked[6:]
    seeds = {asked["seed"] for asked in first}
    assert len(seeds) == len(REQUESTS)
    assert seeds == {asked["seed"] for asked in second}
    for asked in stub.asked:
        assert asked["model"] == "embedded/addition"
        assert (asked["n"], asked["max_tokens"], asked["stop_token_ids"]) == (1, BUDGET, [STOP])
        assert (asked["temperature"], asked["top_p"], asked["top_k"]) == (0.7, 0.95, 5)
        assert asked["return_token_ids"] is True
        assert asked["ignore_eos"] is True


def test_as_many_requests_are_under_way_as_allowed_and_no_more() -> None:
    together, lock = threading.Barrier(3), threading.Lock()
    counts: list[int] = []
    now = 0

    def reply(asked: Asked) -> dict[str, Any]:
        nonlocal now
        with lock:
            now += 1
            counts.append(now)
        together.wait(timeout=20)
        with lock:
            now -= 1
        together.wait(timeout=20)
        return _echo(asked)

    with completions_stub(reply) as stub:
        assert len(_server(stub, num_requests=3)[0].complete(REQUESTS, SAMPLING)) == 6
    assert max(counts) == 3


def test_busy_servers_and_lost_connections_are_asked_again_after_longer_and_longer() -> None:
    with completions_stub(_in_turn(503, None, 429)) as stub:
        server, pauses = _server(stub)
        assert server.complete(REQUESTS[:1], SAMPLING) == [Completion((0, STOP), "stop")]
    assert pauses == [1.0, 2.0, 4.0]
    assert all(asked == stub.asked[0] for asked in stub.asked)


def test_a_server_that_stays_busy_is_given_up() -> None:
    with completions_stub(lambda _asked: 503) as stub:
        server, pauses = _server(stub, retries=2)
        with pytest.raises(StageError, match=r"status 503: .*the stub says no.*asked 3 times"):
            server.complete(REQUESTS[:1], SAMPLING)
    assert pauses == [1.0, 2.0]


def test_a_request_that_takes_too_long_is_made_again() -> None:
    released = threading.Event()

    def reply(asked: Asked) -> dict[str, Any]:
        if len(stub.asked) == 1:
            released.wait(timeout=20)
        return _echo(asked)

    with completions_stub(reply) as stub:
        server, pauses = _server(stub, timeout=0.5)
        made = server.complete(REQUESTS[:1], SAMPLING)
        released.set()
    assert made == [Completion((0, STOP), "stop")]
    assert pauses[:1] == [1.0]


@pytest.mark.parametrize("status", [400, 401, 404, 302])
def test_what_a_server_refuses_is_not_asked_again_nor_elsewhere(status: int) -> None:
    with completions_stub(lambda _asked: status) as stub:
        server, pauses = _server(stub, key="secret")
        with pytest.raises(StageError, match=f"status {status}") as refused:
            server.complete(REQUESTS[:1], SAMPLING)
        assert len(stub.asked) == 1
    assert not pauses
    assert "secret" not in str(refused.value)
    assert "secret" not in repr(ServerAddress("http://a/v1", "m", "secret"))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"token_ids": None}, "no token_ids"),
        ({"token_ids": [3, VOCAB, STOP]}, "not in the model's vocabulary"),
        ({"token_ids": [STOP, STOP]}, "goes on after stop token"),
        ({"token_ids": [3, 3]}, "none of the stop tokens"),
        ({"token_ids": [3, 3, 3, 3, STOP]}, "generation.max_new_tokens is 4"),
        ({"finish_reason": "length", "token_ids": [3, 3]}, "length after 2 tokens"),
        ({"finish_reason": "abort"}, "no completion"),
        ({"prompt_token_ids": [7]}, "other prompt tokens"),
    ],
)
def test_a_completion_that_was_not_sampled_as_asked_is_refused(
    changed: dict[str, Any], said: str
) -> None:
    with (
        completions_stub(lambda _asked: {**CHOICE, **changed}) as stub,
        pytest.raises(StageError, match=said),
    ):
        _server(stub)[0].complete(REQUESTS[:1], SAMPLING)


def test_a_server_without_the_model_is_refused_by_name() -> None:
    with completions_stub(_echo) as stub:
        stub.served = ("other-7b",)
        with pytest.raises(StageError, match="serves other-7b, not embedded/addition"):
            _server(stub)[0].require_served()
    with pytest.raises(StageError, match="asked 1 times"):
        _server(stub, retries=0)[0].require_served()  # which is gone by now
