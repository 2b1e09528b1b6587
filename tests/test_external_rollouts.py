"""Rollouts that something else sampled are the run's own: checked line by line, graded, and read in one pass."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from stir_train.answering.external import ExternalAnswerer
from stir_train.artifacts.atomic import file_sha256
from stir_train.artifacts.run_dir import STAGE_FILE, RunDir
from stir_train.config.load import load_config
from stir_train.config.run import RunConfig
from stir_train.data.control_points import ControlPointAutomaton
from stir_train.errors import ConfigError, DataError, StageError
from stir_train.generation.backend import ControlSpec, GenerationRequest, SamplingParams
from stir_train.generation.external.completion import Completion
from stir_train.generation.external.file import CompletionFile
from stir_train.generation.transformers.engine import DecodeEngine
from stir_train.models.load import LoadedModel
from stir_train.stores.rollouts import RolloutStore
from stir_train.stores.states import StateStore
from stir_train.types.rollout import Prompt
from tests.support.completions_stub import Asked, completions_stub
from tests.support.ranks import outputs, run_ranks
from tests.support.smoke import SMOKE, run_smoke, smoke_arguments

NUM_SAMPLES = 4
SMALL = (
    "splits={num_harvest: 16, num_tune: 4, num_test: 4}",
    "generation={max_new_tokens: 96, max_rows: 64, chunk_completions: 16}",
    f"rollout.num_samples={NUM_SAMPLES}",
)
Line = dict[str, Any]


@dataclass(frozen=True)
class Own:
    """A rollout stage that the run's engine made, and its completions as another would send them."""

    output: Path
    prompts: list[Line]
    lines: list[Line]


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Own:
    output = tmp_path_factory.mktemp("external")
    _require_made(run_smoke(output, *SMALL, "name=own", verb="rollout"))
    asked = output / "prompts.jsonl"
    _require_made(run_smoke(output, *SMALL, "--prompts", str(asked), verb="data"))
    prompts = [json.loads(line) for line in asked.read_text().splitlines()]
    made = RolloutStore(RunDir(output / "own").stage("rollout")).read()
    by_id = {prompt["prompt_id"]: prompt for prompt in prompts}
    lines = [
        {
            **{key: by_id[g.rollout.prompt_id][key] for key in ("prompt_id", "prompt_token_ids")},
            **{key: by_id[g.rollout.prompt_id][key] for key in ("temperature", "top_p", "top_k")},
            "sample": g.rollout.sample,
            "token_ids": list(g.rollout.token_ids),
            "finish_reason": g.rollout.finish_reason,
            "text": g.text,
        }
        for g in made
    ]
    return Own(output, prompts, lines)


def _require_made(done: Any) -> None:
    assert done.returncode == 0, done.stderr


def _write(path: Path, lines: list[Line]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_imported_rollouts_are_those_of_decoding_and_later_stages_take_them(own: Own) -> None:
    assert len(own.prompts) == 16
    assert own.prompts[0]["num_samples"] == NUM_SAMPLES
    assert own.prompts[0]["max_new_tokens"] == 96
    shuffled = random.Random(0).sample(own.lines, len(own.lines))
    path = _write(own.output / "completions.jsonl", shuffled)
    settings = (*SMALL, "name=imported", f"external.file={path}")
    for verb in ("rollout", "harvest", "basis"):
        _require_made(run_smoke(own.output, *settings, verb=verb))

    stages = [RunDir(own.output / name).stage("rollout") for name in ("own", "imported")]
    decoded, imported = (RolloutStore(stage).read() for stage in stages)
    for a, b in zip(decoded, imported, strict=True):
        assert (a.text, a.grade, a.reward) == (b.text, b.grade, b.reward)
        for name in ("prompt_id", "sample", "prompt_token_ids", "token_ids", "finish_reason"):
            assert getattr(a.rollout, name) == getattr(b.rollout, name)
        assert a.rollout.control_points == b.rollout.control_points
        assert a.rollout.logprobs == pytest.approx(b.rollout.logprobs, abs=1e-4)
    chunks = zip(*(StateStore(stage).chunks() for stage in stages), strict=True)
    num_states = 0
    for (_, a), (_, b) in chunks:
        assert (a.labels, a.blocks) == (b.labels, b.blocks)
        apart = (a.states - b.states).norm(dim=-1) / a.states.norm(dim=-1)
        assert float(apart.max()) < 1e-5
        num_states += len(a.labels)
    assert num_states > len(own.lines)

    inputs = json.loads((stages[1].path / STAGE_FILE).read_text())
    assert inputs["sources"]["external rollouts"] == file_sha256(path)
    assert str(path) not in json.dumps(inputs)
    moved = path.rename(own.output / "moved.jsonl")
    settings = (*settings[:-1], f"external.file={moved}")
    _require_made(run_smoke(own.output, *settings, verb="harvest"))
    moved.write_text(moved.read_text() + "\n")
    refused = run_smoke(own.output, *settings, verb="harvest")
    assert refused.returncode == 1
    assert "external rollouts" in refused.stderr


@pytest.mark.slow
def test_ranks_that_hold_a_model_together_read_a_file_together(own: Own) -> None:
    path = _write(own.output / "shared.jsonl", own.lines)
    sharded = ("model.sharding=tensor", "model.shards=2", "train.zero_stage=3")
    settings = (*SMALL, *sharded, "name=shared", f"external.file={path}")
    argv = ["-m", "stir_train", *smoke_arguments(own.output, *settings, verb="rollout")]
    log = own.output / "shared.log"
    assert not any(run_ranks(2, argv, log)), outputs(2, log)
    whole, shared = (RunDir(own.output / name).stage("rollout") for name in ("own", "shared"))
    for a, b in zip(RolloutStore(whole).read(), RolloutStore(shared).read(), strict=True):
        assert (a.rollout.token_ids, a.grade) == (b.rollout.token_ids, b.grade)
    for (_, a), (_, b) in zip(StateStore(whole).chunks(), StateStore(shared).chunks(), strict=True):
        assert a.labels == b.labels
        apart = (a.states - b.states).norm(dim=-1) / a.states.norm(dim=-1)
        assert float(apart.max()) < 1e-4


def test_what_is_wrong_with_a_file_is_said_before_anything_is_made(own: Own) -> None:
    lines = [dict(line) for line in own.lines[1:]]
    lines[0]["temperature"] = 1.0
    path = _write(own.output / "wrong.jsonl", lines)
    refused = run_smoke(own.output, *SMALL, "name=wrong", f"external.file={path}", verb="rollout")
    assert refused.returncode == 1
    assert "line 1: temperature 1, rollout.temperature is 0.7" in refused.stderr
    assert f"{own.lines[0]['prompt_id']}: no samples 0" in refused.stderr
    assert not (own.output / "wrong" / "rollout").exists()


def test_a_run_that_was_cut_off_asks_the_server_only_for_what_it_lacks(own: Own) -> None:
    made: dict[tuple[int, ...], list[Line]] = {}
    for line in own.lines:
        made.setdefault(tuple(line["prompt_token_ids"]), []).append(line)

    def sampled(asked: Asked) -> Line:
        line = made[tuple(asked["prompt"])][asked["seed"] % NUM_SAMPLES]
        return {key: line[key] for key in ("prompt_token_ids", "token_ids", "finish_reason")}

    def dying(asked: Asked) -> Line | int:
        return sampled(asked) if len(stub.asked) <= 20 else 400

    stage = RunDir(own.output / "served").stage("rollout")
    with completions_stub(dying) as stub:
        settings = (*SMALL, "name=served", f"external.server={stub.url}", "external.num_requests=4")
        cut_off = run_smoke(own.output, *settings, verb="rollout")
        assert cut_off.returncode == 1
        assert "status 400" in cut_off.stderr
        first = stage.path / "rollouts-00000.parquet"
        kept = file_sha256(first)
        assert not (stage.path / "rollouts-00001.parquet").exists()
        stub.asked.clear()
        stub.reply = sampled
        _require_made(run_smoke(own.output, *settings, verb="rollout"))
    assert len(stub.asked) == len(own.lines) - 16
    assert file_sha256(first) == kept
    for graded in RolloutStore(stage).read():
        offered = [line["token_ids"] for line in made[graded.rollout.prompt_token_ids]]
        assert list(graded.rollout.token_ids) in offered
    assert stub.url not in (stage.path / STAGE_FILE).read_text()


class _Given:
    def __init__(self, token_ids: tuple[int, ...]) -> None:
        self.token_ids = token_ids

    def complete(
        self, requests: list[GenerationRequest], _sampling: SamplingParams
    ) -> list[Completion]:
        return [Completion(self.token_ids, "length") for _ in requests]


def test_completions_of_another_model_are_refused(
    loaded: LoadedModel, automaton: ControlPointAutomaton, prompts: list[Prompt]
) -> None:
    allowed = [i for i in range(loaded.model.config.vocab_size) if i not in loaded.stop_token_ids]
    foreign = tuple(random.Random(1).choices(allowed, k=32))
    answerer = ExternalAnswerer(
        lambda: _Given(foreign),
        lambda: DecodeEngine(loaded, max_rows=4),
        lambda: loaded,
        ControlSpec(automaton, 4, (2,)),
    )
    sampling = SamplingParams(32, loaded.stop_token_ids, temperature=0.7, top_p=0.95)
    with pytest.raises(StageError, match=r"sampled from another model: .* nats less likely"):
        answerer.answer(prompts[:2], num_samples=1, sampling=sampling)


PROMPTS = [Prompt("a", "", "", (1, 2), ""), Prompt("b", "", "", (3,), "")]
SAMPLING = SamplingParams(3, (9,), temperature=0.7, top_p=0.95)


def _lines() -> list[Line]:
    settings = {"temperature": 0.7, "top_p": 0.95, "top_k": -1, "finish_reason": "stop"}
    return [
        {
            "prompt_id": prompt.prompt_id,
            "sample": sample,
            "prompt_token_ids": prompt.token_ids,
            "token_ids": [sample, 9],
            **settings,
        }
        for prompt in PROMPTS
        for sample in range(2)
    ]


def _opened(path: Path) -> CompletionFile:
    return CompletionFile(path, PROMPTS, SAMPLING, num_samples=2, vocab_size=10)


def test_lines_are_found_by_problem_and_sample_in_any_order(tmp_path: Path) -> None:
    path = _write(tmp_path / "f.jsonl", _lines()[::-1])
    file = _opened(path)
    asked = [GenerationRequest(PROMPTS[1], 1), GenerationRequest(PROMPTS[0], 0)]
    assert file.complete(asked, SAMPLING) == [
        Completion((1, 9), "stop"),
        Completion((0, 9), "stop"),
    ]
    _write(path, _lines())
    with pytest.raises(DataError, match="changed while it was read"):
        file.complete(asked, SAMPLING)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda lines: lines[0].update(prompt_id="z"), "line 1: prompt_id 'z' is no problem"),
        (lambda lines: lines[1].update(sample=0), "line 2: sample 0 of a is there already"),
        (lambda lines: lines[1].update(sample=2), "line 2: sample 2 of a; rollout.num_samples=2"),
        (lambda lines: lines.pop(2), "b: no samples 0"),
        (lambda lines: lines.clear(), "a: no samples 0, 1"),
        (lambda lines: lines[0].update(prompt_token_ids=[1, 7]), "token 1 is 7, expected 2"),
        (lambda lines: lines[0].update(prompt_token_ids=[1]), "1 tokens, expected 2"),
        (lambda lines: lines[0].update(token_ids=[10, 9]), "token id 10 is not in"),
        (lambda lines: lines[0].update(token_ids=[True, 9]), "line 1: token_ids.0: "),
        (lambda lines: lines[0].update(token_ids=[]), "token_ids is empty"),
        (lambda lines: lines[0].update(token_ids=[1, 1]), "none of the stop tokens"),
        (lambda lines: lines[0].update(token_ids=[9, 1, 9]), "goes on after stop token 9"),
        (lambda lines: lines[0].update(token_ids=[1, 1, 1, 9]), "max_new_tokens is 3"),
        (lambda lines: lines[0].update(finish_reason="length"), "length after a stop token"),
        (lambda lines: lines[0].update(finish_reason="abort"), "line 1: finish_reason: "),
        (lambda lines: lines[0].update(top_p=1.0), "top_p 1, rollout.top_p is 0.95"),
        (lambda lines: lines[0].update(top_k=5), "top_k 5, rollout.top_k is 0"),
        (lambda lines: lines[0].pop("temperature"), "line 1: temperature: Field required"),
    ],
)
def test_every_line_is_checked(
    tmp_path: Path, change: Callable[[list[Line]], object], said: str
) -> None:
    lines = _lines()
    change(lines)
    with pytest.raises(DataError) as refused:
        _opened(_write(tmp_path / "f.jsonl", lines))
    assert said in str(refused.value)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"external.file: .* cannot be read"):
        _opened(tmp_path / "none.jsonl")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["external={file: a.jsonl, server: 'http://h/v1'}"], "one of them"),
        (["external.server=h:8000"], "expected http://HOST:PORT/v1"),
        (["external.server=http://user:pass@h/v1"], "key_variable"),
        (["external.file=a.jsonl", "generation.backend=vllm"], "one source"),
        (["external.file=a.jsonl", "model.sharding=zero3", "train.zero_stage=3"], "zero3"),
        (
            ["external.server=http://h/v1", "model={sharding: tensor, shards: 2}"],
            "would each ask it",
        ),
    ],
)
def test_settings_that_cannot_go_together_are_refused(settings: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config(RunConfig, SMOKE, [*settings, "distill.enabled=false"])
