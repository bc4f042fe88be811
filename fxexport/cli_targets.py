"""What words on the command line stand for: ``package.module:factory`` a model, ``x:batch,_`` its axes."""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import pkgutil
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from torch import nn
from torch.export import Dim, ExportedProgram

from fxexport.capture.private_copy import seed_everything
from fxexport.errors import InputError

_FORM = "write package.module:name, where name is a model or a function that returns one"


@dataclass(frozen=True)
class Target:
    """What a factory gave: a model, and the example inputs and keyword arguments where it gave them."""

    model: nn.Module | ExportedProgram
    example_inputs: Any = None
    kwargs: Mapping[str, Any] | None = None


def load_target(text: str, *, seed: int = 0) -> Target:
    """The model that ``text`` names, made with the random generators at ``seed``.

    The name may be an nn.Module, its class, or a factory that returns ``model``, ``(model, example_inputs)``
    or ``(model, args, kwargs)``. Modules are looked for in the current directory first.

    Raises InputError when the name leads to no model. What the user's own code raises is passed on, with a
    note that says where.
    """
    module_name, colon, attribute = text.partition(":")
    if module_name.endswith(".py") or "/" in module_name:
        raise InputError(f"{text!r} is a file; {_FORM}. The current directory is searched first")
    if not (colon and all(module_name.split(".")) and all(attribute.split("."))):
        raise InputError(f"{text!r} does not name a model; {_FORM}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    seed_everything(seed)
    module = _import(module_name)
    found = _lookup(module, attribute)
    if not isinstance(found, nn.Module | ExportedProgram):
        _check_callable(found, text)
        seed_everything(seed)
        with _user_code(f"in the factory {text}"):
            found = found()
    return _target(found, text)


def load_driver(text: str) -> Callable[..., Any]:
    """The function that ``text`` names, ``package.module:function``, to run a model the way it is used.

    Raises InputError when the name leads to nothing that can be called.
    """
    module_name, colon, attribute = text.partition(":")
    if not (colon and all(module_name.split(".")) and all(attribute.split("."))):
        raise InputError(f"--driver {text!r} does not name a function; write package.module:function")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    found = _lookup(_import(module_name), attribute)
    if not callable(found):
        raise InputError(f"--driver {text} is a {type(found).__name__}, not a function")
    return found  # type: ignore[no-any-return]


@contextmanager
def _user_code(place: str) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except SystemExit as error:
        raise InputError(f"sys.exit({error.code!r}) was called {place}; guard it with __name__") from error
    except Exception as error:
        error.add_note(f"fxexport: this was raised {place}")
        raise


# ---------------------------------------------------------------- finding the name


def _import(name: str) -> ModuleType:
    with _user_code(f"on importing {name}"):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            missing = error.name or ""
            if name != missing and not name.startswith(f"{missing}."):
                raise  # the module is there, something it imports is not
            close = difflib.get_close_matches(missing.rpartition(".")[2], _neighbours(missing), n=3)
            looked = f"looked in {os.getcwd()} and on Python's path"
            hint = f"did you mean {', '.join(close)}?" if close else looked
            raise InputError(f"there is no module {missing!r} ({error}); {hint}") from error


def _neighbours(name: str) -> list[str]:
    """The modules beside ``name``: in its package, or on the path."""
    parent = sys.modules.get(name.rpartition(".")[0])
    return [module.name for module in pkgutil.iter_modules(getattr(parent, "__path__", None))]


def _lookup(module: ModuleType, attribute: str) -> Any:
    found: Any = module
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            names = _candidates(found)
            close = difflib.get_close_matches(part, names, n=3)
            listed = f"it has {', '.join(names) or 'no models'}"
            hint = f"did you mean {', '.join(close)}?" if close else listed
            name = getattr(found, "__name__", type(found).__name__)
            where = getattr(found, "__file__", None) or name
            raise InputError(f"there is no {part!r} in {where}; {hint}") from error
    return found


def _candidates(holder: Any) -> list[str]:
    """Public names that could be a model or make one; in a module only what it defines itself."""
    own = getattr(holder, "__name__", None) if isinstance(holder, ModuleType) else None
    public = {k: v for k, v in getattr(holder, "__dict__", {}).items() if not k.startswith("_")}

    def makes_models(value: Any) -> bool:
        return callable(value) and own in (None, getattr(value, "__module__", None))

    return [k for k, v in public.items() if isinstance(v, nn.Module) or makes_models(v)]


# ---------------------------------------------------------------- what it gives


def _check_callable(found: Any, text: str) -> None:
    if not callable(found):
        raise InputError(f"{text} is a {type(found).__name__}; {_FORM}")
    try:
        signature = inspect.signature(found)
    except ValueError:
        return  # some builtins have none; the call itself will tell
    try:
        signature.bind()
    except TypeError as error:
        raise InputError(
            f"{text}{signature} cannot be called without arguments ({error}); name a function that takes none"
        ) from error


def _target(result: Any, text: str) -> Target:
    parts = tuple(result) if isinstance(result, tuple | list) else (result,)
    kwargs = parts[2] if len(parts) > 2 else None
    proper = (
        1 <= len(parts) <= 3
        and isinstance(parts[0], nn.Module | ExportedProgram)
        and (len(parts) < 3 or (isinstance(parts[1], tuple | list) and isinstance(kwargs, Mapping)))
    )
    if not proper:
        given = ", ".join(type(part).__name__ for part in parts)
        shown = f"({given})" if isinstance(result, tuple | list) else given
        raise InputError(
            f"{text} gave {shown}; it must give a model, (model, example_inputs) or (model, args tuple, kwargs dict)"
        )
    return Target(parts[0], parts[1] if len(parts) > 1 else None, kwargs)


# ---------------------------------------------------------------- dynamic axes


_AXIS = re.compile(r"(?P<name>[^\W\d]\w*)(?:\[(?P<least>\d*)\.\.(?P<most>\d*)\])?")


def read_axes(entries: tuple[str, ...]) -> Any:
    """``--dynamic`` for ``compile``: ``("x:batch,_",)`` -> ``{"x": ["batch", None]}``; ``("all",)`` -> True.

    Raises InputError for anything else, and for an input that comes twice.
    """
    if "all" in entries:
        if len(entries) > 1:
            raise InputError("--dynamic all means every dimension; leave the other --dynamic options out")
        return True
    axes: dict[str, list[Any]] = {}
    for entry in entries:
        name, colon, text = entry.partition(":")
        if not (name.strip() and colon):
            raise InputError(f"cannot read --dynamic {entry!r}; write it as 'x:batch,_,time' or 'all'")
        if name.strip() in axes:
            raise InputError(f"--dynamic names {name.strip()!r} twice; give all its axes at once")
        axes[name.strip()] = [_read_axis(axis.strip(), entry) for axis in text.split(",")]
    return axes or None


def _read_axis(text: str, entry: str) -> Any:
    """None for a fixed axis, its name, or a ``Dim`` where a range is given."""
    if text in ("", "_"):
        return None
    match = _AXIS.fullmatch(text)
    if match is None:
        raise InputError(f"--dynamic {entry!r}: {text!r} is no axis; write a name, name[2..64], or _ (fixed)")
    bounds = {k: int(v) for k, v in (("min", match["least"]), ("max", match["most"])) if v}
    if not bounds:
        return match["name"]
    try:
        return Dim(match["name"], **bounds)
    except (AssertionError, ValueError) as error:
        raise InputError(f"--dynamic {entry!r}: {text!r} is no range ({error})") from error
