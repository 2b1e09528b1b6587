"""Torch asks for huge pages where there are some, and where the user has not decided."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from stir_train.cli.huge_pages import SETTING, ask_for_huge_pages


@pytest.mark.parametrize(
    ("kernel", "user", "asked"),
    [
        ("always [madvise] never\n", None, "1"),
        ("[always] madvise never\n", None, "1"),
        ("always madvise [never]\n", None, None),
        (None, None, None),
        ("always [madvise] never\n", "0", "0"),
    ],
)
def test_they_are_asked_for_where_the_kernel_gives_them(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kernel: str | None,
    user: str | None,
    asked: str | None,
) -> None:
    file = tmp_path / "enabled"
    if kernel is not None:
        file.write_text(kernel)
    monkeypatch.setenv(SETTING, user or "")
    if user is None:
        monkeypatch.delenv(SETTING)
    ask_for_huge_pages(file)
    assert os.environ.get(SETTING) == asked
