"""Hostile configurations: refused in our words, at once, never with a traceback or a wait."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest
import yaml
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from stir_train.config.load import dump_config, load_config
from stir_train.config.run import RunConfig
from stir_train.errors import ConfigError
from stir_train.launch.jobs import plan_jobs
from stir_train.launch.site import SiteConfig
from stir_train.launch.slurm import scripts_of
from tests.fuzz.corpus import TEXTS, wrong_values

pytestmark = pytest.mark.slow
LIMIT_SECONDS = 10.0
"""For one configuration; the largest that is read takes a second."""
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.dates()
    | st.binary(max_size=4)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=12,
)


@contextmanager
def _time_limit() -> Iterator[None]:
    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise AssertionError(f"no answer within {LIMIT_SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, LIMIT_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _read(directory: Path, text: str, overrides: Sequence[str] = ()) -> str | None:
    """What was refused; None if nothing was. Any other error is the test's."""
    path = directory / "config.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    try:
        with _time_limit():
            config = load_config(RunConfig, path, overrides)
        refusal = None
    except ConfigError as error:
        refusal = str(error)
    if refusal is not None:
        assert "pydantic" not in refusal
        assert len(refusal) < 20_000
        return refusal
    path.write_text(dump_config(config), encoding="utf-8")
    assert load_config(RunConfig, path) == config
    return None


def test_the_written_corpus_is_refused(tmp_path: Path) -> None:
    accepted = [text[:200] for text in TEXTS if _read(tmp_path, text) is None]
    assert not accepted


def test_a_value_of_the_wrong_kind_is_refused_by_its_key(tmp_path: Path) -> None:
    cases = list(wrong_values())
    assert len(cases) + len(TEXTS) >= 400
    for key, value in cases:
        refusal = _read(tmp_path, "name: x\n", [f"{key}={value}"])
        assert refusal is not None, (key, value)
        assert f"- {key}" in refusal, refusal


KEYS = sorted({key for key, _ in wrong_values()})


@seed(20)
@settings(
    max_examples=500,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(key=st.sampled_from(KEYS), value=VALUES)
def test_any_value_of_any_setting_is_read_or_refused(
    tmp_path: Path, key: str, value: object
) -> None:
    *sections, last = key.split(".")
    nested: object = {last: value}
    for section in reversed(sections):
        nested = {section: nested}
    assert isinstance(nested, dict)
    _read(tmp_path, yaml.safe_dump({"name": "x", **nested}, allow_unicode=True))


@seed(20)
@settings(
    max_examples=1000,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(text=st.text(max_size=200) | st.text("{}[]:,-?&*!|>'\"%@`#\n x<~=.0", max_size=60))
def test_any_text_is_read_or_refused(tmp_path: Path, text: str) -> None:
    _read(tmp_path, text)
    _read(tmp_path, "name: x\n", [text, f"seed={text}", f"{text}=1"])


@seed(20)
@settings(
    max_examples=500,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    values=st.fixed_dictionaries(
        {},
        optional={
            "time": SCALARS,
            "gpu_option": st.text(),
            "options": st.dictionaries(st.text(min_size=1, max_size=8), SCALARS, max_size=3),
            "environment": st.dictionaries(st.text(min_size=1, max_size=8), SCALARS, max_size=3),
            "modules": st.lists(st.text(), max_size=3),
            "command": st.text(),
        },
    ),
    folder=st.text(min_size=1, max_size=20),
)
def test_nothing_that_a_site_or_a_directory_says_becomes_a_line_of_its_own(
    tmp_path: Path, values: dict[str, object], folder: str
) -> None:
    path = tmp_path / "site.yaml"
    path.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    plain = load_config(RunConfig, Path("configs/tiny/smoke.yaml"))
    try:
        with _time_limit():
            site = load_config(SiteConfig, path)
            config = plain.model_copy(update={"output_dir": tmp_path / folder.replace("\0", "")})
            jobs = plan_jobs(config, site, ["rollout"])
            script = scripts_of(config, site, jobs)[1][1]
    except ConfigError:
        return
    expected = len(scripts_of(plain, SiteConfig(), jobs)[1][1].split("\n"))
    said = [value for value in site.options.values() if value is not False]
    more = len(said) + len(site.environment) + len(site.modules)
    assert len(script.split("\n")) == expected + more
    assert script.splitlines() == script.removesuffix("\n").split("\n")
