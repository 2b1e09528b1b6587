"""What is sampled in one call: its requests, and how their tokens are chosen."""

from __future__ import annotations

from dataclasses import dataclass, field

from stir_train.generation.backend import GenerationRequest, SamplingParams, TokenListener

REQUEST = "stir_train_request"
"""Key of a request's number in ``extra_args``, by which it is known wherever vLLM passes it on."""


@dataclass
class SamplingCall:
    """The requests of a call, and what was sampled for them.

    Attributes:
        requests: In order.
        sampling: How tokens are chosen.
        noise_keys: One a request.
        listener: Called with every sampled token.
        logprobs: By request, token index to log-probability (nats) at temperature 1.
    """

    requests: tuple[GenerationRequest, ...]
    sampling: SamplingParams
    noise_keys: tuple[int, ...]
    listener: TokenListener | None = None
    logprobs: list[dict[int, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Start an empty record of log-probabilities for each request."""
        self.logprobs = [{} for _ in self.requests]
