"""Checks the types and shapes in signatures of the package while the tests run: jaxtyping's checks, made by beartype.

jaxtyping's own import hook compiles three functions for every one that it decorates, whether it is called or not, and binds
the arguments of every call. That was half of the tests' time. Here a function's check is made at its first call, and a function that is
called often is checked at its first calls and at every tenth after them.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, ModuleType
from typing import Any

NUM_FIRST, EVERY = 100, 10
"""Calls of a function that are all checked, and of how many later ones one is."""
NAME = "__type_checks__"


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, its arguments and what it returns checked against its annotations.

    Raises:
        jaxtyping.TypeCheckError: From its calls, where something does not fit.
    """
    num_calls = 0

    @functools.cache
    def strict() -> Callable[..., Any]:
        from beartype import beartype
        from jaxtyping import jaxtyped

        return jaxtyped(function, typechecker=beartype)

    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        nonlocal num_calls
        num_calls += 1
        if num_calls > NUM_FIRST and num_calls % EVERY:
            return function(*arguments, **named)
        return strict()(*arguments, **named)

    return call


def checked_fields(kind: type) -> type:
    """The class, what a dataclass of it is made of checked."""
    if dataclasses.is_dataclass(kind):
        kind.__init__ = checked(kind.__init__)  # type: ignore[misc]  # the one that dataclass wrote
    return kind


class _Decorated(SourceFileLoader):
    """Decorates the functions, methods and dataclasses of a module; compiled anew, since Python's cache holds it plain."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        tree = ast.parse(self.get_data(path), path)
        _decorate(tree.body)
        return compile(ast.fix_missing_locations(tree), path, "exec", dont_inherit=True)

    def exec_module(self, module: ModuleType) -> None:
        vars(module)[NAME] = sys.modules[__name__]
        super().exec_module(module)


def _decorate(body: Sequence[ast.stmt]) -> None:
    for node in body:
        if isinstance(node, ast.FunctionDef):
            node.decorator_list.append(_of(NAME, "checked", node))  # innermost
        elif isinstance(node, ast.ClassDef):
            _decorate(node.body)
            node.decorator_list.insert(0, _of(NAME, "checked_fields", node))  # outermost


def _of(module: str, name: str, node: ast.FunctionDef | ast.ClassDef) -> ast.expr:
    """``module.name``, said to stand in the node's first line, so that tracebacks show the source."""
    return ast.copy_location(ast.Attribute(ast.Name(module, ast.Load()), name, ast.Load()), node)


class _Finder(MetaPathFinder):
    def __init__(self, packages: Sequence[str]) -> None:
        self._packages = tuple(packages)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module's own, with another loader, if it lies in one of the packages."""
        if not any(fullname == name or fullname.startswith(f"{name}.") for name in self._packages):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Decorated(spec.loader.name, spec.loader.path)
        return spec


def check_types_of(*packages: str) -> None:
    """Check what is imported of the packages from now on.

    Raises:
        RuntimeError: If a part of them has been imported before, and so would go unchecked.
    """
    early = [name for name in sys.modules if name.startswith(packages)]
    if early:
        raise RuntimeError(f"imported before their types could be checked: {', '.join(early)}")
    sys.meta_path.insert(0, _Finder(packages))
