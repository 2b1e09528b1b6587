"""`stir-train serve`: over HTTP the tokens of our engine, whoever else is served at the same time."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from stir_train.config.inputs import ModelConfig
from stir_train.config.steering import ScaledSteering
from stir_train.generation.backend import ControlSpec, GenerationRequest, SamplingParams
from stir_train.generation.controller import Steering
from stir_train.generation.transformers.engine import DecodeEngine
from stir_train.models.load import LoadedModel, load_model
from stir_train.models.lora import load_adapter
from stir_train.steering.artifacts import SteeringArtifacts, open_run_artifacts
from stir_train.types.rollout import Prompt, Rollout
from tests.support.smoke import run_smoke
from tests.vllm.models import save_widened
from tests.vllm.serving import Answer, Server, serving

BASE, STUDENT = "smoke", "smoke-lora-student"
BUDGET, LONG = 96, 96
MADE = (
    "splits={num_harvest: 16, num_tune: 4, num_test: 4}",
    "validation.enabled=false",
    "value.num_steps=60",
    # Without a gate, so that there is something to see at every control point.
    "steering={mode: value, strength: 2.0, margin: -1.0, doubt: 0.0, only_familiar: false}",
    "tune.enabled=false",
    "distill.also={}",
    "--only=rollout,harvest,basis,validate,value,tune,steer,distill",
)


@dataclass(frozen=True)
class Ours:
    """Our own engine over the run's model, and its controller read anew."""

    loaded: LoadedModel
    engine: DecodeEngine
    artifacts: SteeringArtifacts
    control: ControlSpec

    def completed(
        self, prompt: Prompt, strength: float, max_tokens: int = BUDGET, *, stops: bool = True
    ) -> Rollout:
        """A greedy completion at a strength relative to the run's own."""
        made = self.engine.generate(
            [GenerationRequest(prompt)],
            SamplingParams(max_tokens, self.loaded.stop_token_ids if stops else ()),
            seed=0,
            control=self.control,
            controller=self._controller(strength) if strength else None,
        )
        return made.rollouts[0]

    def _controller(self, strength: float) -> Steering:
        settings = self.artifacts.choice()
        assert isinstance(settings, ScaledSteering)
        stronger = settings.model_copy(update={"strength": strength * settings.strength})
        return self.artifacts.controller(stronger, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a controller and a student."""
    output = tmp_path_factory.mktemp("runs")
    done = run_smoke(output, f"model.name={save_widened(output / 'wide')}", *MADE)
    assert done.returncode == 0, done.stderr
    return output / BASE


@pytest.fixture(scope="module")
def ours(run: Path, control: ControlSpec) -> Ours:
    loaded = load_model(ModelConfig(name=str(run.parent / "wide")))
    artifacts = open_run_artifacts(run, loaded.identity)
    points = ControlSpec(control.automaton, artifacts.control_points().max_points)
    return Ours(loaded, DecodeEngine(loaded, max_rows=4), artifacts, points)


@pytest.fixture(scope="module")
def server(run: Path) -> Iterator[Server]:
    """With a cache too small for all its rows, so that some are preempted."""
    with serving(run, "--num-gpu-blocks-override=10", "--max-model-len=256") as started:
        yield started


def _require_same(theirs: Answer, ours: Rollout) -> None:
    assert theirs.token_ids == ours.token_ids
    torch.testing.assert_close(
        torch.tensor(theirs.logprobs), torch.tensor(ours.logprobs), rtol=1e-3, atol=1e-4
    )


def test_models_are_called_after_the_run(server: Server) -> None:
    import openai

    with openai.OpenAI(base_url=server.url, api_key="none") as client:
        assert {model.id for model in client.models.list()} == {BASE, STUDENT}


def test_tokens_are_our_engines_whoever_else_is_served(
    server: Server, ours: Ours, run: Path, prompts: list[Prompt]
) -> None:
    """Every strength and the student side by side, some preempted: each answer is as if it were alone."""
    asked = [(p, s) for p in prompts[:5] for s in (None, 0, 0.5, 2.0)]
    with ThreadPoolExecutor(len(asked) + 5) as threads:
        base = [threads.submit(server.complete, BASE, p.token_ids, BUDGET, s) for p, s in asked]
        student = [
            threads.submit(server.complete, STUDENT, p.token_ids, BUDGET) for p in prompts[:5]
        ]
        answers, taught = [x.result() for x in base], [x.result() for x in student]
    expected = [ours.completed(p, 1.0 if s is None else s) for p, s in asked]
    for answer, rollout in zip(answers, expected, strict=True):
        _require_same(answer, rollout)
    assert len({rollout.token_ids for rollout in expected}) > len(prompts[:5]), "steering acts"
    with_adapter = load_adapter(
        load_model(ModelConfig(name=str(run.parent / "wide"))), run / "distill" / "lora"
    )
    alone = dataclasses.replace(ours, engine=DecodeEngine(with_adapter, max_rows=1))
    for answer, prompt in zip(taught, prompts[:5], strict=True):
        _require_same(answer, alone.completed(prompt, 0))
    assert server.metric("vllm:num_preemptions_total") > 0


def test_the_log_tells_what_was_done_to_each_request(
    server: Server, ours: Ours, prompts: list[Prompt]
) -> None:
    answer = server.complete(BASE, prompts[0].token_ids, BUDGET, 0.5)
    rollout = ours.completed(prompts[0], 0.5)
    count = len(rollout.impulses)
    assert count > 1
    line = server.said(f"request {answer.name}")
    assert f"strength 0.5, {len(rollout.control_points)} control points" in line
    assert f"{count} interventions ({count} at control_point in block " in line


def test_what_one_request_left_in_the_cache_is_not_anothers(
    server: Server, ours: Ours, prompts: list[Prompt]
) -> None:
    """A conversation goes on: what was steered as a completion comes again as a prompt, which nobody steers."""
    ids = (prompts[0].token_ids * 8)[:LONG]
    first = dataclasses.replace(prompts[0], token_ids=ids)
    before = server.metric("vllm:prefix_cache_hits_total")
    for strength in (1.0, 0.0, 2.0, 1.0):
        answer = server.complete(BASE, ids, 80, strength, ignore_eos=True)
        made = ours.completed(first, strength, 80, stops=False)
        _require_same(answer, made)
        further = dataclasses.replace(first, token_ids=(*ids, *made.token_ids[:-2]))
        for then in (0.0, strength):
            again = server.complete(BASE, further.token_ids, 8, then, ignore_eos=True)
            _require_same(again, ours.completed(further, then, 8, stops=False))
    assert server.metric("vllm:prefix_cache_hits_total") > before, "prompts are shared"


def test_without_our_keys_it_is_anothers(run: Path, ours: Ours, prompts: list[Prompt]) -> None:
    """The remedy taken away: what was steered as a completion is read from the cache as an unsteered prompt."""
    ids = (prompts[0].token_ids * 8)[:LONG]
    first = dataclasses.replace(prompts[0], token_ids=ids)
    made = ours.completed(first, 1.0, 80, stops=False)
    further = dataclasses.replace(first, token_ids=(*ids, *made.token_ids[:-2]))
    with serving(run, "--max-model-len=256", module="tests.vllm.unkeyed_server") as server:
        answer = server.complete(BASE, ids, 80, 1.0, ignore_eos=True)
        _require_same(answer, made)
        again = server.complete(BASE, further.token_ids, 8, 0.0, ignore_eos=True)
        assert server.metric("vllm:prefix_cache_hits_total") > 0, "it is read from the cache"
    with pytest.raises(AssertionError):
        _require_same(again, ours.completed(further, 0.0, 8, stops=False))


def test_by_the_openai_client_and_by_curl(
    server: Server, ours: Ours, prompts: list[Prompt]
) -> None:
    prompt = prompts[1]
    plain, steered = (
        ours.loaded.decode(ours.completed(prompt, strength).token_ids) for strength in (0, 1)
    )
    said = [{"role": "user", "content": prompt.text}]
    import openai

    with openai.OpenAI(base_url=server.url, api_key="none") as client:
        for extra, expected in (({}, steered), ({"steering_strength": 0}, plain)):
            more = {"vllm_xargs": extra}
            chat = client.chat.completions.create(
                model=BASE, messages=said, max_tokens=BUDGET, temperature=0, extra_body=more
            )
            assert chat.choices[0].message.content == expected
            completed = client.completions.create(
                model=BASE,
                prompt=prompt.text,
                max_tokens=BUDGET,
                temperature=0,
                extra_body=more,
            )
            assert completed.choices[0].text == expected
        streamed = client.chat.completions.create(
            model=BASE, messages=said, max_tokens=BUDGET, temperature=0, stream=True
        )
        assert "".join(part.choices[0].delta.content or "" for part in streamed) == steered
    if (curl := shutil.which("curl")) is None:
        return
    body = {"model": BASE, "messages": said, "max_tokens": BUDGET, "temperature": 0}
    done = subprocess.run(
        [
            *(curl, "--silent", f"{server.url}/chat/completions"),
            *("--header", "Content-Type: application/json", "--data", json.dumps(body)),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout)["choices"][0]["message"]["content"] == steered


@pytest.mark.parametrize(
    ("model", "more", "why"),
    [
        (BASE, {"vllm_xargs": {"steering_strength": -1}}, "expected a number from 0"),
        (BASE, {"vllm_xargs": {"steering_strength": "off"}}, "expected a number from 0"),
        (BASE, {"vllm_xargs": {"steering": 0}}, "did you mean steering_strength"),
        (BASE, {"use_beam_search": True, "n": 2}, "beams are fed as prompts"),
        (STUDENT, {"vllm_xargs": {"steering_strength": 1}}, "served as it was evaluated"),
    ],
)
def test_what_cannot_be_done_is_a_bad_request(
    model: str, more: dict[str, object], why: str, server: Server, prompts: list[Prompt]
) -> None:
    body = {"model": model, "prompt": list(prompts[0].token_ids), "max_tokens": 4, **more}
    answered = server.post("completions", body)
    assert answered["status"] == 400
    assert why in answered["error"]["message"]
    assert len(server.complete(BASE, prompts[0].token_ids, 4).token_ids) == 4, "it goes on"
