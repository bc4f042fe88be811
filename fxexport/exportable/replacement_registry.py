"""Which modules are replaced by default where that is asked for: ours, and those that were registered."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from fxexport.errors import InputError
from fxexport.exportable.plain_modules import FUSED_SOFTMAX, PLAIN, without_fusion
from fxexport.exportable.replacing import Factory, class_names

_REGISTERED: dict[str, Factory] = {}

Replacements = Mapping[str, "Factory | str"] | str
"""Class name -> factory, or ``"default"`` for the registered one; ``"default"`` alone for all that are registered."""


def register_replacement(class_name: str, factory: Factory) -> None:
    """Makes ``factory`` what ``replace_for_export`` and ``replacements="default"`` replace modules of a class with.

    ``class_name`` is ``Class`` or ``package.module.Class``; the last registration counts, also over one of ours. The
    factory gets a module and returns another, or None to leave it; it works on private copies.

    Raises InputError where the factory cannot be called.
    """
    if not callable(factory):
        raise InputError(f"the replacement of {class_name!r} must be a function module -> module, got {factory!r:.80}")
    _REGISTERED[class_name] = factory


def registered_replacements() -> dict[str, Factory]:
    """Class name -> factory of all that are registered, ours first."""
    return {**PLAIN, **_REGISTERED}


def chosen_replacements(model: nn.Module, asked: Replacements) -> dict[str, Factory]:
    """The factories that ``asked`` means for the modules of ``model``.

    Raises InputError for another word than ``"default"``, and where a class has no registered replacement.
    """
    known = {**dict.fromkeys(FUSED_SOFTMAX, _unfused), **registered_replacements()}
    if isinstance(asked, str):
        _check_word(asked, "replacements")
        present = {name for module in model.modules() for name in class_names(module)}
        return {name: factory for name, factory in known.items() if name in present}
    factories: dict[str, Factory] = {}
    for name, factory in asked.items():
        if isinstance(factory, str):
            _check_word(factory, f"replacements[{name!r}]")
            if name not in known:
                raise InputError(
                    f"replacements[{name!r}]: no replacement is registered for that class; registered are "
                    f"{', '.join(sorted(known))}; fxexport.register_replacement({name!r}, factory) adds one"
                )
            factory = known[name]
        factories[name] = factory
    return factories


def _check_word(word: str, where: str) -> None:
    if word != "default":
        raise InputError(f"{where} is {word!r}; give 'default' or a function module -> module")


def _unfused(module: nn.Module) -> nn.Module:
    without_fusion(module)
    return module
