"""Hostile configurations by kind: every one of them must be refused in our words, at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from stir_train.config.run import RunConfig

HUGE = "9" * 5000
NESTED_ALIASES = "\n".join(
    ["a: &a [x, x, x, x, x, x, x, x, x]"]
    + [
        f"{name}: &{name} [{', '.join([f'*{held}'] * 9)}]"
        for held, name in zip("abcdefgh", "bcdefghi", strict=True)
    ]
)
TEXTS = (
    # Not YAML, or YAML that asks for more than reading.
    *("name: [", "name: {", "name: 'x", 'name: "x', "name: x: y", "\tname: x", "name:\n\t- x"),
    *("- name", "just words", "3", "true", "[]", "name: x\n---\nname: y"),
    *("name: *nowhere", "name: &a *a", "a: &a [*a]", "a: &a {b: *a}", "name: @x", "name: `x"),
    *("!!map {name: x}", "name: !!int abc", "name: !!float x", "name: !!binary x", "name: !x y"),
    *("name: !!timestamp x", "name: !!bool x", "name: !!null x", "--- !!set {name}", "a: !!omap x"),
    "name: !!python/object/apply:os.system [true]",
    "name: !!python/name:os.system x",
    "name: !<tag:yaml.org,2002:int> 1.5",
    *(f"%YAML {HUGE}.1\n---\nname: x", "%YAML 3.0\n---\nname: x"),
    # Text that is no text.
    *(
        'name: "\\0"',
        'name: "\\ud800"',
        'name: "\\UFFFFFFFF"',
        'name: "\\xq"',
        "name: x\x00",
        "\x01",
    ),
    *('name: x\noutput_dir: "a\\0b"', 'name: x\nmodel: {name: "\\0"}', '"\\0": x\nname: x'),
    # Beyond the bounds.
    *("[" * 100_000, "{" * 100_000, "- " * 5000 + "x", "? " * 5000, "a: " + "{a: " * 5000),
    *("a: " + "x" * 400_000, "\n" * 400_000, "- x\n" * 50_000, NESTED_ALIASES, "&a " * 1000),
    "a: [" + "x," * 60_000 + "]",
    "\n".join(f"k{i}: x" for i in range(25_000)),
    "a: &a {k: 1}\nb: {<<: [" + "*a, " * 30_000 + "]}",
    *(f"name: x\nseed: {HUGE}", f"name: x\nseed: -{HUGE}", f"name: x\nseed: '{HUGE}'"),
    *(f"name: x\nseed: 0x{'f' * 5000}", f"name: x\nbasis: {{jitter: {HUGE}.0}}", f"name: {HUGE}"),
    *(f"name: {'x' * 5000}", "name: x\nbasis: {jitter: 1.0e999}", "name: x\nbasis: {jitter: .nan}"),
    # Keys.
    *("name: x\nname: y", "name: x\nrollout: {top_p: 0.5, top_p: 0.5}", "name: x\n? [a]\n: b"),
    *(
        "name: x\n? {a: b}\n: c",
        "name: x\n<<: 3",
        "name: x\n<<: [3]",
        "name: x\n1: 2",
        "name: x\n~: 2",
    ),
    *("name: x\n'': 2", "name: x\nnmae: y", "Name: x", "name: x\ntrue: 2", "name: x\n__class__: y"),
    *("name: x\nrollout: {model_config: {}}", "name: x\nrollout.top_p: 0.5", "name: x\n=: 3"),
    # Names that are none.
    *("name: ../x", "name: /x", "name: ''", "name: .", "name: a b", "name: [x]", "name: {x: y}"),
    *("name: 3", "name: true", "name:", "name: 1.5", "name: ~", 'name: "x\\n"', "name: -x", "{}"),
    *("", "seed: 1", "name: é", "name: a/b", "name: x\noutput_dir: 3", "name: x\noutput_dir: [x]"),
    # Files that are none.
    *("name: x\nextends: a.yaml", "name: x\nextends: [3]", "name: x\nextends: ['']", "extends: {}"),
    *(
        "extends: [/dev/zero]",
        "extends: [/dev/null]",
        "extends: [.]",
        "extends: [/]",
        "extends: [~]",
    ),
    *('extends: ["\\0"]', "extends: [no.yaml]", f"extends: [{'x' * 5000}]", "extends: [[a.yaml]]"),
    *("extends: [config.yaml]", "extends: [./config.yaml, ./config.yaml]", "extends: true"),
    "name: x\nnum_threads: 100000",  # crashes torch
    # Values that would be tried twice.
    *("name: x\nharvest: {depths: [0.5, 0.5]}", "name: x\ntune: {modes: [value, value]}"),
    "name: x\ntune: {strengths: [1.0, 2.0, 1.0]}",
    "name: x\nvalidation: {strengths: [3, 3.0]}",
    "name: x\n<<: {seed: 1}\n<<: {seed: 2}",
    # Settings that cannot work.
    *("name: x\nharvest: {depths: [2]}", "name: x\nharvest: {depths: 1}", "name: x\nseed: -1"),
    *(
        "name: x\nsteering: {depth: 0.123}",
        "name: x\ntune: {depths: [0.123]}",
        "name: x\nseed: 1.5",
    ),
    *("name: x\nevaluate: {num_bootstrap: 1}", "name: x\nevaluate: {variants: {x: {y: 1}}}"),
    *(
        "name: x\nevaluate: {variants: {A: {}}}",
        "name: x\nevaluate: {variants: {x: {strength: true}}}",
    ),
    *("name: x\nevaluate: {variants: [x]}", "name: x\nevaluate: {outside: {x: {}}}"),
    *("name: x\ndistill: {also: {a b: {}}}", "name: x\ndistill: {also: {x: {sequence: 0}}}"),
    *(
        "name: x\ndistill: {rank: 7}",
        "name: x\ndistill: {targets: all}",
        "name: x\ntrain: {dtype: x}",
    ),
    *(
        "name: x\ntask: {template: hi}",
        "name: x\ntask: {grader: regex}",
        "name: x\ntask: {source: 3}",
    ),
    "name: x\ntask: {grader: regex, answer_regex: '('}",
    "name: x\ntask: {grader: regex, answer_regex: '(a{99999999999})'}",
    f"name: x\ntask: {{grader: regex, answer_regex: '{'(' * 3000}{')' * 3000}'}}",
    *("name: x\nmodel: {shards: 2}", "name: x\nmodel: {max_memory: {cpu: 1GiB}}"),
    *("name: x\nmodel: {max_memory: [cpu]}", "name: x\nmodel: {device: spread}"),
    *("name: x\nmodel: {device: gpu}", "name: x\nmodel: {device: 'cuda:-1'}"),
    *("name: x\nmodel: {device: meta}", "name: x\nmodel: {device: 'cpu:9'}"),
)
"""Whole files."""


def wrong_values() -> Iterator[tuple[str, str]]:
    """For every setting, values of another kind; those of another kind of number or text too."""
    yield from _wrong_values(RunConfig, "")


def _wrong_values(kind: type[BaseModel], prefix: str) -> Iterator[tuple[str, str]]:
    for name, field in kind.model_fields.items():
        key = f"{prefix}{name}"
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield key, "3"
            yield from _wrong_values(annotation, f"{key}.")
            continue
        parts = set(_parts(annotation))
        if dict not in parts:
            yield key, "{x: {y: z}}"
        if parts & {int, float} and not parts & {bool, str}:
            yield from ((key, "true"), (key, "abc"), (key, ".nan"))
        if annotation is bool:
            yield key, "3"


def _parts(annotation: Any) -> Iterator[Any]:
    origin = get_origin(annotation)
    if origin is Literal:
        yield from {type(value) for value in get_args(annotation)}
        return
    yield origin or annotation
    for part in get_args(annotation):
        yield from _parts(part)
