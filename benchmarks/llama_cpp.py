"""What llama.cpp answers with an exported control vector beside what the run's evaluation recorded, token by token.

Usage::

    stir-train export RUN --to vector --format gguf
    llama-server --model MODEL-F32.gguf --control-vector vector/control-vector.gguf --ctx-size 4096 --parallel 4 --port 8090
    python benchmarks/llama_cpp.py RUN http://127.0.0.1:8090 [--row greedy] [--problems 100]

A server has one vector for all requests: the row `stir` is asked of one that has it, `greedy` of one without. Test
problems go in as token ids. llama.cpp multiplies in another order, so near ties between two tokens may fall otherwise:
such answers are read too, and what is right by either is printed. Quantised weights answer otherwise altogether, so
``MODEL-F32.gguf`` is made from the weights that were steered (``convert_hf_to_gguf.py --outtype f32``).
"""

from __future__ import annotations

import argparse
import json
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from stir_train.artifacts.run_dir import RunDir
from stir_train.config.load import load_config
from stir_train.config.run import RunConfig
from stir_train.data.grading import Grader
from stir_train.data.problems import read_source
from stir_train.stores.rollouts import RolloutStore
from stir_train.types.rollout import Gold, Rollout

TIMEOUT_SECONDS = 1800


def completed(url: str, recorded: Rollout, budget: int) -> tuple[tuple[int, ...], str]:
    """Tokens, a stop token included, and text that the server completes a recorded rollout's prompt with."""
    body = {
        "prompt": list(recorded.prompt_token_ids),
        "n_predict": budget,
        "temperature": 0,
        "samplers": ["temperature"],
        "return_tokens": True,
        "cache_prompt": False,
    }
    request = urllib.request.Request(
        f"{url}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
        answer = json.load(response)
    return tuple(answer["tokens"]), answer["content"]


def main() -> None:
    """Compare, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("url")
    parser.add_argument("--row", default="stir")
    parser.add_argument("--problems", type=int, default=100)
    parser.add_argument("--requests", type=int, default=4)
    arguments = parser.parse_args()
    config = load_config(RunConfig, arguments.run / "config.yaml")
    budget = config.generation.max_new_tokens
    store = RolloutStore(RunDir(arguments.run).stage("evaluate"))
    recorded = store.read(arguments.row)[: arguments.problems]
    with ThreadPoolExecutor(arguments.requests) as pool:
        answers = list(
            pool.map(lambda one: completed(arguments.url, one.rollout, budget), recorded)
        )
    golds = {
        problem.problem_id: Gold(problem.answer, problem.choices, problem.question)
        for problem in read_source(config.task)
    }
    grader = Grader(config.task, num_workers=1)
    try:
        grades = grader.grade(
            [text for _, text in answers],
            [golds[one.rollout.prompt_id] for one in recorded],
            [len(tokens) >= budget for tokens, _ in answers],
        )
    finally:
        grader.close()
    equal = [
        tokens == one.rollout.token_ids for (tokens, _), one in zip(answers, recorded, strict=True)
    ]
    alike = [
        grade.correct == one.grade.correct for grade, one in zip(grades, recorded, strict=True)
    ]
    print(
        f"{arguments.row}: {sum(equal)} of {len(recorded)} completions equal, token by token; "
        f"{sum(one.grade.correct for one in recorded)} right in the evaluation, "
        f"{sum(grade.correct for grade in grades)} here, {sum(alike)} graded alike"
    )


if __name__ == "__main__":
    main()
