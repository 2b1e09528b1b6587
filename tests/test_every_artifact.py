"""Every file of a finished run, damaged in four ways: it is refused or made again, and never read."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from stir_train.artifacts.run_dir import RunDir
from stir_train.cli.arguments import load
from stir_train.config.pipeline import STAGES
from stir_train.errors import ArtifactError
from stir_train.monitoring.console import make_console
from stir_train.runtime.attempt import read_run
from stir_train.runtime.lineage import require_lineage
from stir_train.runtime.upstream import upstream_of
from stir_train.tools.inspect import describe_path
from tests.support.small_runs import run_small, small_run
from tests.support.smoke import STAGES as MADE

pytestmark = pytest.mark.slow

WAYS = ("truncated", "flipped", "swapped", "deleted")
LEAST_TRIES = 200


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, finished: Path) -> tuple[Path, Path]:
    """Two finished runs of different settings."""
    return small_run(tmp_path_factory) / "smoke", finished / "smoke"


def _damaged(file: Path, how: str, other: Path) -> Iterator[bool]:
    """Damage a file; put it back. Whether there is a damage of this kind."""
    content = file.read_bytes()
    if how == "deleted":
        file.unlink()
    elif how == "truncated":
        file.write_bytes(content[: len(content) // 2])
    elif how == "flipped":
        middle = len(content) // 2
        file.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    elif other.is_file():
        file.write_bytes(other.read_bytes())
    yield not file.is_file() or file.read_bytes() != content
    file.write_bytes(content)


def _is_refused_by_inspect(run: Path) -> bool:
    try:
        describe_path(run, Console(file=StringIO()), deep=True)
    except ArtifactError:
        return True
    return False


def test_no_damage_of_any_file_of_a_run_is_silent(made: tuple[Path, Path]) -> None:
    run, other = made
    assert not _is_refused_by_inspect(run)
    tried: Counter[str] = Counter()
    silent = []
    with read_run(load(run, []), make_console()) as context:
        reads = {name: upstream_of(context.run_dir, context.config, name) for name in MADE}
        for name in MADE:
            files = [f for f in sorted((run / name).rglob("*")) if f.is_file()]
            for file in (f for f in files if ".checksums" not in f.parts):
                # Every stage that is made from this one must say so; of the last, a verb that reads it.
                readers = [reader for reader in MADE if name in reads[reader]] or [name]
                for how in WAYS:
                    tries = _damaged(file, how, other / file.relative_to(run))
                    if next(tries):
                        tried[how] += 1
                        if not _is_refused(context, run, name, readers):
                            silent.append(f"{file.relative_to(run)} {how}")
                    next(tries, None)
    assert not silent, "\n".join(silent)
    assert tried.total() >= LEAST_TRIES, tried
    print(f"{tried.total()} damages tried, 0 silent: {dict(tried)}")


def _is_refused(context: object, run: Path, name: str, readers: list[str]) -> bool:
    """By inspect, and by every stage that is made from it; what lost its marker is made again."""
    if not RunDir(run).stage(name).is_complete:
        return True
    for reader in readers:
        try:
            require_lineage(context, reader)  # type: ignore[arg-type]
        except ArtifactError:
            continue
        return False
    return _is_refused_by_inspect(run)


READ = {"tune": "report.json", "evaluate": "results.json"}
"""What the next stage reads of these; their largest files are for people."""


@pytest.mark.parametrize("name", [s.name for s in STAGES if s.name in MADE and s.name != "report"])
def test_the_stage_that_reads_a_damaged_file_stops_or_it_is_made_again(
    made: tuple[Path, Path], tmp_path: Path, name: str
) -> None:
    run = Path(shutil.copytree(made[0].parent, tmp_path / "runs")) / "smoke"
    following = MADE[MADE.index(name) + 1]
    shutil.rmtree(run / following)
    names = json.loads((run / name / "manifest.json").read_text())["files"]
    largest = max(names, key=lambda held: names[held]["bytes"])
    file = run / name / READ.get(name, largest)
    for how in WAYS:
        tries = _damaged(file, how, made[1] / file.relative_to(run))
        assert next(tries)
        done = run_small(run.parent, verb=following)
        assert done.returncode == 1
        assert file.name in done.stderr, (how, done.stderr)
        assert "Traceback" not in done.stderr
        next(tries, None)
    # The files are whole again: what reads them has nothing against them.
    done = run_small(run.parent, verb=following)
    assert done.returncode == 0, done.stderr
