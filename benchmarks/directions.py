"""What gradients of recorded rollouts cost beside a plain teacher-forced pass over the same ones.

Usage: ``python benchmarks/directions.py MODEL [--blocks 8,11,14] [--dtype bfloat16]``. The plain pass
feeds the same batches, prompts included, and takes logits of completion tokens only, in the same chunks,
without a graph. Both sides take turns; a ratio is the median of the ratios within a turn, of processor
time where that is the device.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable, Sequence

import torch

from stir_train.config.inputs import ModelConfig
from stir_train.directions.batches import length_batches
from stir_train.directions.gradients import GradientSettings, rollout_gradients
from stir_train.generation.backend import SamplingParams
from stir_train.models.load import LoadedModel, load_model
from stir_train.models.output_head import OutputHead
from stir_train.types.rollout import Rollout

TEMPERATURE = 0.6
MAX_POINTS = 8


def main() -> None:
    """Print the ratio, seconds for a thousand recorded tokens, and peak memory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="directory, hub id or embedded/NAME")
    parser.add_argument("--blocks", default="", help="0-based; empty takes a third of the way up")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--prompt-tokens", type=int, default=76)
    parser.add_argument("--completion-tokens", type=int, default=135)
    parser.add_argument("--problems", type=int, default=2)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    loaded = load_model(
        ModelConfig(name=arguments.model, dtype=arguments.dtype, device=arguments.device)
    )
    count = len(loaded.blocks)
    given = tuple(int(block) for block in arguments.blocks.split(",") if block)
    settings = GradientSettings(
        blocks=given or (count // 3, count // 2),
        sampling=SamplingParams(1, temperature=TEMPERATURE),
        max_points=MAX_POINTS,
        max_batch_tokens=arguments.batch_tokens,
    )
    rollouts = random_rollouts(
        loaded,
        arguments.problems,
        arguments.samples,
        arguments.prompt_tokens,
        arguments.completion_tokens,
    )
    tokens = sum(len(r.prompt_token_ids) + len(r.token_ids) for r in rollouts)
    print(
        f"{arguments.model}: {len(rollouts)} rollouts, {tokens} recorded tokens, blocks "
        f"{settings.blocks} of {count}, {loaded.model.dtype} on {loaded.device}"
    )
    head = OutputHead(loaded)
    sides: dict[str, Callable[[], object]] = {
        "plain": lambda: plain_pass(loaded, head, rollouts, settings),
        "gradient": lambda: rollout_gradients(loaded, rollouts, settings, head=head),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    peaks: dict[str, float] = {}
    for _ in range(arguments.repeats):
        for name, run in sides.items():
            seconds[name].append(timed(run, loaded.device))
            # Later turns of a process's peak tell nothing: it never falls.
            peaks.setdefault(name, peak_gigabytes(loaded.device))
    for name, found in seconds.items():
        rate = 1000 * statistics.median(found) / tokens
        print(f"{name}: {rate:.3f} s per 1000 recorded tokens, peak {peaks[name]:.2f} GB")
    ratios = sorted(g / p for g, p in zip(seconds["gradient"], seconds["plain"], strict=True))
    print(f"ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")
    print(rollout_gradients(loaded, rollouts, settings, head=head)[1])


def random_rollouts(
    loaded: LoadedModel, problems: int, samples: int, num_prompt: int, num_completion: int
) -> list[Rollout]:
    """Random tokens, completions from half to one and a half times the length."""
    generator = torch.Generator().manual_seed(0)
    size = loaded.model.config.get_text_config().vocab_size

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(0, size, (count,), generator=generator).tolist())

    made = []
    for problem in range(problems):
        prompt = ids(num_prompt)
        for sample in range(samples):
            share = 0.5 + float(torch.rand(1, generator=generator))
            length = max(2, round(share * num_completion))
            points = tuple(range(10, length, 40))
            made.append(Rollout(f"p{problem}", sample, prompt, ids(length), (), points, "stop"))
    return made


@torch.no_grad()
def plain_pass(
    loaded: LoadedModel,
    head: OutputHead,
    rollouts: Sequence[Rollout],
    settings: GradientSettings,
) -> None:
    """Feed prompts and completions, and compute the log-probability of completion tokens."""
    rows = head.rows_at_once
    for batch in length_batches(rollouts, settings.max_batch_tokens):
        chosen = [rollouts[i] for i in batch]
        width = max(len(r.prompt_token_ids) + len(r.token_ids) for r in chosen)
        token_ids = torch.zeros((len(chosen), width), dtype=torch.long)
        targets = torch.full_like(token_ids, -1)
        for row, one in enumerate(chosen):
            start, end = len(one.prompt_token_ids), len(one.prompt_token_ids) + len(one.token_ids)
            token_ids[row, :end] = torch.tensor([*one.prompt_token_ids, *one.token_ids])
            targets[row, start - 1 : end - 1] = torch.tensor(one.token_ids)
        with head.apart() as seen:
            loaded.model(input_ids=token_ids.to(loaded.device), use_cache=False)
        counted = (targets >= 0).to(loaded.device)
        states, wanted = seen[0][counted], targets.to(loaded.device)[counted]
        for some, tokens in zip(states.split(rows), wanted.split(rows), strict=True):
            logits = head.logits(some) / TEMPERATURE
            torch.nn.functional.cross_entropy(logits, tokens, reduction="none")


def timed(run: Callable[[], object], device: torch.device) -> float:
    """Seconds: of the processor, or on the wall where a GPU works."""
    if device.type == "cpu":
        start = time.process_time()
        run()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_gigabytes(device: torch.device) -> float:
    """The process's peak so far, or the GPU's."""
    if device.type == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return torch.cuda.max_memory_allocated() / 1e9


if __name__ == "__main__":
    main()
