"""How much of the loss a finished run could win back: a probe's view, an oracle's, and the controller's.

Usage: ``python benchmarks/headroom.py RUN_DIRECTORY [--problems 64] [--strength S]``. On the tune split:

- the best choice in hindsight at each control point, one point after the other: every entry of the point
  is tried in the chosen block, decoding goes on without more impulses, and what ends best is kept. It knows
  the answer, so no controller can use it; what it leaves is what this basis cannot do at this strength, and what lies
  between it and the tuned controller is what choosing loses.
- how well a linear probe reads off a state, in each harvested block and at each control point, whether
  the rollout will end better or worse than its problem's samples do on average (AUROC on held-out problems).
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import track
from rich.table import Table
from torch import Tensor

from stir_train.config.load import load_config
from stir_train.config.run import RunConfig
from stir_train.generation.backend import ControlSpec, GenerationRequest, PlannedImpulse
from stir_train.monitoring.console import make_console
from stir_train.runtime.answerers import controller_for
from stir_train.runtime.attempt import open_run
from stir_train.runtime.context import RunContext
from stir_train.runtime.generation import grade_rollouts, sampling_params
from stir_train.stores.states import StateStore
from stir_train.types.rollout import GradedRollout, Prompt
from stir_train.types.steering import ControlBasis
from stir_train.types.trajectory import CapturedStates
from stir_train.value.calibration import auroc

HELD_OUT = 5
"""One problem in so many is kept from the probe."""
RIDGE = 1.0


@dataclass(frozen=True)
class Course:
    """A problem's completion under the impulses kept so far."""

    prompt: Prompt
    ending: GradedRollout
    impulses: tuple[PlannedImpulse, ...] = ()


@dataclass(frozen=True)
class Oracle:
    """Tries every entry of a control point and keeps what ends best."""

    context: RunContext
    basis: ControlBasis
    block: int
    strength: float

    def endings(self, prompts: Sequence[Prompt]) -> tuple[list[GradedRollout], Counter[int]]:
        """What the problems come to, and how many impulses were kept at each control point."""
        plain = zip(prompts, self.plain(prompts), strict=True)
        courses = [Course(prompt, item) for prompt, item in plain]
        kept: Counter[int] = Counter()
        max_points = self.context.config.control_points.max_points
        for point in track(range(1, max_points + 1), "control points", console=make_console()):
            courses = [self._best(course, point, kept) for course in courses]
        return [course.ending for course in courses], kept

    def plain(self, prompts: Sequence[Prompt]) -> list[GradedRollout]:
        """Greedy answers."""
        return self._decode([GenerationRequest(prompt) for prompt in prompts])

    def utility(self, item: GradedRollout) -> float:
        """What tuning goes by."""
        config = self.context.config
        share = item.rollout.total_tokens / config.generation.max_new_tokens
        return float(item.grade.correct) - config.utility.token_price * share

    def _best(self, course: Course, point: int, kept: Counter[int]) -> Course:
        basis, rollout = self.basis, course.ending.rollout
        if len(rollout.control_points) < point:
            return course
        at = rollout.control_points[point - 1]
        here = (basis.points == point) & (basis.blocks == self.block) & ~basis.is_anchor
        tried = [
            (*course.impulses, PlannedImpulse(at, self.block, self.strength * direction))
            for direction in basis.directions[here]
        ]
        prefix = rollout.token_ids[: at + 1]
        requests = [
            GenerationRequest(course.prompt, i, prefix_token_ids=prefix, planned=impulses)
            for i, impulses in enumerate(tried)
        ]
        options = [
            Course(course.prompt, item, impulses)
            for item, impulses in zip(self._decode(requests), tried, strict=True)
        ]
        best = max([course, *options], key=lambda option: self.utility(option.ending))
        kept[point] += best is not course
        return best

    def _decode(self, requests: list[GenerationRequest]) -> list[GradedRollout]:
        context = self.context
        spec = ControlSpec(context.resources.automaton, context.config.control_points.max_points)
        result = context.resources.engine.generate(
            requests, sampling_params(context, greedy=True), seed=0, control=spec
        )
        return grade_rollouts(context, result.rollouts, [r.prompt for r in requests])


def controlled(context: RunContext, prompts: Sequence[Prompt]) -> list[GradedRollout]:
    """Answers under the tuned controller."""
    spec = ControlSpec(context.resources.automaton, context.config.control_points.max_points)
    result = context.resources.engine.generate(
        [GenerationRequest(prompt) for prompt in prompts],
        sampling_params(context, greedy=True),
        seed=0,
        control=spec,
        controller=controller_for(context, context.steering.choice(), context.steering.basis()),
    )
    return grade_rollouts(context, result.rollouts, list(prompts))


def figures(
    graded: Sequence[GradedRollout], prompts: Sequence[Prompt], kind: str
) -> tuple[str, str]:
    """Accuracy and tokens over the problems of a kind, or all."""
    pairs = zip(graded, prompts, strict=True)
    of_kind = [item for item, prompt in pairs if kind in ("all", prompt.kind)]
    accuracy = sum(item.grade.correct for item in of_kind) / len(of_kind)
    tokens = sum(item.rollout.total_tokens for item in of_kind) / len(of_kind)
    return f"{accuracy:.1%}", f"{tokens:.1f}"


def probe_table(context: RunContext) -> Table:
    """AUROC of a linear probe for each block and control point."""
    chunks = list(StateStore(context.stage("rollout")).chunks())
    captured = CapturedStates.concatenate([states for _, states in chunks])
    budget = context.config.generation.max_new_tokens
    rewards = {
        (item.rollout.prompt_id, item.rollout.sample): float(item.grade.correct)
        - context.config.utility.token_price * len(item.rollout.token_ids) / budget
        for part, _ in chunks
        for item in part
    }
    of_problem: dict[str, list[float]] = defaultdict(list)
    for (prompt_id, _), reward in rewards.items():
        of_problem[prompt_id].append(reward)
    average = {name: sum(values) / len(values) for name, values in of_problem.items()}
    advantage = torch.tensor(
        [rewards[s.prompt_id, s.sample] - average[s.prompt_id] for s in captured.labels]
    )
    problems = {name: i for i, name in enumerate(average)}
    held_out = torch.tensor([problems[s.prompt_id] % HELD_OUT == 0 for s in captured.labels])
    points = torch.tensor([s.point for s in captured.labels])
    shown = range(1, context.config.control_points.max_points + 1)
    table = Table("block", *(f"point {point}" for point in shown), title="AUROC of a linear probe")
    for block in captured.blocks:
        row = []
        for point in shown:
            here = (points == point) & (advantage != 0)
            states, target = captured.at_block(block)[here].float(), (advantage[here] > 0).float()
            row.append(probe_auroc(states, target, held_out[here]))
        table.add_row(str(block), *row)
    return table


def probe_auroc(states: Tensor, target: Tensor, held_out: Tensor) -> str:
    """Of ridge regression on standardised states; a dash where one outcome is all there is."""
    train, test = target[~held_out], target[held_out]
    if not 0 < train.sum() < len(train) or not 0 < test.sum() < len(test):
        return "-"
    known = states[~held_out]
    scaled = (states - known.mean(0)) / known.std(0).clamp_min(1e-6)
    x, y = scaled[~held_out], train - train.mean()
    weights = torch.linalg.solve(x.T @ x + RIDGE * torch.eye(x.shape[1]), x.T @ y)
    return f"{auroc(scaled[held_out] @ weights, test):.2f}"


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--problems", type=int, default=64)
    parser.add_argument("--strength", type=float, help="default: the tuned choice's")
    arguments = parser.parse_args()
    config = load_config(RunConfig, arguments.run / "config.yaml", [])
    console = make_console(sys.stdout)
    with open_run(config, make_console(), ["headroom"]) as context:
        choice = context.steering.choice()
        assert choice.depth is not None, "tuning sets it"
        strength = arguments.strength or choice.strength
        basis = context.steering.basis()
        oracle = Oracle(context, basis, context.resources.block_at(choice.depth), strength)
        prompts = context.splits["tune"][: arguments.problems]
        controlled_by = f"tuned ({choice.mode}, strength {choice.strength:g})"
        endings = {
            "none (greedy)": oracle.plain(prompts),
            controlled_by: controlled(context, prompts),
        }
        found, kept = oracle.endings(prompts)
        endings[f"in hindsight (strength {strength:g})"] = found
        table = Table("choice", "problems", "accuracy", "tokens", title=str(arguments.run))
        for name, graded in endings.items():
            table.add_section()
            for kind in ("all", *sorted({prompt.kind for prompt in prompts} - {""})):
                table.add_row(name, kind, *figures(graded, prompts, kind))
        console.print(table)
        console.print(f"kept in hindsight at points {dict(sorted(kept.items()))}")
        console.print(probe_table(context))


if __name__ == "__main__":
    main()
