"""A pass that no package registers, named as ``module:Class`` in a pipeline."""

from __future__ import annotations

import difflib
import importlib
import os
import pkgutil
import sys
import traceback
from collections.abc import Iterable
from typing import Any, TypeGuard

from fxexport.errors import InputError, PassError
from fxexport.rewrite.base import Pass


def import_pass(text: str) -> type[Pass] | Pass:
    """The Pass class, or the Pass already made, that ``package.module:Name`` names.

    The current directory is searched first, for the time of the import only. Raises InputError where there is no such
    module or name, or it is no pass; PassError where the module fails on import, with the line that failed.
    """
    module_name, _, path = text.partition(":")
    if not all(map(str.isidentifier, (*module_name.split("."), *path.split(".")))) or module_name.endswith(".py"):
        raise InputError(f"{text!r} does not name a pass; write package.module:Class, the module without .py")
    directory = os.getcwd()
    sys.path.insert(0, directory)
    try:
        found = module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise _import_error(module_name, text, error) from error
    finally:
        if directory in sys.path:  # the module may have put the path in order itself
            sys.path.remove(directory)
    here = [name for name, value in vars(module).items() if isinstance(value, Pass) or is_pass_class(value)]
    for part in path.split("."):
        if not hasattr(found, part):
            where = getattr(module, "__file__", None) or module_name
            raise InputError(f"there is no {path!r} in {where}; {suggestion(path, here, 'passes there')}")
        found = getattr(found, part)
    if isinstance(found, Pass) or is_pass_class(found):
        return found
    there = ", ".join(here) or "none"
    raise InputError(f"{text!r} is {found!r}, which is not a Pass class with a name; passes there: {there}")


def is_pass_class(value: Any) -> TypeGuard[type[Pass]]:
    """Whether ``value`` is a class that can be made into a pass: a subclass of Pass that has a name."""
    return isinstance(value, type) and issubclass(value, Pass) and isinstance(getattr(value, "name", None), str)


def suggestion(name: str, known: Iterable[str], words: str) -> str:
    """``did you mean fold-batchnorm?``, or everything that is ``known`` after ``words``."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return f"did you mean {', '.join(close)}?" if close else f"{words}: {', '.join(names) or 'none'}"


def error_and_place(error: BaseException) -> str:
    """What a module raised on import, and the line of it: ``RuntimeError: no GPU (/src/plugin.py:12)``."""
    own = os.path.dirname(__file__)
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [f for f in frames if "importlib" not in f.filename and os.path.dirname(f.filename) != own]
    place = f" ({theirs[-1].filename}:{theirs[-1].lineno})" if theirs else ""
    return f"{type(error).__name__}: {error}{place}"


def _import_error(name: str, text: str, error: BaseException) -> InputError | PassError:
    missing = (error.name or "") if isinstance(error, ModuleNotFoundError) else ""
    if not (missing and f"{name}.".startswith(f"{missing}.")):  # the module is there, it fails
        return PassError(f"cannot import {name} for the pass {text!r}: {error_and_place(error)}")
    package = sys.modules.get(missing.rpartition(".")[0])
    beside = [module.name for module in pkgutil.iter_modules(getattr(package, "__path__", None))]
    close = difflib.get_close_matches(missing.rpartition(".")[2], beside, n=3)
    looked = f"looked in {os.getcwd()} and on Python's path"
    hint = f"did you mean {', '.join(close)}?" if close else looked
    return InputError(f"there is no module {missing!r}; {hint}")
