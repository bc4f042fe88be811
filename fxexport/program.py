"""``Program``: a captured graph with its constants and its signature, and the few edit operations that passes need.

The graph is the *lifted, functional* ATen graph of ``torch.export``: no operator writes into its arguments, and every
parameter, buffer and constant is a placeholder. Tensors are shared with the captured model and never written to.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn
from torch._ops import OpOverloadPacket
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import ExportedProgram, ModuleCallEntry
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputSpec,
    TensorArgument,
)
from torch.utils import _pytree as pytree

from fxexport.control_flow import (
    SubGraph,
    check_call,
    control_flow,
    erase_dead,
    nested_graphs,
    read_attribute,
)
from fxexport.decisions import Decision
from fxexport.errors import VerifyError
from fxexport.graph_copy import copy_graph, copy_root
from fxexport.input_assumption import InputAssumption
from fxexport.node_values import (
    Watch,
    Watched,
    check_same_value,
    fake_mode_of,
    module_path,
    resolve_overload,
    same_size,
    source_line,
)
from fxexport.program_parts import ProgramParts
from fxexport.signature import Signature
from fxexport.value_cache import ValueCache

CONSTANT_KINDS = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)


class Program(ProgramParts):
    """A captured model, ready to be rewritten.

    Attributes:
        graph: the lifted graph, for passes that walk it; placeholders are constants first, then the inputs of
            ``signature`` in order.
        signature: names, dtypes and axes of the flat inputs and outputs.
        notes: what capture assumed, fixed or dropped, in plain words; printed in every report.
        decisions: what became of the Python decisions on tensor values that the model takes.
        config: the model's export config (``get_export_config``), for passes that act on it; {} for most models.
        assumptions: what the user guarantees of the values of inputs.
        made: the nodes that ``insert`` and ``add_constant`` made in this copy of the program, in order.
    """

    def __init__(self, exported: ExportedProgram, signature: Signature, notes: Sequence[str] = ()) -> None:
        self.graph: fx.Graph = exported.graph_module.graph
        self._root: nn.Module = exported.graph_module  # what get_attr nodes read: the branches of control flow
        self.signature = signature
        self.notes = list(notes)
        self.decisions: tuple[Decision, ...] = ()
        self.config: Mapping[str, Any] = {}
        self.assumptions: tuple[InputAssumption, ...] = ()
        self.made: list[fx.Node] = []
        self._input_specs = {spec.arg.name: spec for spec in exported.graph_signature.input_specs}
        self._output_specs = list(exported.graph_signature.output_specs)
        self._state: dict[str, torch.Tensor] = dict(exported.state_dict)
        self._constants: dict[str, Any] = dict(exported.constants)
        self._range_constraints = exported.range_constraints
        self._module_call_graph = exported.module_call_graph
        self._verifiers = exported.verifiers
        for _, _, graph in self.graphs():
            for node in graph.nodes:
                if node.op == "call_function":
                    node.meta.setdefault("val", None)  # assertions return nothing
        self._values = ValueCache(fake_mode_of(self.graph))
        self._first_input: fx.Node | None = None
        self._taken: dict[str, int] = {}  # names of constants -> number last appended to make another of it

    # ---------------------------------------------------------------- reading

    @property
    def graph_module(self) -> fx.GraphModule:
        """A new module with a copy of the graph as it is now; making its Python code takes time in large programs."""
        graph = copy_graph(self.graph)
        module = fx.GraphModule(copy_root(self._root, graph), graph)
        module.meta.update(getattr(self._root, "meta", {}))
        return module

    @property
    def input_nodes(self) -> list[fx.Node]:
        """The placeholders of the flat inputs, in the order of ``signature.inputs``."""
        return [n for n in self._placeholders() if self._input_specs[n.name].kind == InputKind.USER_INPUT]

    @property
    def output_nodes(self) -> list[fx.Node]:
        """The nodes returned, in the order of ``signature.outputs`` (one node may be returned twice)."""
        results: Any = self.graph.output_node().args[0]
        return [results] if isinstance(results, fx.Node) else list(results)  # the condition of a loop returns one

    def find(self, *targets: Any) -> Iterator[fx.Node]:
        """Every call of one of ``targets`` (ATen operators), in graph order; safe while editing."""
        found: list[fx.Node] = []
        for target in set(targets):
            found += self.graph.find_nodes(op="call_function", target=target, sort=False)
        yield from (node for node in sorted(found) if not node._erased)

    def graphs(self) -> Iterator[SubGraph]:
        """The graph, with path '', and each graph that its branches and loops (``torch.cond``, ``while_loop``) run."""
        return nested_graphs(self._root, self.graph)

    def branches(self) -> dict[str, fx.GraphModule]:
        """What the ``get_attr`` nodes of the graph read, by their targets: the graphs of its branches and loops."""
        targets = (str(node.target) for node in self.graph.find_nodes(op="get_attr"))
        return {target: read_attribute(self._root, target) for target in dict.fromkeys(targets)}

    def node_count(self) -> int:
        """How many operator calls the graph has, those in branches and loop bodies among them."""
        return sum(1 for _, _, graph in self.graphs() for n in graph.nodes if n.op == "call_function")

    def is_constant(self, node: Any) -> bool:
        """Whether ``node`` is a parameter, buffer or constant tensor of the model."""
        if not isinstance(node, fx.Node) or node.op != "placeholder":
            return False
        return self._input_specs[node.name].kind in CONSTANT_KINDS

    def constant_value(self, node: Any) -> torch.Tensor | None:
        """The tensor behind a constant placeholder, or None where ``node`` is anything else. Never write into it."""
        if not self.is_constant(node):
            return None
        spec = self._input_specs[node.name]
        assert spec.target is not None
        value = self._state.get(spec.target, self._constants.get(spec.target))
        return value.detach() if isinstance(value, torch.Tensor) else None

    def constant_name(self, node: fx.Node) -> str:
        """The qualified name of a constant, as in ``state_dict``: ``"encoder.conv.weight"``."""
        return str(self._input_specs[node.name].target)

    def constants(self) -> dict[str, torch.Tensor]:
        """Qualified name -> tensor of every constant the graph has a placeholder for."""
        found = ((node, self.constant_value(node)) for node in self._placeholders())
        return {self.constant_name(node): value for node, value in found if value is not None}

    def constants_bytes(self) -> int:
        """Bytes of memory behind all constants the graph has a placeholder for; shared memory counts once."""
        storages = {}
        for node in self._placeholders():
            value = self.constant_value(node)
            if value is not None and value.layout == torch.strided:
                storage = value.untyped_storage()
                storages[storage._cdata] = storage.nbytes()
        return sum(storages.values())

    def _placeholders(self) -> list[fx.Node]:
        return self.graph.find_nodes(op="placeholder")

    # ---------------------------------------------------------------- editing

    def add_constant(self, name: str, value: torch.Tensor) -> fx.Node:
        """A new constant placeholder holding ``value`` (kept as it is, not copied); ``name`` is made unique."""
        target = self._unique_target(name)
        self._state[target] = value.detach()
        return self._constant_placeholder(target)

    def _constant_placeholder(self, target: str) -> fx.Node:
        with self.graph.inserting_before(self._end_of_constants()):
            node = self.graph.placeholder("c_" + target.replace(".", "_"))
        node.target = node.name
        node.meta["val"] = self.fake_mode.from_tensor(self._state[target], static_shapes=True)
        spec = InputSpec(InputKind.BUFFER, TensorArgument(node.name), target, persistent=True)
        self._input_specs[node.name] = spec
        self.made.append(node)
        return node

    def _list_names(self) -> None:
        if not self._taken:
            self._taken.update(dict.fromkeys((str(spec.target) for spec in self._input_specs.values()), 0))
            self._taken.update(dict.fromkeys(self._state, 0))

    def _unique_target(self, name: str) -> str:
        """``name``, with a number where a constant has that name already."""
        self._list_names()
        target = name
        while target in self._taken:
            self._taken[name] = self._taken.get(name, 0) + 1
            target = f"{name}_{self._taken[name]}"
        self._taken[target] = 0
        return target

    def _end_of_constants(self) -> fx.Node:
        """The first node that is not a constant; remembered, since thousands of constants may be added before it."""
        node = self._first_input
        if node is None or node._erased or not (node.prev.op == "root" or self.is_constant(node.prev)):
            node = next(n for n in self.graph.nodes if not self.is_constant(n))
        self._first_input = node
        return node

    def insert(
        self,
        target: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any] | None = None,
        *,
        before: fx.Node,
        like: fx.Node | None = None,
    ) -> fx.Node:
        """A new call of ``target`` just before the node ``before``.

        ``target`` is an operator (``torch.ops.aten.add.Tensor``), or a packet of overloads (``torch.ops.aten.add``),
        of which the one that takes the arguments is called.
        Its ``meta["val"]`` is computed from its arguments (symbolic sizes kept); its module path and source line are
        those of ``like`` (default: ``before``).

        Raises VerifyError when the operator refuses the shapes or dtypes of its arguments.
        """
        if isinstance(target, OpOverloadPacket):
            target = resolve_overload(target, args, kwargs or {})
        graph = before.graph  # that of a branch, where ``before`` is in one
        with graph.inserting_before(before):
            node = graph.call_function(target, args, kwargs or {})
        origin = (like or before).meta
        node.meta.update((k, origin[k]) for k in ("nn_module_stack", "stack_trace", "custom") if k in origin)
        try:
            node.meta["val"] = self.propagate(node)
        except Exception as error:
            graph.erase_node(node)
            raise VerifyError(f"{target} does not accept its arguments: {error}") from error
        self.made.append(node)
        return node

    def replace(self, old: fx.Node, new: fx.Node) -> None:
        """Every use of ``old`` becomes a use of ``new``; ``old`` is erased.

        Raises VerifyError when shape or dtype would change, so that ``meta["val"]`` of all later nodes stays true,
        and when ``new`` reads ``old``, which would then read itself.
        """
        if old in new._input_nodes:
            raise VerifyError(
                f"{new.name} cannot stand for {old.name}, which it reads; use old.replace_all_uses_with(new, "
                f"delete_user_cb=lambda user: user is not new), made at {source_line(old) or 'an unknown line'}"
            )
        check_same_value(old, new)
        old.replace_all_uses_with(new)
        if "custom" in old.meta and new.op != "placeholder":
            new.meta.setdefault("custom", old.meta["custom"])
        old.graph.erase_node(old)

    def erase(self, node: fx.Node) -> None:
        """Erases a call whose result nothing reads. Raises VerifyError when something does, or when it is no call."""
        if node.op not in ("call_function", "get_attr") or node.users:
            why = f"is read by {', '.join(n.name for n in node.users)}" if node.users else f"is a {node.op}, not a call"
            raise VerifyError(f"{node.name} cannot be erased: it {why}; made at {source_line(node) or 'no known line'}")
        node.graph.erase_node(node)

    def erase_dead(self) -> int:
        """Removes calls whose result nothing reads, then constants nothing reads; the inputs stay. Returns the count.

        Assertions and constraints, which return nothing, are kept for a pass that removes them on purpose. In branches
        and loop bodies the same is done, and results and operands of a branch that nothing reads go.
        """
        before = self._size()
        erase_dead(self._root, self.graph)
        dead = [node for node in self._placeholders() if not node.users and self.is_constant(node)]
        specs = [self._input_specs.pop(node.name) for node in dead]
        for node in dead:
            self.graph.erase_node(node)
        live = {spec.target for spec in self._input_specs.values()} if dead else set()
        for target in {spec.target for spec in specs} - live:
            self._state.pop(str(target), None)
            self._constants.pop(str(target), None)
        return before - self._size()

    def _size(self) -> int:
        return sum(len(graph.nodes) for _, _, graph in self.graphs())

    # ---------------------------------------------------------------- values and shapes

    @property
    def fake_mode(self) -> FakeTensorMode:
        """The mode in which every ``meta["val"]`` lives, with its symbolic sizes."""
        return self._values.mode

    def propagate(self, node: fx.Node) -> Any:
        """The value (shape, dtype) that ``node`` has, computed from the values of its arguments.

        Calls with arguments of the same form have one and the same value object.
        """
        return self._values.value(node)

    def run(self, *inputs: torch.Tensor, watch: Watch | None = None) -> tuple[Any, ...]:
        """Runs the graph operator by operator in eager PyTorch on the flat ``inputs``; returns the flat outputs.

        ``watch(node, args, kwargs, result)`` is called after each call of the graph, not for those inside of branches.
        """
        feed = iter(inputs)
        args = []
        for node in self._placeholders():
            value = self.constant_value(node)
            args.append(next(feed) if value is None else value)
        with torch.no_grad():
            result: tuple[Any, ...] = Watched(self._root, self.graph, watch).run(*args)
        return result

    # ---------------------------------------------------------------- whole programs

    def clone(self) -> Program:
        """An independent program over the same tensors: what a pass does to one is not seen by the other."""
        twin = copy.copy(self)
        twin.graph = copy_graph(self.graph)
        twin._root = copy_root(self._root, twin.graph)
        twin._first_input = None
        twin._taken = dict(self._taken)
        twin.notes = list(self.notes)
        twin.made = []
        twin._input_specs = dict(self._input_specs)
        twin._output_specs = list(self._output_specs)
        twin._state = dict(self._state)
        twin._constants = dict(self._constants)
        return twin

    def without_unread_inputs(self, names: Collection[str] | None = None) -> Program:
        """A clone whose inputs are those that something reads; ``signature.unread`` lists the others.

        With ``names`` only inputs among those are left out.
        """
        nodes = zip(self.signature.inputs, self.input_nodes, strict=True)
        unread = [not node.users and (names is None or spec.name in names) for spec, node in nodes]
        twin = self.clone()
        if not any(unread) or all(unread):
            return twin
        for node in [node for node, left_out in zip(twin.input_nodes, unread, strict=True) if left_out]:
            twin._input_specs.pop(node.name)
            twin.graph.erase_node(node)
        pairs = list(zip(self.signature.inputs, unread, strict=True))
        twin.signature = replace(
            self.signature,
            inputs=tuple(spec for spec, is_unread in pairs if not is_unread),
            unread=tuple(spec for spec, is_unread in pairs if is_unread),
        )
        whole, *rest = self._module_call_graph  # the first entry is the model itself: how its arguments nest
        assert whole.signature is not None
        given = [TensorArgument(node.name) for node in twin.input_nodes]
        call = replace(
            whole.signature,
            inputs=given,
            in_spec=pytree.tree_structure((tuple(given), {})),
            forward_arg_names=None,
        )
        twin._module_call_graph = [replace(whole, signature=call), *rest]
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> Program:
        """A clone with constants of its own; values and symbols are shared, as between all clones."""
        twin = self.clone()
        twin._state = copy.deepcopy(self._state, memo)
        twin._constants = copy.deepcopy(self._constants, memo)
        return twin

    def verify(self) -> None:
        """Checks the invariants: graph lint, signature, constants, a ``meta["val"]`` on every call.

        Raises VerifyError naming the first node that breaks one.
        """
        for path, module, graph in self.graphs():
            where = f" in {path}" if path else ""
            try:
                graph.lint()
            except RuntimeError as error:
                raise VerifyError(f"the graph{where} is not well formed: {error}") from error
            for node in graph.nodes:
                if node.op == "call_function" and "val" not in node.meta:
                    raise VerifyError(f'{node.name} ({node.target}){where} has no meta["val"]; use Program.insert')
            for call in control_flow(graph):
                check_call(module, call)
        for node in self._placeholders():
            if node.name not in self._input_specs:
                raise VerifyError(f"placeholder {node.name} is neither an input nor a constant of the program")
            if self.is_constant(node) and self.constant_value(node) is None:
                raise VerifyError(f"constant {node.name} has no value")
        counts = (len(self.input_nodes), len(self.output_nodes))
        if counts != (len(self.signature.inputs), len(self.signature.outputs)):
            raise VerifyError(f"the graph has {counts} inputs and outputs, its signature says otherwise")

    def to_exported(self) -> ExportedProgram:
        """The program as a ``torch.export.ExportedProgram`` of its own, over the same tensors."""
        module = self.graph_module
        inputs = [self._input_specs[n.name] for n in module.graph.find_nodes(op="placeholder")]
        outputs = [
            OutputSpec(spec.kind, TensorArgument(node.name), spec.target)
            for spec, node in zip(self._output_specs, self.output_nodes, strict=True)
        ]
        live = {str(spec.target) for spec in inputs if spec.kind in CONSTANT_KINDS}
        return ExportedProgram(
            root=module,
            graph=module.graph,
            graph_signature=ExportGraphSignature(input_specs=inputs, output_specs=outputs),
            state_dict={k: v for k, v in self._state.items() if k in live},
            range_constraints=self._ranges(),
            module_call_graph=self._calls(),
            constants={k: v for k, v in self._constants.items() if k in live},
            verifiers=self._verifiers,
        )

    def _calls(self) -> list[ModuleCallEntry]:
        """How the model was called, with the outputs of now: a rewrite may have put another node in the place of one."""
        whole, *rest = self._module_call_graph
        nodes = self.output_nodes
        if whole.signature is None or len(whole.signature.outputs) != len(nodes):
            return list(self._module_call_graph)
        outputs = [
            replace(given, name=node.name) if isinstance(given, TensorArgument) else given
            for given, node in zip(whole.signature.outputs, nodes, strict=True)
        ]
        return [replace(whole, signature=replace(whole.signature, outputs=outputs)), *rest]

    def _ranges(self) -> dict[Any, Any]:
        """Symbolic size -> its range; a branch that was built after capture has unknown sizes of its own."""
        env = self.fake_mode.shape_env
        nodes = (node for _, _, graph in self.graphs() for node in graph.nodes)
        unknown = {symbol for node in nodes for symbol in node.meta.get("unbacked_bindings") or ()}
        found = {symbol: env.var_to_range[symbol] for symbol in unknown if env and symbol in env.var_to_range}
        return {**found, **self._range_constraints}

    def __str__(self) -> str:
        inputs = ", ".join(f"{s.name}{list(s.axes)}" for s in self.signature.inputs)
        outputs = ", ".join(f"{s.name}{list(s.axes)}" for s in self.signature.outputs)
        head = f"Program({inputs}) -> ({outputs}), {self.node_count()} nodes"
        graphs = [f"{path}: {graph}" if path else str(graph) for path, _, graph in self.graphs()]
        return "\n".join([head, *(f"  note: {note}" for note in self.notes), *graphs])


__all__ = ["CONSTANT_KINDS", "Program", "check_same_value", "module_path", "same_size", "source_line"]
