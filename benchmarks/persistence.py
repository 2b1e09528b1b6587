"""What is gained by impulses that stay in the cache: forgetting them after each segment, or keeping them.

Usage: ``python benchmarks/persistence.py RUN_DIRECTORY [--depth 0.8 --strength 3]``. The published loop
rebuilds the prefix without the impulse for every segment; here an impulse stays in the keys and values
of the blocks above. Both are decoded a segment at a time on the tune split, by the run's value head, and
keeping is checked to be what the engine does in one go. In the last block there is nothing to keep.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.table import Table
from torch import Tensor

from stir_train.config.load import load_config
from stir_train.config.run import RunConfig
from stir_train.config.steering import ValueSteering
from stir_train.generation.backend import (
    ControlSpec,
    GenerationRequest,
    PlannedImpulse,
)
from stir_train.generation.teacher_forced import teacher_force
from stir_train.monitoring.console import make_console
from stir_train.runtime.attempt import open_run
from stir_train.runtime.context import RunContext
from stir_train.runtime.generation import grade_rollouts, sampling_params
from stir_train.steering.controller import BasisController
from stir_train.types.rollout import Prompt, Rollout


@dataclass
class Course:
    """A problem on its way: tokens up to a control point, and the impulses made so far.

    Attributes:
        rollout: The completion as it would now end.
        length: Tokens up to and including the control point that is next to be decided.
        point, state: That control point and its state; none when there is no more.
    """

    prompt: Prompt
    rollout: Rollout
    length: int = 0
    point: int = 0
    state: Tensor | None = None
    impulses: tuple[PlannedImpulse, ...] = ()


@dataclass(frozen=True)
class Segmenter:
    """Decodes courses from one control point to the next."""

    context: RunContext
    controller: BasisController
    keeps: bool

    def answers(self) -> list[Rollout]:
        """Steered completions of the tune split."""
        prompts = self.context.splits["tune"]
        courses = [
            Course(prompt, Rollout(prompt.prompt_id, 0, (), (), (), (), "length"))
            for prompt in prompts
        ]
        self._go_on(courses)
        while deciding := [course for course in courses if course.state is not None]:
            self._decide(deciding)
            self._go_on(deciding)
        return [course.rollout for course in courses]

    def _decide(self, courses: list[Course]) -> None:
        states = torch.stack([c.state for c in courses if c.state is not None])
        batch = ControlBatch(
            prompt_ids=tuple(c.prompt.prompt_id for c in courses),
            samples=(0,) * len(courses),
            points=torch.tensor([c.point for c in courses]),
            token_indices=tuple(c.length - 1 for c in courses),
        )
        found = self.controller.decide(states, batch)
        if found is None:  # it holds no entries
            return
        for row, course in enumerate(courses):
            earlier = course.impulses if self.keeps else ()
            here = PlannedImpulse(course.length - 1, self.controller.block, found.deltas[row])
            course.impulses = (*earlier, here) if bool(found.fires[row]) else earlier

    def _go_on(self, courses: list[Course]) -> None:
        """Decode on from where each course is, and find its next control point and the state there."""
        rollouts, states = self._generate(courses)
        for course, rollout in zip(courses, rollouts, strict=True):
            later = [at for at in states.get(course.prompt.prompt_id, {}) if at >= course.length]
            course.rollout, course.state = rollout, None
            if later:
                course.length = min(later) + 1
                course.point, course.state = states[course.prompt.prompt_id][min(later)]
        if not self.keeps:
            self._forget([course for course in courses if course.state is not None])

    def _forget(self, courses: list[Course]) -> None:
        """Read the states again from the prefixes as they stand, without impulses."""
        if not courses:
            return
        prefixes = [
            dataclasses.replace(
                course.rollout,
                token_ids=course.rollout.token_ids[: course.length],
                logprobs=course.rollout.logprobs[: course.length],
                control_points=tuple(
                    at for at in course.rollout.control_points if at < course.length
                ),
            )
            for course in courses
        ]
        max_points = self.context.config.control_points.max_points
        reads = self.controller.reads
        read = teacher_force(
            self.context.resources.loaded, prefixes, reads, max_points=max_points
        ).states
        last = {label.prompt_id: row for row, label in enumerate(read.labels)}
        for course in courses:
            row = last[course.prompt.prompt_id]
            assert read.labels[row].token_index == course.length - 1
            course.state, course.impulses = read.side_by_side(reads)[row], ()

    def _generate(
        self, courses: list[Course]
    ) -> tuple[list[Rollout], dict[str, dict[int, tuple[int, Tensor]]]]:
        context, reads = self.context, self.controller.reads
        requests = [
            GenerationRequest(
                course.prompt,
                prefix_token_ids=course.rollout.token_ids[: course.length],
                planned=course.impulses,
            )
            for course in courses
        ]
        max_points = context.config.control_points.max_points
        spec = ControlSpec(context.resources.automaton, max_points, reads)
        result = context.resources.engine.generate(
            requests, sampling_params(context, greedy=True), seed=0, control=spec
        )
        states: dict[str, dict[int, tuple[int, Tensor]]] = {}
        if result.states is not None:
            rows = zip(result.states.labels, result.states.side_by_side(reads), strict=True)
            for label, state in rows:
                states.setdefault(label.prompt_id, {})[label.token_index] = (label.point, state)
        return list(result.rollouts), states


def main() -> None:
    """Print accuracy and tokens with impulses kept and forgotten."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--depth", type=float, default=0.8)
    parser.add_argument("--strength", type=float, default=3.0)
    arguments = parser.parse_args()
    config = load_config(RunConfig, arguments.run / "config.yaml", [])
    settings = ValueSteering(strength=arguments.strength)
    table = Table(
        "impulses", "accuracy", "tokens", title=f"{arguments.run}, depth {arguments.depth:g}"
    )
    with open_run(config, make_console(), ["persistence"]) as context:
        block = context.resources.block_at(arguments.depth)
        prompts = context.splits["tune"]

        def controller() -> BasisController:
            basis, head = context.steering.basis(), context.steering.head(block)
            return BasisController(
                basis, settings, block=block, head=head, device=context.resources.loaded.device
            )

        spec = ControlSpec(context.resources.automaton, config.control_points.max_points)
        at_once = context.resources.engine.generate(
            [GenerationRequest(prompt) for prompt in prompts],
            sampling_params(context, greedy=True),
            seed=0,
            control=spec,
            controller=controller(),
        ).rollouts
        kept = Segmenter(context, controller(), keeps=True).answers()
        agree = sum(a.token_ids == b.token_ids for a, b in zip(kept, at_once, strict=True))
        forgotten = Segmenter(context, controller(), keeps=False).answers()
        for name, rollouts in (("kept", kept), ("forgotten", forgotten)):
            graded = grade_rollouts(context, rollouts, prompts)
            accuracy = sum(item.grade.correct for item in graded) / len(graded)
            tokens = sum(len(item.rollout.token_ids) for item in graded) / len(graded)
            table.add_row(name, f"{accuracy:.1%}", f"{tokens:.1f}")
    console = make_console(sys.stdout)
    console.print(table)
    console.print(f"kept, segment by segment: {agree} of {len(prompts)} answers as in one go")


if __name__ == "__main__":
    main()
