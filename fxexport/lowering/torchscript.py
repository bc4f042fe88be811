"""``Program`` -> TorchScript, by scripting the captured graph: sizes stay dynamic, nothing is traced."""

from __future__ import annotations

import json
import math
import operator
import re
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

from fxexport.destination import sibling_name
from fxexport.errors import LoweringError
from fxexport.lowering.scripted_control_flow import script_control_flow
from fxexport.lowering.scripted_modules import restore_scripted
from fxexport.lowering.unlift import unlift
from fxexport.program import Program, module_path

METADATA_FILE = "fxexport.json"
_MANGLED = r"/___torch_mangle_(\d+)"
aten = torch.ops.aten
_VERSIONS = ("version", ".data/version")
_WRITTEN_BY_TORCH = {*_VERSIONS, "byteorder", ".data/serialization_id"}

_SYMBOLIC_ARITHMETIC: dict[Any, Callable[..., Any]] = {
    torch.sym_float: float,
    torch.sym_int: int,
    math.trunc: int,
    torch.sym_max: max,
    torch.sym_min: min,
    torch.sym_not: operator.not_,
    torch.sym_ite: lambda condition, a, b: a if condition else b,
}


def lower_torchscript(program: Program, path: Path, metadata: Mapping[str, Any]) -> list[Path]:
    """Writes ``program`` as TorchScript at ``path``, with ``metadata`` as the extra file ``fxexport.json``.

    Raises LoweringError naming the operator that TorchScript cannot express.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about annotations inside fx.GraphModule, and that TorchScript is old
        try:
            scripted = _script(unlift(program))
        except LoweringError:
            raise
        except Exception as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            raise LoweringError(f"TorchScript cannot express the program: {' '.join(lines[:4])[:600]}") from error
        _save(scripted, path, json.dumps(metadata))
    return [path]


def _script(module: fx.GraphModule) -> Any:
    """The graph of ``module`` and those that its branches and loops run, in TorchScript."""
    restore_scripted(module)
    script_control_flow(module, _script)
    _to_script_operators(module.graph)
    module.recompile()
    return torch.jit.script(module.eval())


def _no_form(node: fx.Node) -> LoweringError:
    place = module_path(node) or "the model itself"
    return LoweringError(f"TorchScript has no form of {node.target} (node {node.name}, used in {place})")


def _save(scripted: Any, path: Path, metadata: str) -> None:
    """Saves ``scripted`` so that the bytes depend on the program alone.

    TorchScript numbers its classes (``___torch_mangle_7``) and FX its code (``<eval_with_key>.84``) through the life
    of a process: the archive is copied without these numbers and without the debug records they occur in. Among
    TorchScript modules of the user, where two classes would then be one, they are numbered from 0 in the order in which
    the process first scripted them; that order, and the order in which TorchScript lists constants, show in the bytes.
    """
    raw = path.with_name(sibling_name(path.name, ".raw"))
    try:
        torch.jit.save(scripted, str(raw), _extra_files={METADATA_FILE: metadata})
        reader, writer = torch._C.PyTorchFileReader(str(raw)), torch._C.PyTorchFileWriter(str(path))
        version = next(name for name in _VERSIONS if reader.has_record(name))  # type: ignore[attr-defined]
        writer.set_min_version(int(reader.get_record(version)))  # operators mean what they meant in that version
        names = [n for n in reader.get_all_records() if not n.endswith(".debug_pkl") and n not in _WRITTEN_BY_TORCH]
        numbers = _new_numbers(names)
        for name in names:
            record = reader.get_record(name)
            if name.startswith("code/") or name.endswith(".pkl"):
                record = re.sub(rb"\.___torch_mangle_(\d+)", lambda found: numbers[int(found[1])].encode(), record)
            new = re.sub(_MANGLED, lambda found: numbers[int(found[1])].replace(".", "/"), name)
            writer.write_record(new, record, len(record))
        writer.write_end_of_file()
    finally:
        raw.unlink(missing_ok=True)


def _new_numbers(names: Sequence[str]) -> dict[int, str]:
    """For each number of a class in ``names``, the records of an archive: nothing, or ``.___torch_mangle_<k>``.

    A number belongs to one class, which has a record of its own; a record without one may hold several classes.
    """
    plain = Counter(re.sub(_MANGLED, "", name) for name in names)
    numbers = {}
    for name in names:
        for found in re.finditer(_MANGLED, name):
            numbers[int(found[1])] = plain[re.sub(_MANGLED, "", name)] > 1
    kept = [number for number in sorted(numbers) if numbers[number]]
    return {number: f".___torch_mangle_{kept.index(number)}" if numbers[number] else "" for number in numbers}


def _to_script_operators(graph: fx.Graph) -> None:
    """Operator overloads as the packets that TorchScript resolves by itself; symbolic sizes as ``x.size(i)``."""
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        target = node.target
        if target is aten.sym_size.int:
            node.op, node.target = "call_method", "size"
        elif target is aten.sym_numel.default:
            node.op, node.target = "call_method", "numel"
        elif target is aten.item.default and isinstance(node.meta["val"], int | torch.SymInt):
            node.target = int  # item() of TorchScript is a number of no known kind, which is no size
        elif isinstance(target, OpOverload):
            if "_assert" in target._opname or "sym_constrain" in target._opname:
                graph.erase_node(node)
                continue
            node.target = target.overloadpacket
            _explicit_keywords(node, target)
        elif target in _SYMBOLIC_ARITHMETIC:
            node.target = _SYMBOLIC_ARITHMETIC[target]
        elif getattr(target, "__module__", "") not in ("_operator", "math"):
            raise _no_form(node)


def _explicit_keywords(node: fx.Node, target: OpOverload) -> None:
    """Keyword-only arguments that TorchScript would leave out are fine; memory-only ones it has no literal for go."""
    for name in ("pin_memory",):
        if node.kwargs.get(name) is False:
            node.kwargs = {k: v for k, v in node.kwargs.items() if k != name}
    del target
