"""Every command, setting and snippet of the README and the documentation is one that works."""

from __future__ import annotations

import ast
import functools
import importlib
import json
import pkgutil
import re
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import click
import pytest
import yaml

from stir_train.cli import app
from stir_train.config.describe import describe_settings
from stir_train.config.inputs import TaskConfig
from stir_train.config.load import load_config, parse_config
from stir_train.config.run import RunConfig
from stir_train.launch.site import SiteConfig
from stir_train.models.lora import known_deprecations
from stir_train.tools.tiny import write_problems
from tests.support.commands import command_of, stir_train
from tests.support.documents import PAGES, ROOT, SHELL, Block, Command, commands_of, read_blocks
from tests.support.measures import measured_briefly
from tests.support.smoke import SMOKE

BLOCKS = list(read_blocks())
COMMANDS = [c for block in BLOCKS if block.language in SHELL for c in commands_of(block)]
STIR_TRAIN = [c for c in COMMANDS if c.stir_train is not None]
OWN_TEST = "docs/extending.md"
"""Its files and settings belong together; tests/test_extending.py runs them."""
SNIPPETS = [b for b in BLOCKS if b.language == "python" and b.page != OWN_TEST]
SETTINGS = [b for b in BLOCKS if b.language == "yaml" and b.page != OWN_TEST]
CHEAP_VERBS = {"settings", "doctor", "data", "grade"}
CHEAP_OPTIONS = {"--help", "-h", "--version", "--dry-run"}
PLACEHOLDER = "MODEL-"
"""What `init MODEL TASK` writes, MODEL-TASK.yaml, is a reader's: only its settings are checked."""
PROGRAMS = {"make", "python", "python3", "pip", "cd", "git", "source"}
RESPONSES = [
    {"response": "result: 4", "answer": "4"},
    {"response": "The answer is 5.", "answer": "4"},
]


def _is_cheap(command: Command) -> bool:
    words = command.stir_train or ()
    return bool(words) and (words[0] in CHEAP_VERBS or bool(CHEAP_OPTIONS & set(words)))


def _named(block: Block) -> str:
    return f"{block.page}:{block.line}"


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like a clone, whose demo is as small as the smoke run, with the files pages name."""
    return _make_workplace(tmp_path, monkeypatch)


@functools.cache
def _problems() -> str:
    """What `tiny problems` writes, of which there are enough for the smoke run."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "problems.jsonl")
        write_problems("addition", 400, 1, path)
        return path.read_text()


def _make_workplace(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (folder / "configs").mkdir()
    for entry in (ROOT / "configs").iterdir():
        if entry.name != "demo.yaml":
            (folder / "configs" / entry.name).symlink_to(entry)
    small = {"extends": [str(SMOKE)], "name": "demo"}
    (folder / "configs" / "demo.yaml").write_text(yaml.safe_dump(small))
    (folder / "slurm").symlink_to(ROOT / "slurm")
    lines = "".join(json.dumps(line) + "\n" for line in RESPONSES)
    (folder / "responses.jsonl").write_text(lines)
    (folder / "problems.jsonl").write_text(_problems())
    measured_briefly(monkeypatch)
    monkeypatch.chdir(folder)
    return folder


def test_there_are_commands_and_every_shell_block_says_that_it_is_one() -> None:
    assert len(STIR_TRAIN) > 20
    programs = re.compile(r"(?m)^(\$ )?(stir-train|make|pip|python|torchrun|srun) ")
    unlabelled = [_named(b) for b in BLOCKS if not b.language and programs.search(b.text)]
    assert not unlabelled, "label these blocks `sh` or `console`"


def _parse(arguments: tuple[str, ...]) -> dict[str, object]:
    """The parameters that the command line's own parser reads; nothing is invoked."""
    context = command_of(app).make_context("stir-train", list(arguments))
    while True:
        rest = [*context._protected_args, *context.args]
        name, command, rest = context.command.resolve_command(context, rest)
        assert command is not None
        context = command.make_context(name, rest, parent=context)
        if not hasattr(command, "resolve_command"):
            return context.params


@pytest.mark.parametrize("command", STIR_TRAIN, ids=str)
def test_every_command_parses_and_its_configuration_is_valid(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    arguments = command.stir_train
    assert arguments is not None
    params: dict[str, object] = {}
    with suppress(click.exceptions.Exit, SystemExit):  # --help and --version end here
        params = _parse(arguments)
    overrides = params.get("overrides") or ()
    assert isinstance(overrides, list | tuple)
    for name, value in params.items():
        if not isinstance(value, Path) or value.suffix != ".yaml":
            continue
        if value.name.startswith(PLACEHOLDER):
            assert command.block.not_run, str(command)
            load_config(RunConfig, SMOKE, list(overrides))
        elif name == "site":
            load_config(SiteConfig, value)
        elif value.exists() or "runs" not in value.parts:
            load_config(RunConfig, value, list(overrides))
    if arguments[0] == "grade":
        parse_config(TaskConfig, {"name": params["task"]}, list(overrides), origin="grade")


@pytest.mark.parametrize("arguments", [("runn", "x.yaml"), ("run", "x.yaml", "--fast")], ids=str)
def test_a_verb_or_an_option_that_does_not_exist_is_found(arguments: tuple[str, ...]) -> None:
    with pytest.raises(Exception, match=r"No such (command|option)"):
        _parse(arguments)


def test_other_programs_exist_or_say_why_they_are_not_run() -> None:
    targets = set(re.findall(r"(?m)^([\w-]+):", (ROOT / "Makefile").read_text()))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = set(project["optional-dependencies"])
    for command in COMMANDS:
        words = command.words
        if command.stir_train is not None:
            continue
        assert command.block.not_run or words[0] in PROGRAMS, str(command)
        if words[0] == "make":
            wanted = {word for word in words[1:] if "=" not in word}
            assert wanted <= targets, str(command)
        if words[0].startswith("python") and words[1].endswith(".py"):
            assert (ROOT / words[1]).is_file(), str(command)
        for extra in re.findall(r"\[([\w,-]+)\]", " ".join(words) if "install" in words else ""):
            assert set(extra.split(",")) <= extras, str(command)


def test_nobody_is_told_to_install_from_an_index_that_has_no_such_package() -> None:
    told = re.compile(r"pip\s+install[\s\"']*(?:--?\S+\s+)*[\"']*stir[-_]train")
    for spelt in (
        "pip install 'stir-train[vllm]'",
        "pip install\nstir_train",
        "pip install -U stir-train",
    ):
        assert told.search(spelt)
    pages = [*PAGES, *sorted((ROOT / "stir_train").rglob("*.py"))]
    assert not [str(page) for page in pages if told.search(page.read_text())]


@pytest.mark.parametrize("command", [c for c in STIR_TRAIN if _is_cheap(c)], ids=str)
def test_cheap_commands_run(command: Command, workplace: Path) -> None:
    if command.block.not_run:
        pytest.skip(command.block.not_run)
    done = stir_train(*_expanded(command, workplace))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("block", SETTINGS, ids=_named)
def test_settings_in_pages_are_valid(block: Block, tmp_path: Path) -> None:
    values = {"extends": [str(ROOT / "configs" / "demo.yaml")], **yaml.safe_load(block.text)}
    (tmp_path / "page.yaml").write_text(yaml.safe_dump(values))
    load_config(RunConfig, tmp_path / "page.yaml")


@pytest.mark.parametrize("block", SNIPPETS, ids=_named)
def test_snippets_import_what_exists(block: Block) -> None:
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and node.module:
            if block.not_run and not node.module.startswith("stir_train"):
                continue  # needs what is not installed here
            module = importlib.import_module(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name), f"{node.module}.{alias.name}"


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A workplace in which the demo has been run."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        folder = _make_workplace(tmp_path_factory.mktemp("clone"), monkeypatch)
        done = stir_train("run", "configs/demo.yaml")
        assert done.returncode == 0, done.stderr
        yield folder


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in STIR_TRAIN if not _is_cheap(c)], ids=str)
def test_commands_on_a_finished_run(command: Command, clone: Path) -> None:
    if command.block.not_run:
        pytest.skip(command.block.not_run)
    done = stir_train(*_expanded(command, clone))
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("block", SNIPPETS, ids=_named)
def test_snippets_run_beside_a_finished_run(block: Block, clone: Path) -> None:
    if block.not_run:
        pytest.skip(block.not_run)
    with known_deprecations():
        exec(compile(block.text, _named(block), "exec"), {"__name__": "snippet"})


def _expanded(command: Command, folder: Path) -> list[str]:
    """Arguments with file patterns filled in, as a shell does."""
    arguments = command.stir_train
    assert arguments is not None
    return [
        word
        for argument in arguments
        for word in (
            sorted(str(p.relative_to(folder)) for p in folder.glob(argument))
            if argument.endswith("/*")
            else [argument]
        )
    ]


FIRST_HOUR = ("README.md", "docs/quickstart.md")
TERMINAL_COLUMNS = 80
PATTERN = re.compile(r"[\[\]?*]")


def test_what_is_typed_and_shown_in_the_first_hour_fits_a_terminal() -> None:
    shown = [b for b in BLOCKS if b.page in FIRST_HOUR]
    assert len(shown) > 15
    lines = [(_named(block), line) for block in shown for line in block.text.splitlines()]
    assert [(place, line) for place, line in lines if len(line) > TERMINAL_COLUMNS] == []


def test_no_shell_takes_a_setting_for_a_pattern() -> None:
    """Bash passes on a pattern that matches no file; zsh, the shell of a Mac, refuses the command."""
    shell_blocks = [block for block in BLOCKS if block.language in SHELL]
    lines = [(_named(block), line) for block in shell_blocks for line in block.text.splitlines()]
    unquoted = [
        (place, line)
        for place, line in lines
        if PATTERN.search(re.sub(r"'[^']*'|\"[^\"]*\"|#.*", "", line))
    ]
    assert unquoted == []


def test_dotted_names_in_pages_are_settings_or_modules() -> None:
    keys = {row.key for row in describe_settings()}
    sections = {key.partition(".")[0] for key in keys if "." in key}
    packages = {path.parent.name for path in (ROOT / "stir_train").glob("*/__init__.py")}
    files = (".py", ".yaml", ".json", ".jsonl", ".html", ".parquet", ".safetensors")
    for page in PAGES:
        for name in re.findall(r"`([a-z_]+(?:\.\w+)+)(?:[:=][^`]*)?`", page.read_text()):
            if name.partition(".")[0] not in sections | packages or name.endswith(files):
                continue
            is_setting = any(f"{key}.".startswith(f"{name}.") for key in keys)
            assert is_setting or _resolves(f"stir_train.{name}"), f"{page.name}: {name}"


def _resolves(name: str) -> bool:
    """Whether it is a module, or something in one, or something of a class in one."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        with suppress(ModuleNotFoundError):
            found = importlib.import_module(".".join(parts[:cut]))
            for part in parts[cut:]:
                found = getattr(found, part, None)
            return found is not None
    return False


def test_the_api_page_names_what_is_defined_where_it_says() -> None:
    page = (ROOT / "docs" / "reference" / "api.md").read_text()
    _, *entries = re.split(r"(?m)^::: ", page)
    members_of = {
        entry.split()[0]: re.findall(r"\w+", "".join(re.findall(r"members: \[(.*)\]", entry)))
        for entry in entries
    }
    assert len(members_of) > 10
    assert sum(map(len, members_of.values())) > 20
    for path, members in members_of.items():
        found = pkgutil.resolve_name(path)
        for member in members:
            assert getattr(found, member).__module__ == path, f"{path}.{member}"
