"""Cut problems into disjoint splits by content, and render prompts as token ids."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Literal

from transformers import PreTrainedTokenizerBase

from stir_train.config.stages import SplitsConfig, TaskConfig
from stir_train.data.problems import SourceProblem
from stir_train.errors import DataError
from stir_train.types.rollout import Prompt

SplitName = Literal["harvest", "tune", "test"]


def cut_splits(
    problems: Sequence[SourceProblem], config: SplitsConfig
) -> dict[SplitName, list[SourceProblem]]:
    """Assign problems to splits in the order of a seeded hash of their content.

    The test split comes first, so that asking for more harvest problems never changes it. Equal
    questions are one problem; reordering the source changes nothing.

    Raises:
        DataError: If there are fewer distinct problems than the splits ask for.
    """
    distinct = {problem.problem_id: problem for problem in reversed(problems)}
    sizes: dict[SplitName, int] = {
        "test": config.num_test,
        "tune": config.num_tune,
        "harvest": config.num_harvest,
    }
    wanted = sum(sizes.values())
    if wanted > len(distinct):
        raise DataError(
            f"splits ask for {wanted} problems ({sizes}), the source has {len(distinct)} distinct "
            f"ones ({len(problems)} rows); lower splits.num_harvest, num_tune or num_test"
        )
    ordered = sorted(distinct, key=lambda i: hashlib.sha256(f"{config.seed}/{i}".encode()).digest())
    splits: dict[SplitName, list[SourceProblem]] = {}
    start = 0
    for name, size in sizes.items():
        splits[name] = [distinct[i] for i in ordered[start : start + size]]
        start += size
    return splits


def render_prompts(
    problems: Sequence[SourceProblem], config: TaskConfig, tokenizer: PreTrainedTokenizerBase
) -> list[Prompt]:
    """Render and tokenize problems.

    Raises:
        DataError: If the chat template is asked for and the tokenizer has none.
    """
    if config.chat_template and tokenizer.chat_template is None:
        raise DataError("task.chat_template is on, but this model's tokenizer has no chat template")
    return [_render(problem, config, tokenizer) for problem in problems]


def split_sha256(prompts: Sequence[Prompt]) -> str:
    """Hash of which problems a split holds."""
    return hashlib.sha256("\n".join(sorted(p.prompt_id for p in prompts)).encode()).hexdigest()


def require_disjoint(splits: Mapping[SplitName, Sequence[Prompt]]) -> None:
    """Check that no problem is in two splits.

    Raises:
        DataError: Naming the shared problems.
    """
    owner: dict[str, SplitName] = {}
    shared = []
    for name, prompts in splits.items():
        for prompt in prompts:
            other = owner.setdefault(prompt.prompt_id, name)
            if other != name:
                shared.append(f"{prompt.question!r} is in {other} and {name}")
    if shared:
        listed = "\n".join(f"  - {line}" for line in shared[:8])
        raise DataError(f"{len(shared)} problems are in two splits\n{listed}")


def _render(
    problem: SourceProblem, config: TaskConfig, tokenizer: PreTrainedTokenizerBase
) -> Prompt:
    text = config.template.replace("{question}", problem.question)
    if config.chat_template:
        messages = [{"role": "user", "content": text}]
        if config.system_prompt is not None:
            messages.insert(0, {"role": "system", "content": config.system_prompt})
        text = str(
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        )
    token_ids = tokenizer(text, add_special_tokens=not config.chat_template)["input_ids"]
    return Prompt(
        prompt_id=problem.problem_id,
        question=problem.question,
        text=text,
        token_ids=tuple(token_ids),
        answer=problem.answer,
        kind=problem.kind,
    )
