"""What the reports of directions, basis, validation, value and distillation hold, as records that check themselves."""

from __future__ import annotations

from pydantic.dataclasses import dataclass

from stir_train.types.places import Place
from stir_train.types.results import STRICT


@dataclass(frozen=True, config=STRICT)
class DirectionEstimate:
    """A row of the table that says whether there is anything to steer.

    Attributes:
        block, place: Where the vector would be added.
        gain: ``|G|``, first-order gain of expected reward per unit of norm. Noise raises it too.
        gain_above_chance: What is left of it when the mean square of permuted ones is taken away.
        split_half_cosine: Between directions of disjoint halves of the problems, mean of several splits.
        permuted_mean, permuted_max: ``|G|`` with advantages permuted within problems.
        p_value: Share of permutations, the observed order counted as one, whose ``|G|`` is as large.
        family_p_value: The same against the largest of all rows in each permutation, in standard
            deviations: it holds however many blocks and places the table has.
        state_norm: Typical norm of the block's outputs at prompt end and control points: what an added
            vector's norm is to be compared with. The median over rollouts.
    """

    block: int
    place: Place
    gain: float
    gain_above_chance: float
    split_half_cosine: float
    permuted_mean: float
    permuted_max: float
    p_value: float
    family_p_value: float
    state_norm: float

    @property
    def relative_gain(self) -> float:
        """Gain above chance of a vector as long as a state: blocks whose states are longer take longer vectors."""
        return self.gain_above_chance * self.state_norm

    @property
    def beats_all_permutations(self) -> bool:
        """Whether no permutation came to so large a gain."""
        return self.gain > self.permuted_max

    def passes(self, significance: float) -> bool:
        """Whether it is more than noise.

        It must beat all of its own permutations, and the largest of all rows in all but a share
        ``significance`` of them: among twelve rows and twenty permutations, noise alone beats its own
        every other time.
        """
        return self.beats_all_permutations and self.family_p_value <= significance


@dataclass(frozen=True, config=STRICT)
class ActingVector:
    """A vector that acted while a step's rollouts were sampled.

    Attributes:
        block, place: Where.
        norm: Of what was added.
    """

    block: int
    place: Place
    norm: float


@dataclass(frozen=True, config=STRICT)
class DirectionStep:
    """A step of gradient ascent in the added vectors.

    Attributes:
        number: From 1.
        acting: What was added while its rollouts were sampled; nothing in the first step.
        correct_rate, tokens_mean: Of these rollouts.
        table: A row per block and place; empty if no problem has rewards that differ.
    """

    number: int
    acting: tuple[ActingVector, ...]
    correct_rate: float
    tokens_mean: float
    table: tuple[DirectionEstimate, ...]


@dataclass(frozen=True, config=STRICT)
class DirectionsReport:
    """Whether there is anything to steer with.

    Attributes:
        steps: At least one; later ones go from where the one before came to.
        significance: What a row's p-value over all rows may be at most.
        num_rollouts, num_problems: Recorded.
        num_used, num_mixed: Rollouts differentiated in the first step, and their problems, whose rewards
            differ.
        truncated_rate: Of the recorded rollouts; those that were cut off are kept.
        token_forwards: Fed forward in all steps, padding included; those after the prompts went backwards
            too.
        recorded_tokens: Tokens of the differentiated rollouts, their prompts' included.
    """

    steps: tuple[DirectionStep, ...]
    significance: float
    num_rollouts: int
    num_problems: int
    num_used: int
    num_mixed: int
    truncated_rate: float
    token_forwards: int
    recorded_tokens: int

    @property
    def table(self) -> tuple[DirectionEstimate, ...]:
        """The first step's: whether anything can be done to the plain model."""
        return self.steps[0].table

    @property
    def passing(self) -> tuple[DirectionEstimate, ...]:
        """Rows that are more than noise, largest relative gain first."""
        found = [row for row in self.table if row.passes(self.significance)]
        return tuple(sorted(found, key=lambda row: -row.relative_gain))


@dataclass(frozen=True, config=STRICT)
class BlockDiagnostics:
    """What one block's contrasts look like.

    Attributes:
        block: 0-based.
        relative_norm: Median of ``|v| / |mean state|`` over contrasts.
        raw_cosine, centred_cosine: Mean cosine between keys, before and after centring.
        coherence: Mean cosine of directions with their mean: 1 is one shared vector, 0 none.
        split_half: Cosine between the mean directions of two halves of the prompts, per point
            averaged; low values mean that the vectors are noise.
    """

    block: int
    relative_norm: float
    raw_cosine: float
    centred_cosine: float
    coherence: float
    split_half: float


@dataclass(frozen=True, config=STRICT)
class PointYield:
    """What a control point gave.

    Attributes:
        point: 1-based.
        num_contrasts: Contrasts found there.
        kept_per_block: Corrections of the basis there, averaged over blocks.
    """

    point: int
    num_contrasts: int
    kept_per_block: float


@dataclass(frozen=True, config=STRICT)
class CellSummary:
    """The reward-gradient directions of one block's entries, each from the states nearest to its key.

    Attributes:
        block: 0-based.
        num_entries: Entries that steer; anchors do not.
        num_own: Those whose direction is in part their own; the others' is that of the whole block.
        own_mean: Mean share of a direction that is the entry's own, 0 to 1.
        problems_median: Problems with a state nearest to an entry, in the median.
        difference_cosine: Mean cosine with the difference of means that an entry would else have.
    """

    block: int
    num_entries: int
    num_own: int
    own_mean: float
    problems_median: float
    difference_cosine: float


@dataclass(frozen=True, config=STRICT)
class BasisReport:
    """The contrasts of a harvest, and the basis selected from them.

    Attributes:
        blocks: Diagnostics per captured block.
        warnings: What to read before trusting the basis.
        points: Per control point.
        quality: Of every diagnosed contrast.
        norms: By block, the norm of every direction.
        logdet, objective: By selection, their values after each pick.
        cells: Per block, if entries steer along reward gradients.
    """

    blocks: tuple[BlockDiagnostics, ...]
    warnings: tuple[str, ...]
    points: tuple[PointYield, ...]
    quality: tuple[float, ...]
    norms: dict[int, tuple[float, ...]]
    logdet: dict[str, tuple[float, ...]]
    objective: dict[str, tuple[float, ...]]
    cells: tuple[CellSummary, ...] = ()


@dataclass(frozen=True, config=STRICT)
class EntryUplift:
    """What trials say of one entry, over states that had something to gain.

    Attributes:
        entry: Row of the basis.
        count: Trials.
        mean: Mean utility with the impulse minus without it.
        low, high: 95 % interval of the mean; infinite without two trials.
        shrunken: The mean, shrunk towards the mean of all entries.
    """

    entry: int
    count: int
    mean: float
    low: float
    high: float
    shrunken: float


@dataclass(frozen=True, config=STRICT)
class InjectionUplift:
    """What trials say of one block and strength.

    Attributes:
        block, strength: The injection.
        improvable: Over states that had something to gain, or over the others.
        count: Trials.
        mean_uplift: Mean utility with the impulse minus without it.
        helped, harmed: Shares of trials with a positive and with a negative uplift.
    """

    block: int
    strength: float
    improvable: bool
    count: int
    mean_uplift: float
    helped: float
    harmed: float


@dataclass(frozen=True, config=STRICT)
class ValidationReport:
    """Paired trials by entry and by injection; both empty if validation was off."""

    entries: tuple[EntryUplift, ...] = ()
    injections: tuple[InjectionUplift, ...] = ()


@dataclass(frozen=True, config=STRICT)
class ReliabilityBin:
    """One bin of a reliability diagram."""

    mean_predicted: float
    mean_observed: float
    count: int


@dataclass(frozen=True, config=STRICT)
class Calibration:
    """Quality of predicted probabilities on one set of states."""

    count: int
    base_rate: float
    auroc: float
    brier: float
    ece: float


@dataclass(frozen=True, config=STRICT)
class HeadReport:
    """A value head on problems held out from its training.

    Attributes:
        overall: On all control points.
        per_point: By 1-based control point.
        length_only_auroc: Of the number of tokens so far, in the better direction.
        majority_brier: Of the training set's base rate.
        reliability: Bins of the reliability diagram, empty ones left out.
        temperature: Of the calibrated probability.
        intervened: On states with an impulse; None if nothing was replayed.
    """

    overall: Calibration
    per_point: dict[int, Calibration]
    length_only_auroc: float
    majority_brier: float
    reliability: tuple[ReliabilityBin, ...]
    temperature: float
    intervened: Calibration | None = None


@dataclass(frozen=True, config=STRICT)
class ValueReport:
    """The value heads by block."""

    blocks: dict[int, HeadReport]


@dataclass(frozen=True, config=STRICT)
class StudentFigures:
    """A distilled student, as it was trained, saved and verified.

    Attributes:
        num_samples: Completions that it learned from.
        num_steps: Optimizer steps taken.
        num_tokens: Tokens in all batches.
        final_loss: Mean loss of the last steps.
        best_step: The step whose weights were saved.
        num_tensors: LoRA tensors that load strictly.
        effect: Largest change of a logit that the adapter makes.
        reload_difference: Largest difference of a logit between the trainer and a fresh process.
    """

    num_samples: int
    num_steps: int
    num_tokens: int
    final_loss: float
    best_step: int
    num_tensors: int
    effect: float
    reload_difference: float
