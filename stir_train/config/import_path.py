"""Find an object of the user's own by its import path, as ``package.module:Name``.

Naming such a path in a configuration runs the module's code, with the user's own rights: it is as
trusted as the configuration that names it. Modules are looked for on Python's path first and then
in the current directory, so a file beside the configuration works when the command starts there.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import re
import sys
import traceback
from pathlib import Path
from types import ModuleType

from stir_train.errors import ConfigError

_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
_IMPORT_PATH = re.compile(rf"({_NAME}(?:\.{_NAME})*):({_NAME}(?:\.{_NAME})*)")


def is_import_path(text: str) -> bool:
    """Whether a setting is written as ``package.module:Name``; nothing is imported."""
    return _IMPORT_PATH.fullmatch(text) is not None


def load_object(path: str, *, kind: str) -> object:
    """Import the object at ``package.module:Name`` (``Name`` may be dotted).

    Args:
        path: The import path.
        kind: The setting that names it, for errors (``task.grader``).

    Raises:
        ConfigError: If the path is malformed, the module is not found or fails while it is
            imported, or it has no such name; says which file was tried.
    """
    module_name, names = _split(path, kind)
    found: object = _import(module_name, kind)
    for name in names.split("."):
        if not hasattr(found, name):
            raise ConfigError(f"{kind}: {path!r}: {_lacks(found, name)}")
        found = getattr(found, name)
    return found


def module_sha256(path: str, *, kind: str) -> str:
    """SHA-256 of the file of the module that an import path names; part of what a result is made by.

    What that module imports in turn is not covered.

    Raises:
        ConfigError: As `load_object`; or if the module has no file of its own.
    """
    module_name, _ = _split(path, kind)
    file = _import(module_name, kind).__file__
    if file is None:
        raise ConfigError(f"{kind}: {module_name} is a folder without a file; name a module in it")
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


def _split(path: str, kind: str) -> tuple[str, str]:
    match = _IMPORT_PATH.fullmatch(path)
    if match is None:
        raise ConfigError(f"{kind}: {path!r} is no import path; write it as package.module:Name")
    return match[1], match[2]


def _import(name: str, kind: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # last, so that a file here never hides an installed module
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except Exception as error:  # code that is not ours raises what it likes
        raise ConfigError(f"{kind}: {_why_not(name, error, here)}") from error


def _why_not(name: str, error: Exception, here: str) -> str:
    """Say whether the module is missing, or which line of it failed."""
    if isinstance(error, ModuleNotFoundError) and error.name is not None:
        if f"{name}.".startswith(f"{error.name}."):
            tried = Path(here, *name.split(".")).with_suffix(".py")
            return (
                f"no module {error.name} on Python's path, and no {tried}; install its package, set "
                "PYTHONPATH to the folder that holds it, or start the command in that folder"
            )
        problem = f"the module {error.name}, which it imports, is not installed"
    else:
        problem = f"{type(error).__name__}: {error}"
    return f"{name} failed while it was imported, at {_where(error)}: {problem}"


def _where(error: Exception) -> str:
    """File and line of the last frame that is not Python's own import machinery."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "importlib" not in f.filename]
    return f"{frames[-1].filename}:{frames[-1].lineno}"


def _lacks(holder: object, name: str) -> str:
    offered = [n for n in dir(holder) if not n.startswith("_")]
    near = difflib.get_close_matches(name, offered, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(offered) or 'nothing'}"
    place = getattr(holder, "__file__", None) or getattr(holder, "__name__", repr(holder))
    return f"{place} has no {name!r}; {hint}"
