"""Where a NaN comes from: the captured graph, run operator by operator and watched for what is not finite."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch._ops import HigherOrderOperator
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

from fxexport.capture.exporting import export_flat
from fxexport.capture.functionalize import functionalize
from fxexport.capture.reference import Reference
from fxexport.errors import CaptureError
from fxexport.program import module_path, source_line


def nan_birth(reference: Reference) -> str:
    """A sentence on where the NaN of the example's outputs is born: an operator with its module and source
    line, a weight, or an input. Says so where the model cannot be captured, and the operator stays unknown.
    """
    inputs = reference.call.tensors
    try:
        exported, _ = functionalize(export_flat(reference.fresh(), inputs, [{} for _ in inputs]))
    except CaptureError as error:
        reason = str(error).splitlines()[0]
        return f"where it is born is not known, since the model cannot be captured either: {reason}"
    arguments, what = _arguments(exported, inputs, reference.call.paths)
    watcher = _Watcher(exported.graph_module)
    with torch.no_grad():
        watcher.run(*arguments)
    return watcher.birth(what)


@dataclass(frozen=True)
class _Content:
    nan: bool
    finite: bool


class _Watcher(fx.Interpreter):
    """Runs a graph and keeps, for each node, whether arguments and result hold NaN or are all finite."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.given: dict[fx.Node, _Content] = {}
        self.seen: dict[fx.Node, _Content] = {}
        self.inside: list[_Watcher] = []  # of the branches and rounds of loops that the last call ran
        self.ran: dict[fx.Node, list[_Watcher]] = {}

    def run_node(self, n: fx.Node) -> Any:
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        is_call = n.op != "placeholder"
        self.given[n] = _content((args, kwargs)) if is_call else _Content(nan=False, finite=True)
        self.inside = []
        result = super().run_node(n)
        self.seen[n] = _content(result)
        self.ran[n] = self.inside
        return result

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if isinstance(target, HigherOrderOperator):
            args = tuple(self._watched(each) if isinstance(each, fx.GraphModule) else each for each in args)
        return super().call_function(target, args, kwargs)

    def _watched(self, module: fx.GraphModule) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            self.inside.append(_Watcher(module))
            return self.inside[-1].run(*args)

        return call

    def birth(self, what: Mapping[str, str]) -> str:
        """The sentence, after a run; ``what`` a placeholder is to the user."""
        nodes = list(self.seen)
        born = next((n for n in nodes if self.seen[n].nan and not self.given[n].nan), None)
        if born is None:
            return "it is not born in the captured graph: the NaN depends on something that capture does not see"
        if born.op == "placeholder":
            return f"it comes from {what.get(born.name, 'an operand')}, which holds NaN"
        inner = next((each for each in self.ran[born] if any(content.nan for content in each.seen.values())), None)
        if inner is not None:
            return inner.birth({})
        grown = _ancestors(born)
        sick = (n for n in nodes if n in grown and not self.seen[n].finite)
        first = next(n for n in sick if self.given[n].finite or n is born)
        if first is born:
            finite = "whose inputs are finite" if self.given[born].finite else "whose inputs hold Inf"
            return f"it is born in {_show(born)}, {finite}"
        return f"it is born in {_show(born)}, from an Inf that comes from {_show(first)}"


def _content(value: Any) -> _Content:
    leaves = pytree.tree_leaves(value)
    tensors = [t for t in leaves if isinstance(t, torch.Tensor) and (t.is_floating_point() or t.is_complex())]
    numbers = [n for n in leaves if isinstance(n, float)]
    return _Content(
        nan=any(bool(t.isnan().any()) for t in tensors) or any(map(math.isnan, numbers)),
        finite=all(bool(t.isfinite().all()) for t in tensors) and all(map(math.isfinite, numbers)),
    )


def _arguments(
    exported: ExportedProgram, inputs: list[torch.Tensor], paths: list[str]
) -> tuple[list[Any], dict[str, str]]:
    """What to call the lifted graph with, and for each placeholder what it is to the user."""
    feed = iter(zip(inputs, paths, strict=True))
    arguments: list[Any] = []
    what: dict[str, str] = {}
    for spec in exported.graph_signature.input_specs:
        if spec.kind == InputKind.USER_INPUT:
            value, path = next(feed)
            arguments.append(value)
            what[spec.arg.name] = f"the input {path}"
        else:
            target = str(spec.target)
            table = exported.state_dict if target in exported.state_dict else exported.constants
            arguments.append(table[target])
            kind = spec.kind.name.lower().replace("_", " ")
            what[spec.arg.name] = f"{kind} {target.removeprefix('model.')!r}"
    return arguments, what


def _ancestors(node: fx.Node) -> set[fx.Node]:
    found, todo = {node}, [node]
    while todo:
        todo += [n for n in todo.pop().all_input_nodes if n not in found]
        found.update(todo)
    return found


def _show(node: fx.Node) -> str:
    module = module_path(node).removeprefix("model").removeprefix(".")
    place = f" of module {module!r}" if module else ""
    line = source_line(node)
    return f"{node.target}{place}" + (f" at {line}" if line else "")
