"""A function named on the command line."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


def load_function(option: str, text: str) -> Callable[..., Any]:
    """The function that `text` names: "package.module:function", or "path/to/file.py:function".

    A module is looked for in the current folder too, a file's imports beside the file.

    Args:
        option: what errors call it.
        text: the name.

    Raises:
        ValueError: no such file, module or function, or one that cannot be imported.
    """
    where, colon, name = text.rpartition(":")
    if not colon or not where or not name:
        raise ValueError(f"{option} {text}: expected package.module:function or file.py:function")
    module = _load_file(option, Path(where)) if where.endswith(".py") else _load_module(option, where)
    function = getattr(module, name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ValueError(f"{option} {text}: {where} has no function {name!r}; it has {', '.join(known) or 'none'}")
    return function  # type: ignore[no-any-return]


def _load_file(option: str, path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"_named_on_the_command_line_{path.stem}", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise ValueError(f"{option} {path}: no such file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # dataclasses look their module up
    with _importing(f"{option} {path}", path.resolve().parent):
        spec.loader.exec_module(module)
    return module


def _load_module(option: str, name: str) -> Any:
    with _importing(f"{option} {name}", Path.cwd()):
        return importlib.import_module(name)


@contextlib.contextmanager
def _importing(what: str, folder: Path) -> Iterator[None]:
    """With `folder` in front of the import path; whatever goes wrong is an error that names `what`."""
    sys.path.insert(0, str(folder))
    try:
        yield
    except Exception as error:
        raise ValueError(f"{what} cannot be imported: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(folder))
