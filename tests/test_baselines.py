"""Other methods: the property that makes each what it is."""

from __future__ import annotations

import dataclasses
from contextlib import suppress

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from stir_train.baselines import fractional
from stir_train.baselines.cgrs import CGRS, probability
from stir_train.baselines.compression import BUDGETS, SteeredCompression, mean_kl
from stir_train.baselines.deer import DEER
from stir_train.baselines.editing import forbidding, token_ids_of_words
from stir_train.baselines.efficiency import EfficiencySteering
from stir_train.baselines.fractional import FractionalReasoning, ramp, turn
from stir_train.baselines.interface import AnsweringContext, HarvestData, NotApplicable, label_of
from stir_train.baselines.nowait import KEYWORDS, NO_WAIT
from stir_train.baselines.pairs import right_and_wrong, shortest_and_longest_right
from stir_train.baselines.reading import read
from stir_train.baselines.registry import load_baseline, load_baselines
from stir_train.baselines.representation import RepresentationControl
from stir_train.baselines.seal import Seal, is_execution
from stir_train.baselines.self_consistency import SELF_CONSISTENCY, Vote, elect
from stir_train.config.baselines import BASELINES as SHIPPED
from stir_train.config.stages import BaselinesConfig
from stir_train.errors import ConfigError
from stir_train.generation.backend import GenerationRequest
from stir_train.models.load import LoadedModel
from stir_train.types.rollout import Prompt, Rollout
from tests.support import bases

BLOCKS = (3, bases.BLOCK)
BASELINES = load_baselines(tuple(SHIPPED))
WORDY = {
    "fractional-reasoning",
    "prompt-step-by-step",
    "prompt-concise",
    "prompt-token-budget",
    "prompt-left-to-right",
}
"""Methods that say something in English."""
Prepared = dict[str, dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def prepared(harvest: HarvestData) -> Prepared:
    """What every method that applies learns; the model is the same before and after."""
    before = {n: p.clone() for n, p in harvest.loaded.model.named_parameters()}
    found = {}
    for name, method in BASELINES.items():
        with suppress(NotApplicable):
            found[name] = method.prepare(harvest)
    for name, parameter in harvest.loaded.model.named_parameters():
        assert torch.equal(parameter, before[name]), name
    return found


def _tokens(rollouts: list[Rollout]) -> list[tuple[int, ...]]:
    return [rollout.token_ids for rollout in rollouts]


def test_every_method_has_a_name_a_grid_and_learns_without_touching_the_model(
    harvest: HarvestData, prepared: Prepared
) -> None:
    assert [method.name for method in BASELINES.values()] == list(SHIPPED)
    for name in WORDY:
        with pytest.raises(
            NotApplicable, match="no words"
        ):  # the embedded model does not know them
            BASELINES[name].prepare(harvest)
    assert set(prepared) == set(BASELINES) - WORDY
    for name, tensors in prepared.items():
        assert all(torch.isfinite(t).all() for t in tensors.values()), name
        settings = BASELINES[name].settings(BLOCKS)
        assert len({label_of(setting) for setting in settings}) == len(settings) > 0, name


OWN = dataclasses.replace(NO_WAIT, name="own-words")
"""A method of the user's own."""
AGAIN = OWN
HIDING = dataclasses.replace(NO_WAIT, name="stir-words")
"""It would hide one of ours in the table."""


def test_a_method_of_ones_own_is_named_by_its_import_path() -> None:
    path = f"{__name__}:OWN"
    config = BaselinesConfig(methods=("nowait", path))
    assert config.imported == {"baselines.methods.0": path}
    own = load_baselines(config.names)
    assert {given: method.name for given, method in own.items()} == {
        "nowait": "nowait",
        path: "own-words",
    }
    assert BaselinesConfig(methods="all").imported == {}


def test_what_is_no_method_is_refused_with_what_would_be() -> None:
    with pytest.raises(ValidationError, match="did you mean 'seal'"):
        BaselinesConfig(methods=("seel",))
    with pytest.raises(ConfigError, match="is no baseline; it needs `name`"):
        load_baseline("pathlib:Path")
    with pytest.raises(ConfigError, match="calls itself 'stir-words'"):
        load_baseline(f"{__name__}:HIDING")
    with pytest.raises(ConfigError, match="two methods call themselves 'own-words'"):
        load_baselines((f"{__name__}:OWN", f"{__name__}:AGAIN"))


def test_a_vote_takes_the_first_sample_of_the_majority_and_counts_every_token() -> None:
    def vote(sample: int, answer: str, length: int) -> Vote:
        ids = (5,) * length
        rollout = Rollout(
            "p", sample, (1,), ids, (0.0,) * length, (), "stop", forward_passes=length
        )
        return Vote(rollout, answer)

    votes = [vote(0, "7", 3), vote(1, "8", 4), vote(2, "8", 5), vote(3, "", 6)]
    elected = elect(votes)
    assert elected.sample == 1
    assert elected.total_tokens == 3 + 4 + 5 + 6 == elected.forward_passes
    assert elect(votes[:2]).sample == 0, "ties go to the first answer"
    assert elect(votes[3:]).sample == 3, "nobody votes"


def test_voting_stops_early_where_a_window_agrees(
    answering: AnsweringContext, prompts: list[Prompt], harvest: HarvestData
) -> None:
    method = SELF_CONSISTENCY
    assert method.prepare(harvest) == {}
    three = method.answer(answering, {}, {"samples": 3, "window": 3}, prompts[:8])
    six = method.answer(answering, {}, {"samples": 6, "window": 3}, prompts[:8])
    more = [b.total_tokens > a.total_tokens for a, b in zip(three, six, strict=True)]
    assert {True, False} == set(more)
    for a, b, went_on in zip(three, six, more, strict=True):
        assert went_on or a == b


def test_seal_tells_steps_apart_and_acts_at_control_points_alone(
    answering: AnsweringContext,
    prompts: list[Prompt],
    harvest: HarvestData,
    prepared: Prepared,
    plain: list[Rollout],
) -> None:
    assert not is_execution(" Wait, redo: col 12")
    assert not is_execution("Let me check that.")
    assert not is_execution("There is another approach.")
    assert is_execution("col 12+b30")
    method = Seal()
    parameters = prepared["seal"]
    setting = {"block": bases.BLOCK, "coefficient": 2.0}
    none = {name: torch.zeros_like(vector) for name, vector in parameters.items()}
    assert _tokens(method.answer(answering, none, setting, prompts)) == _tokens(plain)
    steered = method.answer(answering, parameters, setting, prompts)
    assert _tokens(steered) != _tokens(plain)
    for one, other in zip(steered, plain, strict=True):
        first = other.control_points[0]
        assert one.token_ids[: first + 1] == other.token_ids[: first + 1]
        places = [impulse.token_index for impulse in one.impulses]
        assert places == list(one.control_points[: bases.MAX_POINTS])
    executing = dataclasses.replace(
        harvest,
        graded=[
            dataclasses.replace(g, rollout=_without_waiting(g.rollout)) for g in harvest.graded
        ],
    )
    with pytest.raises(NotApplicable, match="no steps"):
        method.prepare(executing)


def _without_waiting(rollout: Rollout) -> Rollout:
    return dataclasses.replace(rollout, token_ids=(5,) * len(rollout.token_ids))


def test_compression_is_as_strong_as_its_budget_allows(
    answering: AnsweringContext,
    prompts: list[Prompt],
    harvest: HarvestData,
    prepared: Prepared,
    plain: list[Rollout],
) -> None:
    method = SteeredCompression()
    parameters = prepared["steered-compression"]
    calibration = [pair[1] for pair in shortest_and_longest_right(harvest)[:32]]
    unsteered = list(read(harvest.loaded, calibration, {}))
    block = bases.BLOCK
    strengths = [float(parameters[f"strength {block} {budget:g}"]) for budget in BUDGETS]
    assert strengths == sorted(strengths)
    for budget, strength in zip(BUDGETS, strengths, strict=True):
        kl = mean_kl(harvest.loaded, unsteered, block, strength * parameters[f"block {block}"])
        assert kl == pytest.approx(budget, rel=0.02)
    answered = method.answer(answering, parameters, {"block": block, "kl": BUDGETS[-1]}, prompts)
    assert _tokens(answered) != _tokens(plain)


def test_fractional_reasoning_turns_and_keeps_norms_and_votes(
    answering: AnsweringContext,
    prompts: list[Prompt],
    harvest: HarvestData,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generator = torch.Generator().manual_seed(0)
    x, direction = torch.randn(2, 1, 64, generator=generator), torch.zeros(64)
    direction[0] = 1.0
    torch.testing.assert_close(turn(x, direction, 0.0), x)
    turned = turn(x, direction, 0.5)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    assert bool((turned[..., 0] > x[..., 0]).all())
    assert [ramp(0), ramp(50), ramp(500)] == [1.0, 0.5, 0.5]
    # Instructions in words that the embedded model knows.
    monkeypatch.setattr(fractional, "DIRECT", "just ")
    monkeypatch.setattr(fractional, "REASONED", "maybe ")
    method, few = FractionalReasoning(), prompts[:8]
    parameters = method.prepare(harvest)
    torch.testing.assert_close(parameters["direction"].norm(dim=-1), torch.ones(6))
    none = method.answer(answering, parameters, {"draws": 1, "most": 0.0}, few)
    sampled = answering.engine.generate(
        [GenerationRequest(prompt) for prompt in few], answering.sampled, seed=answering.seed
    )
    assert _tokens(none) == _tokens(list(sampled.rollouts))
    three = method.answer(answering, parameters, {"draws": 3, "most": 2.0}, few)
    assert all(rollout.preview_tokens > 0 for rollout in three)
    assert _tokens(three) != _tokens(none)


def test_the_control_vector_is_the_difference_of_last_states_and_reaches_the_prompt(
    answering: AnsweringContext,
    prompts: list[Prompt],
    harvest: HarvestData,
    prepared: Prepared,
    plain: list[Rollout],
) -> None:
    method = RepresentationControl()
    parameters = prepared["representation-control"]
    mean, pca = parameters[f"mean {bases.BLOCK}"], parameters[f"pca {bases.BLOCK}"]
    assert float(pca.norm()) == pytest.approx(float(mean.norm()), rel=1e-4)
    assert float(pca @ mean) > 0
    right, wrong = right_and_wrong(harvest)[0]
    module = {"b": harvest.loaded.blocks[bases.BLOCK]}
    (reading,) = read(harvest.loaded, [*right, *wrong], module)
    rows = reading.lasts("b")
    difference = rows[: len(right)].mean(0) - rows[len(right) :].mean(0)
    only = dataclasses.replace(
        harvest,
        graded=[g for g in harvest.graded if g.rollout.prompt_id == right[0].prompt_id],
    )
    torch.testing.assert_close(
        method.prepare(only)[f"mean {bases.BLOCK}"], difference, atol=1e-4, rtol=1e-3
    )
    setting = {"vector": "mean", "block": bases.BLOCK, "strength": 0.0}
    assert _tokens(method.answer(answering, parameters, setting, prompts)) == _tokens(plain)
    # In the prompt's pass already: the first token of all is chosen under the vector.
    loud = {f"mean {bases.BLOCK}": 50 * torch.randn(64, generator=torch.Generator().manual_seed(0))}
    moved = method.answer(answering, loud, {**setting, "strength": 1.0}, prompts)
    assert any(a.token_ids[0] != b.token_ids[0] for a, b in zip(moved, plain, strict=True))


def test_efficiency_steering_leaves_the_prompt_alone_and_shortens(
    answering: AnsweringContext,
    prompts: list[Prompt],
    harvest: HarvestData,
    prepared: Prepared,
    plain: list[Rollout],
) -> None:
    for short, long in shortest_and_longest_right(harvest):
        assert short.prompt_id == long.prompt_id
        assert len(short.token_ids) < len(long.token_ids)
    method = EfficiencySteering()
    parameters = prepared["efficiency-steering"]
    steered = method.answer(answering, parameters, {"block": bases.BLOCK, "strength": 4.0}, prompts)
    assert [r.token_ids[0] for r in steered] == [r.token_ids[0] for r in plain]
    assert _tokens(steered) != _tokens(plain)


def test_nowait_never_writes_a_keyword(
    answering: AnsweringContext, prompts: list[Prompt], prepared: Prepared, loaded: LoadedModel
) -> None:
    parameters = prepared["nowait"]
    words = {loaded.tokenizer.decode([i]).strip().lower() for i in parameters["token_ids"].tolist()}
    assert "wait" in words
    assert words <= KEYWORDS
    answered = NO_WAIT.answer(answering, parameters, {}, prompts)
    banned = set(parameters["token_ids"].tolist())
    assert not any(banned & set(rollout.token_ids) for rollout in answered)
    assert token_ids_of_words(loaded, frozenset({"nonesuch"})) == []
    assert int((forbidding([1, 3], 5) < 0).sum()) == 2


def test_the_progress_vector_tells_progress_and_is_a_bias_on_the_logits(
    harvest: HarvestData, prepared: Prepared
) -> None:
    parameters = prepared["progress-vector"]
    head = harvest.loaded.model.get_output_embeddings()
    assert isinstance(head, nn.Linear)
    rollouts = [g.rollout for g in harvest.graded[:40]]
    predicted, actual = [], []
    for reading in read(harvest.loaded, rollouts, {}, {"final": head}):
        states = reading.found["final"][reading.response].float()
        predicted.append(states @ parameters["probe"])
        actual += [
            torch.arange(1, len(r.token_ids) + 1) / len(r.token_ids) for r in reading.rollouts
        ]
        # Added after the last norm, or as a bias: the same logits.
        torch.testing.assert_close(
            head(reading.found["final"] + 3 * parameters["probe"]),
            reading.logits + 3 * parameters["bias"],
            atol=1e-4,
            rtol=1e-4,
        )
    both = torch.stack([torch.cat(predicted), torch.cat(actual)])
    assert float(torch.corrcoef(both)[0, 1]) > 0.6


def test_deer_leaves_at_a_sure_answer_and_never_without_one(
    answering: AnsweringContext, prompts: list[Prompt], harvest: HarvestData, plain: list[Rollout]
) -> None:
    assert DEER.prepare(harvest)["token_ids"].numel() == 1
    # Greedily this model never waits: another word stands for the monitor.
    words = token_ids_of_words(answering.loaded, frozenset({"so"}))
    parameters, monitors = {"token_ids": torch.tensor(words)}, set(words)
    waits = [bool(monitors & set(r.token_ids)) for r in plain]
    chosen = [p for p, waiting in zip(prompts, waits, strict=True) if waiting][:4]
    others = [p for p, waiting in zip(prompts, waits, strict=True) if not waiting][:4]
    assert chosen
    assert others
    by_prompt = {r.prompt_id: r for r in plain}
    patient = DEER.answer(answering, parameters, {"threshold": 2.0}, [*chosen, *others])
    assert _tokens(patient) == [by_prompt[p.prompt_id].token_ids for p in (*chosen, *others)]
    assert all(r.preview_tokens > 0 for r in patient[: len(chosen)]), "trials are counted"
    assert all(r.preview_tokens == 0 for r in patient[len(chosen) :])
    hasty = DEER.answer(answering, parameters, {"threshold": -1.0}, chosen)
    for rollout in hasty:
        whole = by_prompt[rollout.prompt_id].token_ids
        place = next(i for i, token in enumerate(whole) if token in monitors)
        assert rollout.token_ids[:place] == whole[:place]
        tail = rollout.token_ids[place : place + len(answering.answer_prompt)]
        assert tail == answering.answer_prompt
        assert rollout.preview_tokens == 0


def test_cgrs_suppresses_triggers_in_proportion_to_certainty(
    answering: AnsweringContext, prompts: list[Prompt], prepared: Prepared, plain: list[Rollout]
) -> None:
    assert probability(0.9, 0.9) == 0
    assert probability(1.0, 0.9) == pytest.approx(1)
    assert probability(0.95, 0.9) == pytest.approx(0.5)
    assert probability(0.2, 0.9) == 0
    parameters = prepared["cgrs"]
    never = CGRS.answer(answering, parameters, {"delta": 1 - 1e-12}, prompts[:6])
    assert _tokens(never) == _tokens(plain[:6])
    assert all(r.preview_tokens > 0 for r in never)
    always = CGRS.answer(answering, parameters, {"delta": -1e9}, prompts)
    triggers = set(parameters["token_ids"].tolist())
    assert any(triggers & set(r.token_ids[r.control_points[0] + 1 :]) for r in plain)
    for rollout, other in zip(always, plain, strict=True):
        after = rollout.token_ids[other.control_points[0] + 1 :]
        assert not triggers & set(after), "sure enough everywhere"


def test_samples_of_one_prompt_share_their_noise_with_other_calls(
    answering: AnsweringContext, prompts: list[Prompt]
) -> None:
    one = answering.engine.generate(
        [GenerationRequest(prompts[0], 3)], answering.sampled, seed=answering.seed
    )
    some = answering.engine.generate(
        [GenerationRequest(prompts[0], k) for k in range(5)], answering.sampled, seed=answering.seed
    )
    assert one.rollouts[0].token_ids == some.rollouts[3].token_ids
