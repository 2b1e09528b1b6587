"""What `stir-train init` finds out about a task: where it is, how it is graded, how many problems."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from stir_train.config.commented import Decision
from stir_train.config.import_path import is_import_path
from stir_train.config.inputs import TaskConfig
from stir_train.config.load import parse_config
from stir_train.config.run import RunConfig
from stir_train.config.tasks import (
    KNOWN_TASKS,
    NUM_PROBLEMS,
    REASONING_GYM,
    TEMPLATES,
    known_settings,
)
from stir_train.config.yaml_text import parse_yaml
from stir_train.data.sources import FILE_FORMATS, source_rows
from stir_train.errors import ConfigError, DataError
from stir_train.runtime.problems import read_problems
from stir_train.tasks.families import FAMILIES

QUESTION_COLUMNS = ("question", "problem", "prompt", "input", "instruction")
CONTEXT_COLUMNS = ("body", "passage", "context")
"""What stands before the question in a column of its own, and without which it cannot be answered."""
ANSWER_COLUMNS = ("answer", "solution", "target", "output", "label")
SPLIT_NAMES = frozenset(("train", "training", "test", "validation", "dev", "data"))
"""File names that say nothing of a task."""
GUESSED_GRADERS = ("numeric", "boolean", "exact")
"""Of a file of one's own, strictest first: the first that can read every gold answer."""


@dataclass(frozen=True)
class TaskFacts:
    """A task as it was found.

    Attributes:
        label: Its name, short.
        config: Its settings.
        decisions: Of section `task`.
        num_problems: Distinct ones to learn from, and to test with too unless ``num_test`` are; None if
            that is not known here.
        num_test: Of the official test split; 0 without one.
    """

    label: str
    config: TaskConfig
    decisions: tuple[Decision, ...]
    num_problems: int | None
    num_test: int = 0

    @property
    def is_embedded(self) -> bool:
        """Whether it is a family that comes with the package."""
        return self.config.source is None


def read_task(word: str, *, source: str | None, parameters: str | None) -> TaskFacts:
    """Find out what a word on the command line stands for, and read its problems where they are at hand.

    Args:
        word: An embedded family, a public task, ``reasoning-gym:NAME``, a loader's import path, or a file.
        source: Of a public task, a copy at hand.
        parameters: Of a ``reasoning-gym:NAME``, a YAML mapping.

    Raises:
        ConfigError: If it is none of these, or does not take what is given beside it.
        DataError: If its problems cannot be read.
    """
    if word in FAMILIES:
        found = [Decision("task.name", word, "A family of problems that comes with the package.")]
    elif known_settings(word):
        found = _known(word)
        if source is not None:
            found.append(Decision("task.source", source, "The copy that you named."))
    elif is_import_path(word):
        found = [Decision("task.name", word, "Your own function makes the problems.")]
    elif Path(word).exists() or Path(word).suffix.lower() in FILE_FORMATS:
        found = list(_file(word))
    else:
        raise _unknown(word)
    if source is not None and word not in KNOWN_TASKS:
        raise ConfigError(f"--source: {word} is no public task that may have a copy at hand")
    if parameters is not None:
        found.append(_parameters(word, parameters))
    values = {decision.key.removeprefix("task."): decision.value for decision in found}
    config = parse_config(TaskConfig, values, [], origin=f"TASK {word}")
    label = _label(Path(word)) if Path(word).exists() else word.removeprefix(REASONING_GYM)
    return TaskFacts(label, config, tuple(found), *_count(config))


def _known(word: str) -> list[Decision]:
    grader = known_settings(word)["grader"]
    source = known_settings(word)["source"]
    where = "reasoning-gym makes its problems" if word.startswith(REASONING_GYM) else source
    reason = f"A known task ({where}): columns, prompt and grader ({grader}) come with the name."
    return [Decision("task.name", word, reason)]


def _parameters(word: str, text: str) -> Decision:
    if not word.startswith(REASONING_GYM):
        raise ConfigError(f"--parameters: {word} is no {REASONING_GYM}NAME, which alone has some")
    read = parse_yaml(text, origin="--parameters")
    if read.problems or not isinstance(read.value, dict):
        told = "; ".join(f"{key}: {problem}" for key, problem in read.problems) or repr(text)
        raise ConfigError(f"--parameters: expected a YAML mapping, as {{max_terms: 5}}; got {told}")
    reason = (
        "As you asked; the others are the generator's. Problem i is drawn with seed + i: for other problems, move the "
        "seed by `size` or more."
    )
    return Decision("task.parameters", read.value, reason)


def _file(word: str) -> Iterator[Decision]:
    """Columns by their names in the first row, and the strictest grader that reads every gold answer."""
    path = Path(word)
    name = _label(path)
    yield Decision("task.name", name, "A label.")
    tests = _test_files(path)
    if path.is_dir():
        yield Decision("task.source", word, "Your folder.")
    elif tests and path.stem.startswith("train"):
        reason = f"Your file. {tests[0].name} beside it is not read: name the folder to be tested with it."
        yield Decision("task.source", word, reason)
    else:
        yield Decision("task.source", word, "Your file.")
    if path.is_dir() and tests and "test_split" not in known_settings(name):
        reason = f"{tests[0].name} is tested with, and nothing is learned from it."
        yield Decision("task.test_split", "test", reason)
    base = TaskConfig(name=name, source=word)
    first = next(iter(source_rows(base, word)), None)
    if first is None or first.error:
        raise DataError(f"TASK: {word}: {first.error if first else 'holds no rows'}")
    question = _column(first.values, QUESTION_COLUMNS, "a question", word)
    contexts = [column for column in first.values if column.casefold() in CONTEXT_COLUMNS]
    asked = "+".join([*contexts[:1], question])
    answer = _column(first.values, ANSWER_COLUMNS, "an answer", word)
    reason = "The column of that name in your file."
    if contexts:
        reason = (
            f"The question, after {contexts[0]}, which it is about; take that out if it is not."
        )
    yield Decision("task.question_fields", [asked], reason)
    yield Decision("task.answer_fields", [answer], "The column of that name in your file.")
    fields = {"question_fields": (asked,), "answer_fields": (answer,)}
    grader = _strictest_grader(base.model_copy(update=fields))
    yield Decision(
        "task.grader",
        grader,
        f"Every gold answer can be read as {grader} asks, and no stricter grader reads them all.",
    )
    yield Decision(
        "task.template", TEMPLATES[grader], "Asks for the answer as the grader reads it."
    )


def _label(path: Path) -> str:
    """A file's or folder's own name; of a file that is called as a split, after its folder's."""
    stem = path.stem
    folder = path.resolve().parent.name
    return f"{folder}-{stem}" if stem.casefold() in SPLIT_NAMES and folder else stem


def _test_files(path: Path) -> list[Path]:
    """Files in a folder, or beside a file, that are called as a test split."""
    folder = path if path.is_dir() else path.parent
    return [file for file in sorted(folder.glob("test*")) if file.suffix.lower() in FILE_FORMATS]


def _strictest_grader(config: TaskConfig) -> str:
    for grader in GUESSED_GRADERS[:-1]:
        try:
            _count(config.model_copy(update={"grader": grader}))
        except DataError:
            continue
        return grader
    return GUESSED_GRADERS[-1]


def _column(columns: Iterable[str], known: Sequence[str], what: str, word: str) -> str:
    held = {column.casefold(): column for column in columns}
    for name in known:
        if name in held:
            return held[name]
    raise ConfigError(
        f"TASK: {word} has no column that is called as {what} usually is ({', '.join(known)}); its "
        f"columns: {', '.join(held.values())}. Rename one"
    )


def _count(config: TaskConfig) -> tuple[int | None, int]:
    """Distinct problems of a source that is at hand, and of its test split; or as published."""
    is_far = any(
        not source.startswith(REASONING_GYM)
        and not is_import_path(source)
        and not source.startswith((".", "/"))
        and not source.lower().endswith(FILE_FORMATS)
        and not Path(source).exists()
        for source in config.sources
    )
    if is_far:
        return NUM_PROBLEMS.get(config.name, (None, 0))
    problems = read_problems(RunConfig(name="init", task=config))
    tests = {problem.problem_id for problem in problems if problem.is_test}
    return len({problem.problem_id for problem in problems} - tests), len(tests)


def _unknown(word: str) -> ConfigError:
    names = [*FAMILIES, *KNOWN_TASKS]
    near = difflib.get_close_matches(word, names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return ConfigError(
        f"TASK: no task or file {word!r}; {hint}Known: {', '.join(names)}; {REASONING_GYM}NAME; or a "
        f"file of yours ({', '.join(FILE_FORMATS)})"
    )
