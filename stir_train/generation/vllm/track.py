"""What is known of one completion: what was fed of it, what was decided, and what is added where.

vLLM may throw a running completion's cache away and feed its tokens again (preemption). Whatever was
added is kept as a `Span` of token positions, so that a token which is fed again gets the same again,
and a controller is asked at a token's first feeding alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from stir_train.data.control_points import ControlPointAutomaton
from stir_train.generation.backend import GenerationRequest, PlannedImpulse
from stir_train.types.places import HELD_PLACES, PLACES_AT_PROMPT, PROMPT_END, Place, tokens_of
from stir_train.types.rollout import Impulse
from stir_train.types.steering import SteeringDecision
from stir_train.types.trajectory import StateLabel


@dataclass
class Span:
    """A vector that is added to one block at consecutive positions of prompt and completion.

    Attributes:
        block: The block.
        delta: What is added.
        first, last: Positions, both included, counted from the prompt's first token; None goes on.
        ends_at_point: Whether the next control point ends it.
    """

    block: int
    delta: Float[Tensor, "D"]
    first: int
    last: int | None
    ends_at_point: bool = False


@dataclass
class Track:
    """One completion in progress.

    Attributes:
        index: Place in the caller's request order.
        request: What is being completed.
        automaton: Finds its control points; None finds none.
        num_fed: Tokens of prompt and completion that were fed at least once.
        automaton_state: After them.
        control_points: Their token indices so far.
        spans: What is added where.
        impulses, decisions: Added and decided so far.
        labels, states: Captured so far, ``Float[L D]`` each.
        forward_passes: That it took part in.
    """

    index: int
    request: GenerationRequest
    automaton: ControlPointAutomaton | None
    num_fed: int = 0
    automaton_state: int = 0
    control_points: list[int] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    impulses: list[Impulse] = field(default_factory=list)
    decisions: list[SteeringDecision] = field(default_factory=list)
    labels: list[StateLabel] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)
    forward_passes: int = 0

    def __post_init__(self) -> None:
        """Read the prefix, and lay out what is planned in it."""
        if self.automaton is not None:
            self.automaton_state = self.automaton.start(self.request.prompt.token_ids)
            for index, token in enumerate(self.request.prefix_token_ids):
                self._read(index, token)
        self.spans = [self._planned_span(impulse) for impulse in self.request.planned]

    @property
    def num_prompt(self) -> int:
        """Tokens of the prompt."""
        return len(self.request.prompt.token_ids)

    @property
    def num_context(self) -> int:
        """Tokens of prompt and prefix, which are there from the beginning."""
        return self.num_prompt + len(self.request.prefix_token_ids)

    def feed(self, first: int, token_ids: Sequence[int]) -> int | None:
        """Note that a pass feeds tokens from a position on.

        Returns:
            Token index of a control point reached for the first time, of which a pass feeds one at most.
        """
        self.forward_passes += 1
        reached = None
        for position, token in enumerate(token_ids, start=first):
            if position < self.num_fed:
                continue
            self.num_fed = position + 1
            if position >= self.num_context and self._read(position - self.num_prompt, token):
                reached = position - self.num_prompt
        if reached is not None:
            for span in self.spans:
                if span.ends_at_point and span.last is None:
                    span.last = self.num_prompt + reached - 1
        return reached

    def is_first_fed(self, position: int, first: int, end: int) -> bool:
        """Whether a pass over positions ``[first, end)`` feeds one for the first time; ask before `feed`."""
        return max(first, self.num_fed) <= position < end

    def keep(self, place: Place, token_index: int, block: int, delta: Float[Tensor, "D"]) -> None:
        """Go on adding what was decided at a token, and add it again whenever that token is fed again."""
        at = self.num_prompt + token_index
        first = 0 if place == "every_token" else at
        last = None if place in HELD_PLACES else at
        self.spans.append(Span(block, delta, first, last, place == "segment"))

    def first_steered(self, places: Sequence[Place]) -> int | None:
        """The first position whose cache may differ from that of plain decoding; None if none does.

        Args:
            places: Of the controllers.
        """
        starts = [span.first for span in self.spans]
        num_prefix = len(self.request.prefix_token_ids)
        asked = first_asked(places, num_prompt=self.num_prompt, num_prefix=num_prefix)
        return min(starts if asked is None else [*starts, asked], default=None)

    def _read(self, token_index: int, token: int) -> bool:
        if self.automaton is None:
            return False
        state = self.automaton_state
        is_point = bool(self.automaton.completes[state, token])
        self.automaton_state = int(self.automaton.next_state[state, token])
        if is_point:
            self.control_points.append(token_index)
        return is_point

    def _planned_span(self, impulse: PlannedImpulse) -> Span:
        end_of_prefix = len(self.request.prefix_token_ids) - 1
        first, last = tokens_of(
            impulse.place,
            impulse.token_index,
            self.control_points,
            num_prompt_tokens=self.num_prompt,
            last=end_of_prefix,
        )
        goes_on = impulse.place in HELD_PLACES and last == end_of_prefix
        return Span(
            impulse.block,
            impulse.delta,
            self.num_prompt + first,
            None if goes_on else self.num_prompt + last,
            impulse.place == "segment",
        )


def first_asked(places: Sequence[Place], *, num_prompt: int, num_prefix: int = 0) -> int | None:
    """The first position at which what acts at these places may add something; None if nothing acts.

    Args:
        places: Of the controllers.
        num_prompt: Tokens of the prompt.
        num_prefix: Tokens of the completion that are there from the beginning.
    """
    starts = []
    for place in places:
        if place == "every_token":
            starts.append(0)
        elif place in PLACES_AT_PROMPT and not num_prefix:
            starts.append(num_prompt + PROMPT_END)
        else:
            starts.append(num_prompt + num_prefix)
    return min(starts, default=None)
