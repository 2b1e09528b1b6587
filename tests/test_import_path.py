"""Objects of the user's own, named in a configuration by import path."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from stir_train.config.import_path import is_import_path, load_object, module_sha256
from stir_train.errors import ConfigError


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory; what a test imports from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setattr(sys, "modules", sys.modules.copy())
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return tmp_path


def test_import_paths_are_told_from_everything_else_a_setting_may_hold() -> None:
    for text in ("module:name", "package.module:Name", "a.b.c:Outer.inner", "_a1:_b2"):
        assert is_import_path(text), text
    for text in (
        "numeric",
        "openai/gsm8k",
        "./file.jsonl",
        "package.module",
        "module:",
        ":name",
        "reasoning-gym:chain_sum",
        "C:\\data",
        "a:b:c",
        "1a:b",
        "a..b:c",
        "a:b c",
        "module:name\n",
    ):
        assert not is_import_path(text), text


def test_a_module_in_the_current_directory_is_found(here: Path) -> None:
    (here / "mine_one.py").write_text(
        "class Outer:\n    inner = 7\n\ndef double(x):\n    return 2 * x\n"
    )
    double = load_object("mine_one:double", kind="task.grader")
    assert callable(double)
    assert double(4) == 8
    assert load_object("mine_one:Outer.inner", kind="task.grader") == 7
    (here / "pack").mkdir()
    (here / "pack" / "part.py").write_text("value = 'deep'\n")
    assert load_object("pack.part:value", kind="task.grader") == "deep"


def test_a_module_in_the_current_directory_hides_no_installed_one(here: Path) -> None:
    (here / "colorsys.py").write_text("rgb_to_hsv = 'hidden'\n")
    assert callable(load_object("colorsys:rgb_to_hsv", kind="x"))


def test_the_code_is_part_of_an_identity(here: Path) -> None:
    (here / "mine_two.py").write_text("a = 1\n")
    before = module_sha256("mine_two:a", kind="x")
    (here / "mine_two.py").write_text("a = 2\n")
    assert module_sha256("mine_two:a", kind="x") != before
    (here / "bare").mkdir()
    with pytest.raises(ConfigError, match="bare is a folder without a file"):
        module_sha256("bare:x", kind="x")


@pytest.mark.parametrize(
    ("code", "path", "complaint"),
    [
        ("", "mine", r"'mine' is no import path; write it as package\.module:Name"),
        ("", "absent:name", r"no module absent on Python's path, and no .*absent\.py; install"),
        ("", "absent.part:name", r"no module absent on .* no .*absent/part\.py"),
        ("", "mine.part:name", r"no module mine\.part on Python's path"),
        ("value = 1", "mine:valve", r"mine\.py has no 'valve'; did you mean 'value'\?"),
        ("value = 1", "mine:zz", r"mine\.py has no 'zz'; it has value"),
        ("class A: pass", "mine:A.b", r"A has no 'b'; it has nothing"),
        ("\nimport not_there_x", "mine:a", r"mine\.py:2: the module not_there_x, which it imports"),
        ("a = 1\nb = {}['k']", "mine:a", r"mine failed .*mine\.py:2: KeyError: 'k'"),
        ("a = (", "mine:a", r"mine\.py:1: SyntaxError: '\(' was never closed"),
        ("from os import nothing_x", "mine:a", r"mine\.py:1: ImportError: cannot import name"),
    ],
)
def test_what_cannot_be_loaded_is_said_with_the_setting_and_the_file(
    here: Path, code: str, path: str, complaint: str
) -> None:
    (here / "mine.py").write_text(code + "\n")
    with pytest.raises(ConfigError, match=complaint) as caught:
        load_object(path, kind="task.grader")
    assert str(caught.value).startswith("task.grader: ")
