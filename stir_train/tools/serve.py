"""Serve a run by vLLM's own OpenAI-compatible server: its controller in the passes, its student beside it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import torch
from rich.console import Console

from stir_train.answering.methods import STUDENT
from stir_train.config.steering import SteeringConfig
from stir_train.distributed.environment import environment
from stir_train.errors import ConfigError, ModelError, StageError, StirError
from stir_train.generation.backend import Ability, abilities_for, require_abilities
from stir_train.generation.controller import controllers_of
from stir_train.generation.open import abilities_of, check_installation
from stir_train.generation.vllm.heads import require_heads
from stir_train.generation.vllm.served import CONFIG_KEY, Attachment
from stir_train.generation.vllm.versions import load_part
from stir_train.models.load import resolve_device, resolve_dtype
from stir_train.models.locate import locate_model
from stir_train.models.lora import adapter_rank
from stir_train.monitoring.console import caution
from stir_train.runtime.answerers import steering_needs
from stir_train.runtime.context import RunContext
from stir_train.runtime.upstream import WHY, students_taught
from stir_train.steering.served import OPENER, RunSteering, ServedRun
from stir_train.stores.adapters import adapter_of

SERVERS = {"vllm": "stir_train.generation.vllm.server:serve"}
"""Import path of what serves, by the backend whose server it is."""
PARTS = "stir_train.generation.vllm.server_parts"
ENVIRONMENT = {
    "VLLM_USE_V2_MODEL_RUNNER": "0",
    "VLLM_NO_USAGE_STATS": "1",
    # This process has threads of torch's, which a fork would not take along.
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
}
"""While vLLM serves: it runs models by the runner that we hook into, and tells nobody that it is used."""
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as the largest rank."""
ADAPTER_SLOTS = 2
"""Adapters held side by side. Of one alone, vLLM's CPU kernels give it to the base's rows too."""
OURS: Mapping[str, str] = {
    "--model": "it is model.name",
    "--revision": "it is model.revision",
    "--dtype": "it is model.dtype",
    "--served-model-name": "models are called after the run; give name=...",
    "--host": "it is --host, before --",
    "--port": "it is --port, before --",
    "--enable-lora": "the run's student is served if it has one",
    "--lora-modules": "the run's student is served if it has one",
    "--max-lora-rank": "it is that of the run's student",
    "--max-loras": "it follows from the run's student",
    "--worker-extension-cls": "controllers are attached by it",
    "--scheduler-cls": "the prefix cache is told apart by it",
    "--additional-config": "it tells vLLM's processes of the run",
    "--no-enforce-eager": "hooks on compiled graphs never run",
    "--async-scheduling": "a controller decides before the next token is scheduled",
    "--speculative-config": "drafted tokens would be steered before they are accepted",
    "--tensor-parallel-size": "a pass is steered in one process",
    "--pipeline-parallel-size": "a pass is steered in one process",
    "--data-parallel-size": "a pass is steered in one process; start several servers instead",
    "--api-server-count": "one process answers",
    "--headless": "one process answers",
    "-tp": "a pass is steered in one process",
    "-pp": "a pass is steered in one process",
    "-dp": "a pass is steered in one process; start several servers instead",
}
"""Arguments of vLLM's that are not the user's, and why."""


@dataclass(frozen=True)
class Address:
    """Where a server listens."""

    host: str
    port: int


@dataclass(frozen=True)
class ServerPlan:
    """What is served, and how vLLM is started for it.

    Attributes:
        engine: Whose server it is.
        sentences: What is served, for people.
        arguments: Of ``vllm serve``.
        attachment: How requests are steered; None steers none.
        require_answers: Refuses a model with which vLLM could answer no request here.
    """

    engine: str
    sentences: tuple[str, ...]
    arguments: tuple[str, ...]
    attachment: Attachment | None
    require_answers: Callable[[], None]


def plan_server(
    context: RunContext, engine: str, address: Address, *, further: Sequence[str]
) -> ServerPlan:
    """Read the run, and lay out its server; nothing is started.

    Args:
        context: The run, tuned.
        engine: Whose server it is to be.
        address: Where it listens.
        further: Arguments of vLLM's.

    Raises:
        ArtifactError: If the run is not tuned yet, or is damaged.
        ConfigError: If an argument is one that we set ourselves.
        ModelError: If the model's files are not such that vLLM loads them.
        StageError: If the chosen controller needs what vLLM cannot do.
    """
    _require_free(further)
    name = context.config.name
    choice = context.steering.choice()
    if choice.mode == "none":
        attachment, sentences = None, [f"{name}: the base model, plain: {WHY}"]
    else:
        attachment = _attachment(context, engine, choice)
        sentences = [f"{name}: the base model, steered as the run chose ({choice.mode})"]
    student, told = _student(context)
    arguments = [
        *_model(context),
        *("--served-model-name", name, "--host", address.host, "--port", str(address.port)),
        *_steered(attachment, context.resources.described.max_tokens),
        *student,
        *further,
    ]
    described, device = context.resources.described, context.config.model.device
    require_answers = partial(
        require_heads, described.identity.name, described.head_width, resolve_device(device).type
    )
    return ServerPlan(engine, (*sentences, told), tuple(arguments), attachment, require_answers)


def show_server(plan: ServerPlan, console: Console) -> None:
    """Print what would be served and how."""
    for sentence in plan.sentences:
        console.print(sentence, soft_wrap=True)
    console.print("as by this, with controllers attached before the first request:")
    console.print(f"  vllm serve {shlex.join(plan.arguments)}", soft_wrap=True, markup=False)
    try:
        plan.require_answers()
        check_installation(plan.engine, {})
    except StirError as error:
        console.print(caution(str(error)), soft_wrap=True)


def run_server(plan: ServerPlan, console: Console) -> None:
    """Serve until told to stop.

    Raises:
        ModelError: If vLLM could answer no request with this model here.
        StageError: If there is no vLLM, or not the supported one.
    """
    plan.require_answers()
    check_installation(plan.engine, {})
    for sentence in plan.sentences:
        console.print(sentence, soft_wrap=True)
    with environment(ENVIRONMENT):
        serve = cast(
            "Callable[[Sequence[str], Attachment | None], None]",
            load_part(SERVERS[plan.engine], kind="stir-train serve"),
        )
        serve(plan.arguments, plan.attachment)


def _require_free(further: Sequence[str]) -> None:
    for argument in further:
        flag = argument.partition("=")[0].replace("_", "-")
        if flag in OURS:
            raise ConfigError(f"{flag}: not with stir-train serve: {OURS[flag]}")


def _model(context: RunContext) -> list[str]:
    """Which model, as vLLM is told."""
    config = context.config.model
    path, gguf_file = locate_model(config)
    if gguf_file is not None:
        raise ModelError(
            f"model.name: vLLM's server loads no GGUF, and this run's model is {gguf_file}; it is decoded "
            "with generation.backend=vllm, and served by nothing yet"
        )
    dtype = resolve_dtype(config.dtype, resolve_device(config.device))
    arguments = ["--model", path, "--dtype", str(dtype).removeprefix("torch.")]
    if config.revision is not None and not Path(path).is_dir():
        arguments += ["--revision", config.revision]
    return [*arguments, *(["--trust-remote-code"] if config.trust_remote_code else [])]


def _attachment(context: RunContext, engine: str, choice: SteeringConfig) -> Attachment:
    """How requests are steered.

    Raises:
        StageError: If the controller needs what vLLM cannot do.
    """
    whose = f"{context.run_dir.path}: tuning's choice, mode {choice.mode},"
    _require_able(engine, steering_needs(choice), whose)
    described = context.resources.described
    run = ServedRun(
        directory=context.run_dir.path.resolve(),
        identity=described.identity,
        model=context.config.model,
        vocab_size=described.vocab_size,
        settings=choice,
    )
    # Read here too: what is wrong with the run is said before anything starts.
    steering = RunSteering(run, torch.device("cpu"))
    controllers = steering.controllers(1.0)
    _require_able(engine, abilities_for(controllers), whose)
    return Attachment(
        opener=OPENER,
        source=run.model_dump_json(),
        places=tuple(controller.place for controller in controllers_of(controllers)),
        num_blocks=described.identity.num_blocks,
        shares_prompts=steering.is_the_same_for_all,
    )


def _require_able(engine: str, needs: frozenset[Ability], whose: str) -> None:
    if Ability.PREVIEW in needs:
        raise StageError(
            f"{whose} decides after previews, which vLLM cannot make; tune again without them "
            "(tune.modes=[value, static]) and serve that"
        )
    require_abilities(engine, abilities_of(engine), needs, whose)


def _steered(attachment: Attachment | None, max_tokens: int) -> list[str]:
    """What vLLM needs to be steered."""
    if attachment is None:
        return []
    arguments = [
        "--enforce-eager",
        "--no-async-scheduling",
        *("--worker-extension-cls", f"{PARTS}.SteeredWorker"),
        *("--scheduler-cls", f"{PARTS}.SteeredScheduler"),
        *(
            "--additional-config",
            json.dumps({CONFIG_KEY: attachment.model_dump(mode="json")}, sort_keys=True),
        ),
    ]
    if "every_token" in attachment.places:
        # What acts on a whole prompt is asked at its end, when all of it must be in the pass.
        arguments += ["--no-enable-chunked-prefill", "--max-num-batched-tokens", str(max_tokens)]
    return arguments


def _student(context: RunContext) -> tuple[list[str], str]:
    """The run's student as vLLM is told, and people."""
    if "" not in students_taught(context.run_dir, context.config):
        return [], "no student: the run trains none"
    stage = context.stage("distill")
    if not stage.is_complete:
        return [], "no student: it is not trained yet"
    adapter = adapter_of(stage).resolve()
    name, rank = f"{context.config.name}-{STUDENT}", adapter_rank(adapter)
    allowed = next((limit for limit in LORA_RANKS if limit >= rank), None)
    if allowed is None:
        raise ModelError(
            f"distill.rank={rank}: vLLM serves ranks up to {LORA_RANKS[-1]}; serve the merged weights"
        )
    arguments = [
        "--enable-lora",
        *("--max-loras", str(ADAPTER_SLOTS), "--max-lora-rank", str(allowed)),
        *("--lora-modules", f"{name}={adapter}"),
    ]
    return arguments, f"{name}: the student, unsteered"
