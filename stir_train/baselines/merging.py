"""What a fine-tune did to the weights of one model, done to those of the run's (task arithmetic).

The papers' (task arithmetic, arXiv 2212.04089; Reasoning Vectors, arXiv 2509.01363; merging of fast and slow
reasoners): the weights are ``theta + strength (tuned - base)``, all of one architecture and initialisation, as a model
trained by RL less one trained on demonstrations; Reasoning Vectors take strength 1. Ours: the strength is tuned; every
parameter is merged, embeddings and norms too, in double precision and rounded once; variants that trim, vote on signs
or decompose the difference (TIES, SVD) are left out. Greedy decoding costs what it costs without.

It needs two more models than a run has, which are held on the CPU, so it is not among `all`: name it from a file of your
own, as in ``MERGING = Merging(tuned="my-rl", base="my-sft")`` and ``baselines.methods: [my_merging:MERGING]``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from stir_train.baselines.editing import replaced
from stir_train.baselines.interface import (
    EDITS,
    AnsweringContext,
    HarvestData,
    NotApplicable,
    Parameters,
    Setting,
)
from stir_train.baselines.other_models import other_model, require_vocabulary
from stir_train.generation.backend import Ability
from stir_train.models.load import LoadedModel
from stir_train.types.rollout import Prompt, Rollout

STRENGTHS = (0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Merging:
    """A `Baseline` over two models of the run's own shape.

    Attributes:
        tuned: Directory or hub id of the model that was trained.
        base: Of what it is compared with: the same before training, or trained otherwise.
        name: Its row of the results.
        needs: The run's model in this process.
    """

    tuned: str
    base: str
    name: str = "merging"
    needs: frozenset[Ability] = EDITS

    def prepare(self, harvest: HarvestData) -> dict[str, Tensor]:
        """No parameters, but the models must have the same ones and read the same tokens.

        Raises:
            NotApplicable: If they do not, or this process holds a part of the run's model alone.
        """
        own = harvest.loaded
        if own.is_sharded:
            raise NotApplicable("the weights of a model that ranks hold together cannot be merged")
        for name in (self.tuned, self.base):
            other = other_model(name, device="cpu")
            require_vocabulary(own, other)
            ours, theirs = _shapes(own), _shapes(other)
            for parameter in ours | theirs:
                if ours.get(parameter) != theirs.get(parameter):
                    raise NotApplicable(
                        f"{parameter} is {ours.get(parameter, 'missing')} in {own.identity.name} and "
                        f"{theirs.get(parameter, 'missing')} in {name}"
                    )
        return {}

    def settings(self, blocks: Sequence[int]) -> list[Setting]:  # noqa: ARG002 - the interface's
        """Every strength."""
        return [{"strength": strength} for strength in STRENGTHS]

    def answer(
        self,
        answering: AnsweringContext,
        parameters: Parameters,  # noqa: ARG002 - the interface's
        setting: Setting,
        prompts: Sequence[Prompt],
    ) -> list[Rollout]:
        """Greedy with the merged weights, which are taken out again."""
        models = (
            answering.loaded,
            other_model(self.tuned, device="cpu"),
            other_model(self.base, device="cpu"),
        )
        return answering.answer(prompts, edit=replaced(merged(*models, float(setting["strength"]))))


def merged(
    loaded: LoadedModel, tuned: LoadedModel, base: LoadedModel, strength: float
) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """Every parameter of a model with its value moved by the difference of two others'."""
    after, before = (dict(other.model.named_parameters()) for other in (tuned, base))
    for name, parameter in loaded.model.named_parameters():
        change = after[name].detach().double() - before[name].detach().double()
        own = parameter.detach().double()
        yield parameter, (own + strength * change.to(own.device)).to(parameter.dtype)


def _shapes(loaded: LoadedModel) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in loaded.model.named_parameters()}
