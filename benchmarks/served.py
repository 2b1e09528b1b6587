"""What a server of `stir-train serve` answers beside what the run's own evaluation recorded, token by token.

Usage: start ``stir-train serve RUN``, then ``python benchmarks/served.py RUN http://127.0.0.1:8000/v1 [--problems 24]``.
Test problems are asked for twice, steered as tuning chose and at strength 0, and compared with the rows
`stir` and `greedy`. In float32 all should be equal; in bfloat16 near ties fall otherwise.
"""

from __future__ import annotations

import argparse
import json
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from stir_train.artifacts.run_dir import RunDir
from stir_train.stores.rollouts import RolloutStore
from stir_train.types.rollout import Rollout

STRENGTHS = {"stir": 1.0, "greedy": 0.0}
TIMEOUT_SECONDS = 1800


def served(url: str, model: str, recorded: Rollout, strength: float) -> tuple[int, ...]:
    """The tokens that the server completes a recorded rollout's prompt with, as many at most."""
    body = {
        "model": model,
        "prompt": list(recorded.prompt_token_ids),
        "max_tokens": len(recorded.token_ids),
        "temperature": 0,
        "return_token_ids": True,
        "vllm_xargs": {"steering_strength": strength},
    }
    request = urllib.request.Request(
        f"{url}/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
        (choice,) = json.load(response)["choices"]
    return tuple(choice["token_ids"])


def main() -> None:
    """Compare, and print a line a row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("url")
    parser.add_argument("--problems", type=int, default=24)
    parser.add_argument("--requests", type=int, default=16)
    arguments = parser.parse_args()
    store = RolloutStore(RunDir(arguments.run).stage("evaluate"))
    with ThreadPoolExecutor(arguments.requests) as pool:
        for row, strength in STRENGTHS.items():
            rollouts = [graded.rollout for graded in store.read(row)][: arguments.problems]
            answers = list(
                pool.map(
                    lambda rollout, strength=strength: served(
                        arguments.url, arguments.run.name, rollout, strength
                    ),
                    rollouts,
                )
            )
            pairs = list(zip(answers, rollouts, strict=True))
            num_equal = sum(answer == rollout.token_ids for answer, rollout in pairs)
            num_tokens = sum(map(len, answers))
            print(f"{row}: {num_equal} of {len(pairs)} completions equal, {num_tokens} tokens")


if __name__ == "__main__":
    main()
