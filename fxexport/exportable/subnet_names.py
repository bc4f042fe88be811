"""The parts of a model that are exported separately: their names, the modules behind them, and their files."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from fxexport.capture.nesting import describe
from fxexport.capture.private_copy import unwrap
from fxexport.errors import InputError
from fxexport.exportable.copying import configured_copy
from fxexport.exportable.reading import has_hook, is_default, name_of, read_hook

FORMAT_NAMES = {".onnx": "ONNX", ".pt": "TorchScript", ".ts": "TorchScript", ".pt2": "torch.export"}
_NAME_LIMIT = 255  # bytes, as on every common file system
_LIST = "list_export_subnets"


def subnet_of(root: nn.Module, name: str) -> nn.Module:
    """The module that is exported under ``name``; ``"self"`` is ``root``.

    Raises InputError naming the hook where there is none, or something else than a module.
    """
    if name == "self":
        return root
    own = has_hook(root, "get_export_subnet") and not is_default(root, "get_export_subnet")
    if own:
        hook, found = f"get_export_subnet({name!r})", read_hook(root, "get_export_subnet", name)
    elif not has_hook(root, name) and "." in name and _has_submodule(root, name):
        hook, found = name, root.get_submodule(name)
    elif not has_hook(root, name):
        parts = ", ".join(key for key, _ in root.named_children()) or "none"
        raise InputError(f"subnet {name!r}: {type(root).__name__} has no attribute {name!r}; its modules are: {parts}")
    else:
        hook, found = name, read_hook(root, name)
    if not isinstance(found, nn.Module):
        raise InputError(f"{name_of(root, hook)} must be an nn.Module to be exported, found {describe(found)}")
    return found


def _has_submodule(root: nn.Module, path: str) -> bool:
    return path in (name for name, _ in root.named_modules())


def list_subnets(
    model: nn.Module, config: Mapping[str, Any] | None = None, names: Sequence[str] | None = None
) -> list[str]:
    """The names of the parts that ``model`` is exported as; ``["self"]`` where it has no ``list_export_subnets``.

    ``names`` are used instead where they are given; they may be paths of submodules (``"model.encoder"``). ``config`` is
    set on the private copy that is asked, since parts may depend on it. Raises InputError where a name cannot be part of
    a file name, occurs twice (also in other letter case), or leads to no module.
    """
    if names is None:
        return list(_subnets(unwrap(model)[0], config))
    if isinstance(names, str) or not names or not all(isinstance(name, str) for name in names):
        raise InputError(f"subnets must be a list of names, got {describe(names)}")
    root, _ = configured_copy(unwrap(model)[0], config)
    for name in names:
        _check(name, root)
        subnet_of(root, name)
    _check_distinct(list(names), "subnets")
    return list(names)


def subnet_classes(model: nn.Module, config: Mapping[str, Any] | None = None) -> dict[str, str]:
    """``package.module.Class`` of each part, by the names and in the order of :func:`list_subnets`."""
    parts = _subnets(unwrap(model)[0], config)
    return {name: f"{type(part).__module__}.{type(part).__qualname__}" for name, part in parts.items()}


def _subnets(model: nn.Module, config: Mapping[str, Any] | None) -> dict[str, nn.Module]:
    if not has_hook(model, _LIST) or is_default(model, _LIST):
        return {"self": model}
    root, _ = configured_copy(model, config)
    found = read_hook(root, _LIST)
    names = list(found) if isinstance(found, list | tuple | dict) else None
    if not names or not all(isinstance(name, str) for name in names):
        raise InputError(f"{name_of(root, _LIST)} must return a list of names, found {describe(found)}")
    for name in names:
        _check(name, root)
    _check_distinct(names, name_of(root, _LIST))
    return {name: subnet_of(root, name) for name in names}


def _check(name: str, root: nn.Module) -> None:
    wrong = ""
    if not name.strip() or name != name.strip():
        wrong = "is empty or has blanks around it"
    elif set(name) & set('/\\:*?"<>|'):
        wrong = "holds a path separator or a character that not every file system takes"
    elif name.startswith("."):
        wrong = "starts with a dot, which hides the file"
    elif any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in name):
        wrong = "holds a control character"
    if wrong:
        raise InputError(
            f"{name_of(root, _LIST)} names the subnet {name!r}, which {wrong}; the name becomes part of the file name "
            "<subnet>-<output>: give the attribute a plain name"
        )


def _check_distinct(names: Sequence[str], hook: str) -> None:
    seen: dict[str, str] = {}
    for name in names:
        key = _folded(name)
        if key in seen:
            raise InputError(f"{hook} names {seen[key]!r} and {name!r}: both would be written to one file; rename one")
        seen[key] = name


def subnet_files(path: Path, subnets: Sequence[str]) -> dict[str, Path]:
    """The file of each subnet: ``<subnet>-<name of path>`` beside ``path``; ``"self"`` is ``path`` itself.

    Raises InputError where a name exceeds 255 bytes or two files would be one.
    """
    files = {name: path if name == "self" else path.with_name(f"{name}-{path.name}") for name in subnets}
    if len(files) < len(subnets):
        _check_distinct(subnets, "list_export_subnets")
    _check_distinct([file.name for file in files.values()], "list_export_subnets")
    for name, file in files.items():
        if (size := len(file.name.encode())) > _NAME_LIMIT:
            raise InputError(
                f"the file name {file.name!r} of subnet {name!r} has {size} bytes: shorten {path.name!r} so that it has "
                f"at most {_NAME_LIMIT} with the subnet before it"
            )
    return files


def _folded(name: str) -> str:
    """As file systems that ignore letter case and Unicode form compare names."""
    return unicodedata.normalize("NFC", name).casefold()
