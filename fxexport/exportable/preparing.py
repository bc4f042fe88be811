"""Running the preparing hooks on a private copy, and their teardown however the export ends."""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from fxexport.errors import InputError
from fxexport.exportable.class_changes import kept_to_copies
from fxexport.exportable.mixin import Exportable
from fxexport.exportable.reading import get_hook, has_hook, is_default, name_of, read_hook, run_hook

_PREPARE, _TEARDOWN, _FORWARD = "_prepare_for_export", "_export_teardown", "forward_for_export"
# Options of the export itself that every hook is offered; others are the user's and must reach one.
_STANDARD = frozenset(
    {
        "check_tolerance",
        "check_trace",
        "do_constant_folding",
        "dynamic_axes",
        "export_modules_as_functions",
        "input_example",
        "keep_initializers_as_inputs",
        "noreplace",
        "onnx_opset_version",
        "output",
        "training",
        "use_dynamo",
        "verbose",
    }
)


def exports_itself(module: nn.Module) -> bool:
    """Whether ``module`` has a ``_prepare_for_export`` that is more than the empty one of our mix-in."""
    ours = getattr(type(module), _PREPARE, None) is Exportable._prepare_for_export
    return has_hook(module, _PREPARE) and not (ours and _PREPARE not in vars(module))


def use_export_forward(part: nn.Module) -> None:
    """Makes ``forward_for_export``, where there is one, what ``part(...)`` calls; the class keeps its ``forward``.

    While it runs, ``part.forward`` is the model's own again, which it may be built upon.
    """
    if not has_hook(part, _FORWARD):
        return
    signature = inspect.signature(get_hook(part, _FORWARD))

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        replaced = vars(self).pop("forward")
        try:
            return getattr(self, _FORWARD)(*args, **kwargs)
        finally:
            vars(self)["forward"] = replaced

    own = inspect.Parameter("_part_", inspect.Parameter.POSITIONAL_ONLY)
    parameters = [own, *signature.parameters.values()]
    forward.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    # A method, not a closure over the part: copies of the part then get a forward of their own.
    vars(part)["forward"] = types.MethodType(forward, part)


def prepare_inner(part: nn.Module, options: Mapping[str, Any], entered: list[nn.Module], notes: list[str]) -> None:
    """``_prepare_for_export(noreplace=True, ...)`` of every module inside ``part`` that has it, each once in all."""
    done = {id(module) for module in entered}
    for module in [module for module in part.modules() if module is not part and exports_itself(module)]:
        if id(module) in done:
            continue
        entered.append(module)
        _prepare(module, {**options, "noreplace": True}, notes)


def prepare_part(part: nn.Module, options: Mapping[str, Any], entered: list[nn.Module], notes: list[str]) -> None:
    """``_prepare_for_export`` of ``part`` itself, once."""
    if any(module is part for module in entered):
        return
    entered.append(part)
    if exports_itself(part):
        _prepare(part, options, notes)


def _prepare(module: nn.Module, options: Mapping[str, Any], notes: list[str]) -> None:
    hook = get_hook(module, _PREPARE)
    taken = _taken(hook, options)
    left = [name for name in options if name not in taken]
    left = [name for name in left if name not in _STANDARD]  # who writes no parameters expects none of these
    if left:
        notes.append(f"{name_of(module, _PREPARE)} has no parameter for {', '.join(left)}, and ran without")
    run_hook(module, _PREPARE, hook, **taken)


def _taken(hook: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that ``hook`` has a parameter for."""
    parameters = inspect.signature(hook).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return dict(options)
    named = {name for name, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return {name: value for name, value in options.items() if name in named}


def check_options(part: nn.Module, options: Mapping[str, Any], *, within: nn.Module) -> None:
    """Refuses options of the user that no ``_prepare_for_export`` takes: most likely a misspelling.

    ``within`` is the whole model; hooks of its other parts may be the ones that an option is for.
    """
    modules = [*part.modules(), *(module for module in within.modules() if module is not within)]
    hooks = [module for module in modules if exports_itself(module) and not is_default(module, _PREPARE)]
    reached = {name for module in hooks for name in _taken(get_hook(module, _PREPARE), options)}
    lost = sorted(options.keys() - _STANDARD - reached)
    if lost:
        raise InputError(
            f"{', '.join(lost)}: neither an option of the export nor taken by a {_PREPARE} hook of {type(part).__name__} "
            "or of a module of the model; correct the name, or give the hook a parameter for it"
        )


@contextmanager
def torn_down() -> Iterator[list[nn.Module]]:
    """Yields a list of modules; ``_export_teardown`` of each that is on it runs at the end, last first, always.

    An error of a teardown is raised, or added as a note to the error that is under way.
    """
    entered: list[nn.Module] = []
    try:
        yield entered
    except BaseException as error:
        for failure in _tear_down(entered):
            if not isinstance(failure, Exception):
                raise failure from error
            error.add_note(str(failure))
        raise
    failures = _tear_down(entered)
    for failure in sorted(failures, key=lambda each: isinstance(each, Exception)):
        for other in failures:
            if other is not failure:
                failure.add_note(str(other))
        raise failure


def _tear_down(entered: list[nn.Module]) -> list[BaseException]:
    failures: list[BaseException] = []
    for module in reversed(entered):
        if has_hook(module, _TEARDOWN):
            try:
                with kept_to_copies(module, [module], []):
                    read_hook(module, _TEARDOWN)
            except BaseException as error:  # noqa: BLE001 - the others are torn down too; the caller raises it
                failures.append(error)
    return failures
