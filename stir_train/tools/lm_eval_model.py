"""The model `stir` of lm-evaluation-harness: a finished run answers, steered as our evaluation steers it.

lm-eval is an extra (``stir-train[lm-eval]``); nothing else imports this module or it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import lm_eval.models  # noqa: F401  # its own models: it loads them only while it knows none
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

from stir_train.answering.methods import STEERED
from stir_train.config.run_directory import config_at
from stir_train.data.chat import Message, render_messages
from stir_train.data.prompts import encode_rendered
from stir_train.errors import ConfigError, StageError
from stir_train.generation.backend import SamplingParams, require_abilities
from stir_train.generation.open import abilities_of
from stir_train.monitoring.console import make_console
from stir_train.runtime.attempt import read_run
from stir_train.runtime.generation import sampling_params
from stir_train.tools.trace import METHODS, method_answerer
from stir_train.types.rollout import Prompt

MODEL_NAME = "stir"
CutOff = Literal["wrong", "graded"]
UNDERSTOOD = {"until", "max_gen_toks", "do_sample", "temperature", "top_p", "top_k"}


@register_model(MODEL_NAME)
class StirModel(LM):  # type: ignore[misc]  # lm-eval is not typed
    """A run's method, for tasks that generate.

    Prompts are answered in the order and the chunks in which the run's evaluation answers them, by the same
    engine and controller, so that its own items get the same tokens.

    Args:
        run: Directory of a run, or its configuration.
        method: ``greedy``, ``stir``, ``stir-published`` or ``lora-student``.
        cut_off: What a completion is worth that the token budget cut off: ``wrong``, as in the run's own
            evaluation, so that its text is not given; or ``graded``, as lm-eval's other models do.

    Raises:
        StirError: If the run is not there, or the method's stages are not finished.
    """

    def __init__(self, run: str, method: str = STEERED, cut_off: CutOff = "wrong") -> None:
        super().__init__()
        if method not in METHODS:
            raise ConfigError(f"method={method}: expected one of {', '.join(METHODS)}")
        if cut_off not in ("wrong", "graded"):
            raise ConfigError(f"cut_off={cut_off}: expected wrong or graded")
        self._cut_off = cut_off
        self._opened = ExitStack()
        config = config_at(Path(run))
        self._context = self._opened.enter_context(read_run(config, make_console()))
        if self._context.world.size > 1:
            raise StageError("lm-eval with this model runs in one process; leave the launcher out")
        self._answerer = method_answerer(self._context, method)
        backend = config.generation.backend
        require_abilities(backend, abilities_of(backend), self._answerer.needs, f"method={method}")

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None
    ) -> StirModel:
        """Make it from lm-eval's ``--model_args``.

        Args:
            arg_dict: As of the class.
            additional_config: lm-eval's batch size and device, which the run's own settings give.
        """
        del additional_config
        return cls(**arg_dict)

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Answer every request's context, up to the first of its ``until`` texts.

        Raises:
            ConfigError: If a task asks for a way of generating that is not understood.
        """
        del disable_tqdm
        size = self._context.config.generation.prompts_per_chunk(len(requests))
        return [
            text
            for start in range(0, len(requests), size)
            for text in self._answer([r.args for r in requests[start : start + size]])
        ]

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Refuse: a controller acts on what it sees generated, and there is no such thing here.

        Raises:
            StageError: Always.
        """
        raise StageError(
            f"{len(requests)} requests for log-likelihoods: steering changes what a model writes, and is "
            "measured by tasks of output_type generate_until; --model hf scores the plain model"
        )

    def loglikelihood_rolling(self, requests: Sequence[Instance]) -> list[float]:
        """Refuse, for the same reason.

        Raises:
            StageError: Always.
        """
        self.loglikelihood(requests)
        return []

    @property
    def tokenizer_name(self) -> str:
        """By which lm-eval tells cached prompts apart."""
        return self._context.resources.described.identity.fingerprint()

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The template that `apply_chat_template` uses, for lm-eval's record.

        Args:
            chat_template: Which of several; there is one.
        """
        del chat_template
        return str(self._context.resources.described.tokenizer.chat_template or "")

    def apply_chat_template(
        self, chat_history: Sequence[Message], add_generation_prompt: bool = True
    ) -> str:
        """Render messages with the run's template arguments and date.

        Raises:
            StageError: For a reply that is already begun (a task's ``gen_prefix``).
        """
        if not add_generation_prompt:
            raise StageError("a reply that the task begins (gen_prefix) cannot be steered")
        described = self._context.resources.described
        return render_messages(chat_history, self._context.config.task, described.tokenizer)

    def close(self) -> None:
        """Give the model's memory back."""
        self._opened.close()

    def _answer(self, asked: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
        """Answer requests side by side where they have the same token budget."""
        default = sampling_params(self._context, greedy=True)
        groups: dict[SamplingParams, list[int]] = {}
        for index, (_, wanted) in enumerate(asked):
            groups.setdefault(sampling_of(wanted, default), []).append(index)
        texts = [""] * len(asked)
        for sampling, indices in groups.items():
            prompts = [self._prompt(asked[index][0]) for index in indices]
            made = self._answerer.answer(prompts, num_samples=1, sampling=sampling)
            for index, rollout in zip(indices, made.rollouts, strict=True):
                text = self._context.resources.described.decode(rollout.token_ids)
                ended, is_ended = first_part(text, asked[index][1].get("until") or ())
                is_lost = rollout.truncated and not is_ended and self._cut_off == "wrong"
                texts[index] = "" if is_lost else ended
        return texts

    def _prompt(self, text: str) -> Prompt:
        token_ids = encode_rendered(text, self._context.resources.described.tokenizer)
        name = sha256(text.encode()).hexdigest()
        return Prompt(name, question=text, text=text, token_ids=token_ids, answer="")


def sampling_of(wanted: Mapping[str, Any], default: SamplingParams) -> SamplingParams:
    """Greedy decoding within the token budget that a task's ``generation_kwargs`` ask for.

    Args:
        wanted: lm-eval's words.
        default: Gives the token budget, where the task sets none, and the stop tokens.

    Raises:
        ConfigError: If there is a word that is not understood, or samples are asked for.
    """
    unknown = sorted(set(wanted) - UNDERSTOOD)
    if unknown:
        raise ConfigError(
            f"generation_kwargs: {', '.join(unknown)}: model {MODEL_NAME} understands "
            f"{', '.join(sorted(UNDERSTOOD))}"
        )
    if wanted.get("do_sample"):
        raise ConfigError(
            f"generation_kwargs: do_sample: model {MODEL_NAME} answers greedily, as in the run's table; "
            "--gen_kwargs do_sample=False asks for that"
        )
    budget = int(wanted.get("max_gen_toks", default.max_new_tokens))
    return dataclasses.replace(default, max_new_tokens=budget)


def first_part(text: str, until: Sequence[str] | str) -> tuple[str, bool]:
    """What stands before the first of some texts, and whether there is one."""
    ends = [until] if isinstance(until, str) else until
    places = [text.find(end) for end in ends if end and end in text]
    return (text[: min(places)], True) if places else (text, False)
