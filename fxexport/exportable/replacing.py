"""Replacing modules by their class name on a private copy."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Mapping

import torch
from torch import nn

from fxexport.capture.nesting import describe
from fxexport.errors import InputError
from fxexport.exportable.reading import run_hook
from fxexport.exportable.scripted import ScriptedModule, annotations_kept

Factory = Callable[[nn.Module], nn.Module | None]


def replace_modules(
    part: nn.Module,
    replacements: Mapping[str, Factory],
    notes: list[str],
    *,
    within: nn.Module,
    scripts: bool = False,
) -> nn.Module:
    """``part`` with every module of a class named in ``replacements`` replaced by what its factory returns.

    A name is ``Class`` or ``package.module.Class``. A factory gets the module and returns another one, or None to leave
    it. A module found at several places is replaced once, the same everywhere; a replacement is not searched again.
    Each name adds a note with its count. ``part`` is changed in place; where its own class is named, the replacement
    is returned. With ``scripts`` (for TorchScript files) a factory may return a TorchScript module, as ``torch.jit.script``
    does: it stays what it is in the file.

    Raises InputError where a name matches no class in ``part`` or ``within`` (the whole model), or a factory fails.
    """
    _check_known(replacements, part, within)
    if not scripts and (named := [name for name, factory in replacements.items() if factory is torch.jit.script]):
        raise InputError(f"replacements[{named[0]!r}]: {_ONLY_TORCHSCRIPT}")
    state = _Replacing(replacements, scripts)
    result = state.visit(part, "")
    for name in replacements:
        if state.found[name]:
            kept = state.found[name] - state.replaced[name]
            more = f" ({kept} left as they are: the factory returned None)" if kept else ""
            notes.append(f"{state.replaced[name]} {name} replaced{more}")
    if state.scripted:
        notes.append(
            f"{', '.join(state.scripted)} kept as TorchScript with all branches; those that no checked example takes were "
            "not compared: check_trace=[...] gives more examples"
        )
    return result


_ONLY_TORCHSCRIPT = (
    "torch.jit.script in replacements is for TorchScript files (.pt, .ts); choose such a path, or return an nn.Module"
)


class _Replacing:
    """One walk through the modules of a part; what became of each is remembered by identity."""

    def __init__(self, replacements: Mapping[str, Factory], scripts: bool) -> None:
        self.replacements = replacements
        self.scripts = scripts
        self.scripted: list[str] = []
        self.found: Counter[str] = Counter()
        self.replaced: Counter[str] = Counter()
        self.seen: dict[int, tuple[nn.Module, nn.Module]] = {}  # the key's module is kept so that its id stays its own

    def visit(self, module: nn.Module, path: str) -> nn.Module:
        """What stands for ``module`` from now on; its children are searched where it stays."""
        if id(module) in self.seen:
            return self.seen[id(module)][1]
        name = next((name for name in class_names(module) if name in self.replacements), None)
        new = module if name is None else self._make(name, module, path)
        self.seen[id(module)] = (module, new)
        if new is module:
            for key, child in list(module.named_children()):
                self._set(module, key, child, self.visit(child, f"{path}.{key}".lstrip(".")))
        return new

    def _set(self, parent: nn.Module, key: str, old: nn.Module, new: nn.Module) -> None:
        if new is old:
            return
        for each, child in parent._modules.items():  # named_children() shows a child with two names once
            if child is old:
                parent._modules[each] = new

    def _make(self, name: str, module: nn.Module, path: str) -> nn.Module:
        self.found[name] += 1
        place = f"replacements[{name!r}] on {path or 'the model'}"
        with annotations_kept(module):
            new = run_hook(module, place, self.replacements[name], module)
        if new is None:
            return module
        if not isinstance(new, nn.Module):
            raise InputError(f"{place} must return a module, or None to leave it; it returned {describe(new)}")
        self.replaced[name] += 1
        return self._kept_as_script(new, module, place, path) if isinstance(new, torch.jit.ScriptModule) else new

    def _kept_as_script(self, new: torch.jit.ScriptModule, module: nn.Module, place: str, path: str) -> nn.Module:
        if not self.scripts:
            raise InputError(f"{place} returned a TorchScript module; {_ONLY_TORCHSCRIPT}")
        if not path:
            raise InputError(
                f"{place} returned a TorchScript module for all that is exported; replace modules inside it, or save it "
                "yourself: torch.jit.script(model).save(path)"
            )
        self.scripted.append(path)
        return ScriptedModule(module, new, path)


def class_names(module: nn.Module) -> tuple[str, str]:
    """The names by which a replacement may mean the class of ``module``: ``Class`` and ``package.module.Class``."""
    return type(module).__name__, f"{type(module).__module__}.{type(module).__qualname__}"


def _check_known(replacements: Mapping[str, Factory], part: nn.Module, within: nn.Module) -> None:
    known = {name for root in (within, part) for module in root.modules() for name in class_names(module)}
    for name, factory in replacements.items():
        if not callable(factory):
            raise InputError(f"replacements[{name!r}] must be a function module -> module, got {describe(factory)}")
        if name in known:
            continue
        short = sorted(each for each in known if "." not in each)
        lower = {each.lower(): each for each in short}
        close = [lower[each] for each in difflib.get_close_matches(name.lower(), lower, n=5, cutoff=0.5)]
        listed = ", ".join(close or short[:20])
        raise InputError(
            f"replacements: no module of {type(within).__name__} is of class {name!r}; "
            f"{'close names' if close else 'its classes'}: {listed}"
        )
