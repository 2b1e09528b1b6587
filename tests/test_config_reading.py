"""Configuration files are read as written, within bounds, and refused in our words."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from stir_train.config.inputs import TaskConfig
from stir_train.config.load import load_config, parse_config
from stir_train.config.run import RunConfig
from stir_train.config.yaml_text import parse_yaml
from stir_train.errors import ConfigError

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "\n".join(
    f"{name}: &{name} [{', '.join([f'*{held}'] * 9)}]"
    for held, name in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGE_BOMB = "a: &a {k: 1}\n" + "\n".join(
    f"{name}: &{name} {{<<: [{', '.join([f'*{held}'] * 9)}]}}"
    for held, name in zip("abcdefgh", "bcdefghi", strict=True)
)


def _write(tmp_path: Path, text: str, name: str = "config.yaml") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "text",
    [
        "16:00:00",
        "2026-01-31",
        "2026-01-31T10:00:00",
        "007",
        "0x1f",
        "0o17",
        "1_000",
        "on",
        "off",
        "yes",
        "no",
        "y",
        "1e5",
        "+5",
    ],
)
def test_what_is_no_plain_number_stays_as_typed(text: str) -> None:
    assert parse_yaml(f"key: {text}", origin="").value == {"key": text}


def test_numbers_truths_and_nothing_are_what_they_look_like() -> None:
    text = "[0, -7, 1.5, .5, 2.5e-3, true, False, null, ~, '1', \"true\", !!str 3]"
    expected = [0, -7, 1.5, 0.5, 2.5e-3, True, False, None, None, "1", "true", "3"]
    found = parse_yaml(text, origin="").value
    assert found == expected
    assert [type(item) for item in found] == [type(item) for item in expected]


def test_a_name_that_looks_like_a_date_is_a_name(tmp_path: Path) -> None:
    assert load_config(RunConfig, _write(tmp_path, "name: 2026-01-31")).name == "2026-01-31"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: !!int abc", "tags such as !!int are not read"),
        ("name: !!python/object:os.system x", "line 1, column 7: tags such as"),
        ("name: x\nseed: " + "9" * 5000, "seed: expected a number of at most 18 digits, got 5000"),
        ("name: x\nseed: '" + "9" * 5000 + "'", "seed: expected a whole number"),
        ("a: " + "[" * 5000, "more than 40 levels"),
        ("- " * 5000 + "x", "more than 40 levels"),
        ("a:\n" + "\n".join(" " * i + "a:" for i in range(1, 200)), "more than 40 levels"),
        (BOMB, "more than 20000 values"),
        (MERGE_BOMB, "more than 20000 values"),
        ("a: &a [*a]", "inside of what it stands for"),
        ("a: &a {b: *a}", "inside of what it stands for"),
        ('name: x\nextends: ["a\\0b.yaml"]', "extends.0: holds a character"),
        ('name: "\\ud800"', "name: holds a character"),
        ('name: x\noutput_dir: "a\\0b"', "output_dir: holds a character"),
        ('name: "\\UFFFFFFFF"', "number out of range"),
        ("%YAML " + "9" * 5000 + ".1\n--- x", "number out of range"),
        ("name: x\x07", "cannot be read as YAML"),
        ("name: x\n--- \nname: y", "cannot be read as YAML"),
        ("a: " + "x" * 300_000, "more than 256 KiB"),
        ("? [a]\n: b\nname: x", "line 1: expected a key of plain text"),
        ("name: x\nseed: 1\nrollout: {top_p: 0.5}\nseed: 2", "seed: given twice, on lines 2 and 4"),
        ("name: x\n<<: 3", "<<: expected a section"),
        ("name: x\nmodel:\n", "model: expected a section of settings (got null)"),
        ("name: 3", "name: expected text (got 3; in quotes it is text)"),
        ("name: x\ntask: {source: 3}", "task.source: expected text or a list (got 3"),
        ("name: x\ntask: {source: []}", "task.source: "),
        ("name: x\ndistill: {rank: 9}", "distill.rank: expected 8, 16, 32 or 64 (got 9)"),
        ("name: x\ndistill: {targets: []}", "distill.targets: expected"),
        ("name: x\ndistill: {also: {a_b: {}}}", "distill.also.a_b: expected"),
        (
            "name: x\ndistill: {also: {student: {}}}",
            "student: the exported student goes by it; use another name",
        ),
        ("name: x\ndistill: {also: {b: {beta: 2}}}", "distill.also.b.beta: expected 1 or less"),
        ("name: x\nharvest: {depths: [0.5, 2]}", "harvest.depths.1: expected 1 or less (got 2)"),
        ("name: x\nevaluate: {num_bootstrap: 1}", "evaluate.num_bootstrap: expected 100 or more"),
        ("name: x\nevaluate: {variants: {y: {strenth: 1}}}", "has all of: strenth"),
        ("name: x\nseed: -1", "seed: expected 0 or more"),
        (f"name: {'x' * 5000}", "name: "),
        (
            f"name: x\ntask: {{grader: regex, answer_regex: '{'(' * 3000 + ')' * 3000}'}}",
            "answer_regex is no regular expression",
        ),
    ],
)
def test_hostile_files_are_refused_in_our_words(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(expected)) as caught:
        load_config(RunConfig, _write(tmp_path, text))
    assert "pydantic" not in str(caught.value)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize(
    "key",
    [
        "seed",
        "num_threads",
        "model.shards",
        "splits.num_test",
        "splits.seed",
        "control_points.max_points",
        "control_points.every_tokens",
        "generation.max_rows",
        "rollout.temperature",
        "rollout.top_p",
        "rollout.top_k",
        "harvest.num_positive",
        "harvest.min_saving",
        "basis.jitter",
        "validation.num_rounds",
        "value.batch_size",
        "steering.margin",
        "steering.depth",
        "tune.num_halvings",
        "evaluate.num_samples",
        "distill.rank",
        "distill.dropout",
        "train.zero_stage",
        "cluster.lease_seconds",
        "iterate.max_generations",
    ],
)
def test_true_is_no_number(key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key}: expected .*got true"):
        parse_config(RunConfig, {"name": "x"}, [f"{key}=true"], origin="x")


@pytest.mark.parametrize("key", ["harvest.depths", "tune.strengths", "validation.strengths"])
def test_true_is_no_number_in_a_list_and_a_list_that_is_needed_holds_something(key: str) -> None:
    for value, expected in (
        ("[true]", rf"1 problem\n  - {key}\.0: expected a number \(got true\)"),
        ("[]", f"{key}: expected 1 or more of them"),
    ):
        with pytest.raises(ConfigError, match=expected):
            parse_config(RunConfig, {"name": "x"}, [f"{key}={value}"], origin="x")


def test_what_is_wrong_in_files_overrides_and_values_is_one_list(tmp_path: Path) -> None:
    _write(tmp_path, "rollout: {top_p: 0.5, top_p: 0.6}\n", "base.yaml")
    path = _write(tmp_path, "extends: [base.yaml]\nname: x\nseed: 1\nseed: 2\ntune: {modes: []}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(RunConfig, path, ["rollout", "steering.strength=[", "nmae=3"])
    message = str(caught.value)
    assert "6 problems" in message
    for expected in (
        r"rollout.top_p: given twice, on lines 1 and 1 \(.*base.yaml\)",
        "seed: given twice, on lines 3 and 4",
        "override 'rollout': expected key=value",
        r"override 'steering.strength=\[': cannot be read as YAML",
        "tune.modes: expected 1 or more",
        "nmae: unknown key; did you mean 'name'",
    ):
        assert re.search(expected, message), expected


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)  # opening it would wait for a writer
    for path in (Path("/dev/zero"), Path("/dev/null"), tmp_path, pipe):
        with pytest.raises(ConfigError, match="regular file"):
            load_config(RunConfig, path)
    path = _write(tmp_path, "name: x\nextends: [/dev/zero]\n")
    with pytest.raises(ConfigError, match="/dev/zero: a configuration is a regular file"):
        load_config(RunConfig, path)
    circle = tmp_path / "circle.yaml"
    circle.symlink_to(circle)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(RunConfig, circle)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(RunConfig, tmp_path / ("x" * 5000))


def test_files_that_extend_each_other_twice_are_read_once(tmp_path: Path) -> None:
    for i in range(18):
        _write(tmp_path, f"extends: [{i + 1}.yaml, {i + 1}.yaml]\n", f"{i}.yaml")
    _write(tmp_path, "name: deep\n", "18.yaml")
    assert load_config(RunConfig, tmp_path / "0.yaml").name == "deep"
    _write(tmp_path, "extends: [19.yaml]\n", "18.yaml")
    _write(tmp_path, "extends: [20.yaml]\n", "19.yaml")
    _write(tmp_path, "name: too-deep\n", "20.yaml")
    with pytest.raises(ConfigError, match="extends at most"):
        load_config(RunConfig, tmp_path / "0.yaml")


@pytest.mark.parametrize("text", ["a #b", "it's 50% #x", "'a #b'", '"a #b"'])
def test_an_override_has_no_comments(text: str) -> None:
    config = parse_config(RunConfig, {"name": "x"}, [f"task.name={text}"], origin="x")
    quoted = text[0] in "'\""
    assert config.task.name == (text[1:-1] if quoted else text)


@pytest.mark.parametrize(
    "pattern", [r"Answer: (\d+)", r"[A-D]=([A-D])", r"#### (\d+)", r"(\d+): @"]
)
def test_a_text_that_looks_like_yaml_is_a_text_where_one_is_expected(pattern: str) -> None:
    overrides = [f"answer_regex={pattern}", "grader=regex"]
    assert parse_config(TaskConfig, {}, overrides, origin="test").answer_regex == pattern


def test_an_override_changes_one_use_of_an_alias_and_not_the_others(tmp_path: Path) -> None:
    path = _write(
        tmp_path,
        "name: x\ndistill:\n  objective: &part {beta: 0.25}\n  also: {other: *part}\n",
    )
    config = load_config(RunConfig, path, ["distill.objective.beta=0.75"])
    assert config.distill.objective.beta == 0.75
    assert config.distill.also["other"].beta == 0.25


def test_merge_keys_take_in_what_the_mapping_itself_does_not_say(tmp_path: Path) -> None:
    text = (
        "name: x\ndistill:\n  objective: &part {beta: 0.25, samples: steered, logits: 1}\n"
        "  also: {other: {<<: *part, beta: 0.5}}\n"
    )
    other = load_config(RunConfig, _write(tmp_path, text)).distill.also["other"]
    assert (other.beta, other.logits) == (0.5, 1.0)
