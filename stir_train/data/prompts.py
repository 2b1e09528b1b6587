"""Cut problems into disjoint splits by content, and render prompts as token ids."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stir_train.config.inputs import SplitName, SplitsConfig, TaskConfig
from stir_train.data.chat import render_chat, uses_chat_template
from stir_train.data.problems import SourceProblem
from stir_train.errors import DataError
from stir_train.types.rollout import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Wording:
    """What a prompt says besides its problem.

    Attributes:
        instruction: On a line of its own behind the question, inside the task's template.
        examples: Questions and the responses to them, which stand before the problem in the same message.
    """

    instruction: str = ""
    examples: tuple[tuple[str, str], ...] = ()


def cut_splits(
    problems: Sequence[SourceProblem], config: SplitsConfig
) -> dict[SplitName, list[SourceProblem]]:
    """Assign problems to splits in the order of a seeded hash of their content.

    The test split comes first, so that asking for more harvest problems never changes it. Where the
    source has problems to test with, it is cut from them, and they are in no other. Equal questions are
    one problem; reordering the source changes nothing. With ``config.stratify`` each kind has the same
    share of every split, to within one problem.

    Raises:
        DataError: If there are fewer distinct problems than the splits ask for.
    """
    official = {problem.problem_id for problem in problems if problem.is_test}
    others = [problem for problem in problems if problem.problem_id not in official]
    learned_from: dict[SplitName, int] = {"tune": config.num_tune, "harvest": config.num_harvest}
    if not official:
        return _cut(others, {"test": config.num_test, **learned_from}, config)
    tests = [problem for problem in problems if problem.is_test]
    return _cut(tests, {"test": config.num_test}, config) | _cut(others, learned_from, config)


def _cut(
    problems: Sequence[SourceProblem], sizes: dict[SplitName, int], config: SplitsConfig
) -> dict[SplitName, list[SourceProblem]]:
    distinct = {problem.problem_id: problem for problem in reversed(problems)}
    wanted = sum(sizes.values())
    if wanted > len(distinct):
        settings = " or ".join(f"splits.num_{name}" for name in sizes)
        raise DataError(
            f"splits ask for {wanted} problems ({sizes}), the source has {len(distinct)} distinct "
            f"ones ({len(problems)} rows); lower {settings}"
        )
    ordered = sorted(distinct, key=lambda i: _place(i, config.seed))
    strata: dict[str, list[SourceProblem]] = {}
    for problem_id in ordered:
        problem = distinct[problem_id]
        strata.setdefault(problem.kind if config.stratify else "", []).append(problem)
    splits: dict[SplitName, list[SourceProblem]] = {}
    for name, size in sizes.items():
        taken = []
        for kind, share in _shares(strata, size).items():
            taken += strata[kind][:share]
            strata[kind] = strata[kind][share:]
        splits[name] = sorted(taken, key=lambda p: _place(p.problem_id, config.seed))
    return splits


def describe_test_split(problems: Sequence[SourceProblem], count: int, split: str | None) -> str:
    """What the test split is: the dataset's own, whole or in part, or cut by us.

    Args:
        problems: All that the source has.
        count: How many of them are tested with.
        split: The dataset's own split that they come from, if it has one.
    """
    num_official = len({problem.problem_id for problem in problems if problem.is_test})
    if split is None or not num_official:
        return "cut by hash"
    if count == num_official:
        return f"the official split {split}, whole"
    return f"the first {count:,} by hash of the {num_official:,} of the official split {split}"


def first_problems(
    problems: Sequence[SourceProblem], count: int, *, seed: int
) -> list[SourceProblem]:
    """The first distinct problems in the order in which splits of this seed would be cut.

    Where the source has problems to test with, of them alone.

    Raises:
        DataError: If there are fewer.
    """
    offered = [problem for problem in problems if problem.is_test] or problems
    distinct = {problem.problem_id: problem for problem in reversed(offered)}
    if count > len(distinct):
        raise DataError(
            f"{count} problems are asked for, the source has {len(distinct)} distinct ones "
            f"({len(problems)} rows); ask for fewer"
        )
    return sorted(distinct.values(), key=lambda p: _place(p.problem_id, seed))[:count]


def render_prompts(
    problems: Sequence[SourceProblem], config: TaskConfig, tokenizer: PreTrainedTokenizerBase
) -> list[Prompt]:
    """Render and tokenize problems.

    Raises:
        DataError: If the chat template is asked for and the tokenizer has none, or it cannot
            render the prompts alike on every day.
    """
    prompts = [
        Prompt(
            prompt_id=problem.problem_id,
            question=problem.question,
            text="",
            token_ids=(),
            answer=problem.answer,
            kind=problem.kind,
            choices=problem.choices,
        )
        for problem in problems
    ]
    return reword(prompts, Wording(), config, tokenizer)


def reword(
    prompts: Sequence[Prompt],
    wording: Wording,
    config: TaskConfig,
    tokenizer: PreTrainedTokenizerBase,
) -> list[Prompt]:
    """Render and tokenize the same problems in other words; ids, questions and answers stay.

    Raises:
        DataError: As `render_prompts`.
    """
    use_chat = uses_chat_template(config, tokenizer)
    return [_render(prompt, wording, config, tokenizer, use_chat=use_chat) for prompt in prompts]


def encode_rendered(text: str, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Tokenize a prompt as another tool hands it over; one that begins with a special token gets no more."""
    special = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}
    is_complete = text.startswith(tuple(special))
    return tuple(tokenizer(text, add_special_tokens=not is_complete)["input_ids"])


def knows(tokenizer: PreTrainedTokenizerBase, text: str) -> bool:
    """Whether the vocabulary has every piece of a text."""
    unknown = tokenizer.unk_token_id
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return unknown is None or unknown not in ids


def spaced(marker: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """A marker as the vocabulary has it: with a space behind it where only so all of its pieces are known.

    The embedded models' vocabulary of whole words has ": " and no ":".
    """
    return (
        f"{marker} " if not knows(tokenizer, marker) and knows(tokenizer, f"{marker} ") else marker
    )


def prompts_sha256(prompts: Sequence[Prompt]) -> str:
    """Hash of what the model is fed and graded against: prompts as rendered, tokens, gold answers."""
    rows = sorted(
        json.dumps([p.prompt_id, p.text, p.token_ids, p.answer, p.choices]) for p in prompts
    )
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()


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


def require_unseen(test: Sequence[Prompt], seen: Mapping[str, Collection[str]]) -> None:
    """Check that nothing to be evaluated was made from an item of the test split.

    Args:
        test: The test split.
        seen: What was made, and the ids of the problems that went into it.

    Raises:
        DataError: Naming the artifacts and the items.
    """
    shared = [
        f"{prompt.question!r} went into {name}"
        for name, ids in seen.items()
        for prompt in test
        if prompt.prompt_id in ids
    ]
    if shared:
        listed = "\n".join(f"  - {line}" for line in shared[:8])
        raise DataError(
            f"{len(shared)} test items were used to make what is to be evaluated\n{listed}\n"
            "Make it again with these splits, or evaluate on problems it has not seen."
        )


def _place(problem_id: str, seed: int) -> bytes:
    """Where a problem stands in the seeded order."""
    return hashlib.sha256(f"{seed}/{problem_id}".encode()).digest()


def _shares(strata: Mapping[str, Sequence[SourceProblem]], size: int) -> dict[str, int]:
    """Divide ``size`` among strata in proportion to what they have left, by largest remainder."""
    total = sum(len(stratum) for stratum in strata.values())
    exact = {kind: size * len(stratum) / total for kind, stratum in strata.items()}
    shares = {kind: int(share) for kind, share in exact.items()}
    by_remainder = sorted(exact, key=lambda kind: (shares[kind] - exact[kind], kind))
    for kind in by_remainder[: size - sum(shares.values())]:
        shares[kind] += 1
    return shares


def _render(
    prompt: Prompt,
    wording: Wording,
    config: TaskConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    use_chat: bool,
) -> Prompt:
    # A template without a chat template ends as the response is to begin; a chat message has no such end.
    gap = "\n\n" if use_chat else ""
    examples = [
        f"{config.template.replace('{question}', question)}{gap}{response}\n\n"
        for question, response in wording.examples
    ]
    asked = _with_instruction(prompt.question, wording.instruction)
    text = "".join([*examples, config.template.replace("{question}", asked)])
    if use_chat:
        text = render_chat(text, config, tokenizer)
    token_ids = tokenizer(text, add_special_tokens=not use_chat)["input_ids"]
    return dataclasses.replace(prompt, text=text, token_ids=tuple(token_ids))


def _with_instruction(question: str, instruction: str) -> str:
    """The instruction on a line of its own; what white space the question ends with, ends it still."""
    if not instruction:
        return question
    stated = question.rstrip()
    return f"{stated}\n{instruction}{question[len(stated) :]}"
