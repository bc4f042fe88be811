"""Modules as ONNX functions: the nodes of each module become one call of a function, stored once for equal modules.

**Which nodes are a module's.** torch.onnx writes on every node the modules it was called in; :func:`number_calls` makes
these paths tell the calls of one module apart. What optimization added without saying where belongs to the modules of
what it reads or feeds. What it merged across equal modules (one mask prepared for all layers) is taken out of the first.

**What may become a call.** A module's nodes can be replaced by one node only where no path leaves them and comes back:
a node outside that reads one and feeds another would have to run in the middle of the call. Such a module stays inline.

**One function for equal modules.** Equal means: the same operators, attributes, wiring and sizes asked for. Places that
read one value in every call are one input of the function, all others have an input of their own; constants equal in
all calls that are no weights go into the function; what any of the calls gives to the outside is an output.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from fxexport.lowering.onnx_calls import DOMAIN, Call, replace_by_calls
from fxexport.lowering.onnx_scopes import Chain, chains_of, common, number_calls, within, write_scopes
from fxexport.lowering.onnx_structure import Structure, structure, values_read
from fxexport.program import Program

__all__ = ["DOMAIN", "FunctionRecord", "number_calls", "outline_functions"]


@dataclass(frozen=True)
class FunctionRecord:
    """What became of the modules of one class with one structure.

    Attributes:
        name: the function, in domain ``fxexport.modules``; '' where no module of the class became a call.
        class_name: the qualified class.
        calls: the paths of the modules that are calls of the function, in order; a module called twice is there twice.
        nodes: how many nodes the function has.
        inline: path and reason of each module of the class left as it was; on the first record of the class only.
        note: why there is nothing to make a function of, where a class was asked for that the graph has no module of.
    """

    name: str
    class_name: str
    calls: tuple[str, ...]
    nodes: int
    inline: tuple[tuple[str, str], ...] = ()
    note: str = ""

    def __str__(self) -> str:
        size = f"{self.nodes} node{'s' * (self.nodes != 1)}"
        times = "once" if len(self.calls) == 1 else f"{len(self.calls)} times"
        head = (
            f"{self.name}: {size}, called {times}"
            if self.name
            else f"{self.class_name}: no function {self.note}".strip()
        )
        return "\n".join([head, *(f"  {path} left inline: {why}" for path, why in self.inline)])


def outline_functions(
    model: ir.Model, program: Program, classes: bool | type | str | Collection[type | str]
) -> list[FunctionRecord]:
    """Replaces the modules of ``classes`` in ``model`` by calls of functions, in place.

    ``model`` is what :func:`~fxexport.lowering.onnx_translation.translate` gives for a program of :func:`number_calls`.
    ``classes`` are classes or their names, simple or qualified; True means every class with at least two equal modules of
    two nodes or more. Modules inside modules become functions that functions call. What the model computes, its inputs,
    its outputs and its weights stay the same.

    Returns one record for each function, and one for each class asked for of which no module became a call.
    """
    if isinstance(classes, type | str):
        classes = [classes]
    if classes is False:
        return []
    outliner = _Outliner(model, classes, program.constants().keys())
    outliner.run()
    return outliner.records + _missing(outliner.present, program, () if classes is True else classes)


def _names(class_name: str) -> set[str]:
    """How a class may be asked for: by its qualified name, as torch.export writes it, or by the simple one."""
    return {class_name, class_name.rpartition(".")[2]}


def _asked(cls: type | str) -> str:
    return cls if isinstance(cls, str) else f"{cls.__module__}.{cls.__qualname__}"


def _missing(present: Collection[str], program: Program, classes: Collection[type | str]) -> list[FunctionRecord]:
    """A record for each class asked for of which the graph has no nodes."""
    stacks = [(node.meta.get("nn_module_stack") or {}).values() for node in program.graph.nodes]
    captured = {str(cls) for stack in stacks for path, cls in stack if path}
    records = []
    for name in map(_asked, classes):
        if not any(name in _names(cls) for cls in present):
            known = any(name in _names(cls) for cls in captured)
            others = ", ".join(sorted({cls.rpartition(".")[2] for cls in captured})) or "none"
            note = "(nothing is left of its modules)" if known else f"(no module of this class; there are: {others})"
            records.append(FunctionRecord("", name, (), 0, note=note))
    return records


class _Outliner:
    def __init__(self, model: ir.Model, classes: bool | Collection[type | str], weights: Collection[str]) -> None:
        self.graph, self.model, self.weights = model.graph, model, weights
        self.repeated_only = classes is True
        self.chains = chains_of(model.graph)
        found = dict.fromkeys(chain[: i + 1] for chain in self.chains.values() for i in range(len(chain)))
        counts = Counter(prefix[-1].class_name for prefix in found if prefix[-1].path)
        self.present = set(counts)
        if isinstance(classes, bool):
            self.wanted = {name for name, count in counts.items() if count > 1}
        else:
            names = {_asked(each) for each in classes}
            self.wanted = {name for name in counts if not names.isdisjoint(_names(name))}
        self.records: list[FunctionRecord] = []
        self.inline: dict[str, list[tuple[str, str]]] = {}

    def run(self) -> None:
        """Innermost modules first, so that functions can call the functions of the modules inside."""
        heights: dict[Chain, int] = {}
        for chain in self.chains.values():
            around = [chain[: i + 1] for i, scope in enumerate(chain) if scope.path and scope.class_name in self.wanted]
            for height, prefix in enumerate(reversed(around)):
                heights[prefix] = max(height, heights.get(prefix, 0))
        for height in sorted(set(heights.values())):
            self._outline({prefix for prefix in heights if heights[prefix] == height})
        for node, chain in self.chains.items():
            write_scopes(node, [scope.module for scope in chain])
        self.records += [FunctionRecord("", cls, (), 0, tuple(rows)) for cls, rows in self.inline.items()]

    def _outline(self, prefixes: set[Chain]) -> None:
        """Makes calls of the modules with these ``prefixes``, none of which is inside another."""
        self._share_merged(prefixes)
        modules = self._nodes_of(prefixes)
        forms = {prefix: structure(nodes) for prefix, nodes in modules.items()}
        alike = Counter((prefix[-1].class_name, form.key) for prefix, form in forms.items() if form)
        order = [[node] for node in self.graph]
        groups: dict[object, list[tuple[Chain, Call]]] = {}
        for prefix, nodes in modules.items():
            form, scope = forms[prefix], prefix[-1]
            if self.repeated_only and len(nodes) == 1:
                continue
            key = (scope.class_name, form.key if form else None)
            why = self._obstacle(form, alike[key]) or _gather(order, nodes, self.chains)
            if why:
                self.inline.setdefault(scope.class_name, []).append((scope.module, why))
            elif form:
                groups.setdefault(key, []).append((prefix, Call(scope.module, scope.class_name, nodes, form)))
        for group in groups.values():
            self._replace(group)
        self.graph.sort()

    def _obstacle(self, form: Structure | None, alike: int) -> str:
        if form is None:
            return "a branch or a loop body in it returns a value from outside"
        return "no other module of its class has the same structure" if self.repeated_only and alike == 1 else ""

    def _replace(self, group: Sequence[tuple[Chain, Call]]) -> None:
        calls = [call for _, call in group]
        nodes = replace_by_calls(self.model, calls, self.weights)
        for prefix, call in group:
            for node in call.nodes:
                inner = [scope.module.removeprefix(f"{call.path}.") for scope in self.chains.pop(node)[len(prefix) :]]
                write_scopes(node, ["", *inner])
        self.chains.update((node, prefix) for node, (prefix, _) in zip(nodes, group, strict=True))
        name = calls[0].class_name
        paths, rows = tuple(call.path for call in calls), tuple(self.inline.pop(name, ()))
        self.records.append(FunctionRecord(nodes[0].op_type, name, paths, len(calls[0].nodes), rows))

    def _nodes_of(self, prefixes: set[Chain]) -> dict[Chain, list[ir.Node]]:
        modules: dict[Chain, list[ir.Node]] = {}
        for node in self.graph:
            for prefix in within(self.chains[node], prefixes):
                modules.setdefault(prefix, []).append(node)
        return modules

    def _share_merged(self, prefixes: set[Chain]) -> None:
        """Takes out of a module what it computes for other modules of its class as well as for itself.

        Such nodes were merged by optimization, or are shared on purpose; without them the modules are equal. They stay
        where they are most of a module.
        """
        readers = self._readers()
        for prefix, nodes in self._nodes_of(prefixes).items():
            inside, outside = set(nodes), []
            taken: set[ir.Node] = set()
            for node in reversed(nodes):
                users = [user for value in node.outputs for user in readers.get(value, ())]
                twins = [user for user in users if self._is_in_twin(user, prefix, prefixes)]
                if twins and not inside.isdisjoint(users):
                    outside += [self.chains[user] for user in twins]
                    taken.add(node)
                elif not taken.isdisjoint(users):
                    taken.add(node)
            if 2 * len(taken) <= len(nodes):
                self.chains.update(dict.fromkeys(taken, common([prefix[:-1], *outside])))

    def _readers(self) -> dict[ir.Value, list[ir.Node]]:
        readers: dict[ir.Value, list[ir.Node]] = {}
        for node in self.graph:
            for value in values_read(node):
                readers.setdefault(value, []).append(node)
        return readers

    def _is_in_twin(self, node: ir.Node, prefix: Chain, prefixes: set[Chain]) -> bool:
        others = [each for each in within(self.chains[node], prefixes) if each != prefix]
        return any(other[-1].class_name == prefix[-1].class_name for other in others)


def _gather(order: list[list[ir.Node]], nodes: Sequence[ir.Node], chains: dict[ir.Node, Chain]) -> str:
    """Brings ``nodes`` together as one unit of ``order``, a topological order of units.

    Returns why that cannot be, and leaves ``order`` as it is: a unit needs one of ``nodes`` and is needed by another.
    """
    own, behind = set(nodes), set[ir.Node]()
    places = [i for i, unit in enumerate(order) if unit[0] in own]
    before: list[list[ir.Node]] = []
    after: list[list[ir.Node]] = []
    for unit in order[places[0] : places[-1] + 1]:
        makers = [maker for node in unit for value in values_read(node) if (maker := value.producer()) is not None]
        late = [maker for maker in makers if maker in behind]
        if unit[0] in own:
            if late:
                where = chains[late[0]][-1].module if chains[late[0]] else ""
                return f"{late[0].op_type} in {where or 'the model itself'} runs between its operators and needs them"
        elif late or any(maker in own for maker in makers):
            after.append(unit)
            behind.update(unit)
        else:
            before.append(unit)
    order[places[0] : places[-1] + 1] = [*before, list(nodes), *after]
    return ""
