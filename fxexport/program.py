"""``Program``: a captured graph with its constants and its signature, and the few edit operations that passes need.

The graph is the *lifted, functional* ATen graph of ``torch.export``: no operator writes into its arguments, and every
parameter, buffer and constant is a placeholder. Tensors are shared with the captured model and never written to.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.export import ExportedProgram
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputSpec,
    TensorArgument,
)
from torch.fx.experimental.symbolic_shapes import statically_known_true

from fxexport.errors import VerifyError
from fxexport.shape_rules import shape_rules
from fxexport.signature import Signature, unique_names

CONSTANT_KINDS = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)


class Program:
    """A captured model, ready to be rewritten.

    Attributes:
        graph_module: the lifted graph; placeholders are constants first, then the inputs of ``signature`` in order.
        signature: names, dtypes and axes of the flat inputs and outputs.
        notes: what capture assumed, fixed or dropped, in plain words; printed in every report.
    """

    def __init__(self, exported: ExportedProgram, signature: Signature, notes: Sequence[str] = ()) -> None:
        self.graph_module: fx.GraphModule = exported.graph_module
        self.signature = signature
        self.notes = list(notes)
        self._input_specs = {spec.arg.name: spec for spec in exported.graph_signature.input_specs}
        self._output_specs = list(exported.graph_signature.output_specs)
        self._state: dict[str, torch.Tensor] = dict(exported.state_dict)
        self._constants: dict[str, Any] = dict(exported.constants)
        self._range_constraints = exported.range_constraints
        self._module_call_graph = exported.module_call_graph
        self._verifiers = exported.verifiers
        for node in self.graph.nodes:
            if node.op == "call_function":
                node.meta.setdefault("val", None)  # assertions return nothing

    # ---------------------------------------------------------------- reading

    @property
    def graph(self) -> fx.Graph:
        """The graph itself, for passes that walk it."""
        return self.graph_module.graph

    @property
    def input_nodes(self) -> list[fx.Node]:
        """The placeholders of the flat inputs, in the order of ``signature.inputs``."""
        return [
            n
            for n in self.graph.nodes
            if n.op == "placeholder" and self._input_specs[n.name].kind == InputKind.USER_INPUT
        ]

    @property
    def output_nodes(self) -> list[fx.Node]:
        """The nodes returned, in the order of ``signature.outputs`` (one node may be returned twice)."""
        return list(self.graph.output_node().args[0])  # type: ignore[arg-type]

    def find(self, *targets: Any) -> Iterator[fx.Node]:
        """Every call of one of ``targets`` (ATen operators), in graph order; safe while editing."""
        wanted = set(targets)
        for node in list(self.graph.nodes):
            if node.op == "call_function" and node.target in wanted and not node._erased:
                yield node

    def node_count(self) -> int:
        """How many operator calls the graph has."""
        return sum(1 for n in self.graph.nodes if n.op == "call_function")

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
        found = ((node, self.constant_value(node)) for node in self.graph.nodes)
        return {self.constant_name(node): value for node, value in found if value is not None}

    # ---------------------------------------------------------------- editing

    def add_constant(self, name: str, value: torch.Tensor) -> fx.Node:
        """A new constant placeholder holding ``value`` (kept as it is, not copied); ``name`` is made unique."""
        taken = {str(spec.target) for spec in self._input_specs.values()} | set(self._state)
        (target,) = unique_names([name], taken)
        first_input = next((n for n in self.graph.nodes if not self.is_constant(n)), None)
        assert first_input is not None, "a graph always has an output node"
        with self.graph.inserting_before(first_input):
            node = self.graph.placeholder("c_" + target.replace(".", "_"))
        node.target = node.name
        node.meta["val"] = self.fake_mode.from_tensor(value.detach(), static_shapes=True)
        spec = InputSpec(InputKind.BUFFER, TensorArgument(node.name), target, persistent=True)
        self._input_specs[node.name] = spec
        self._state[target] = value.detach()
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

        Its ``meta["val"]`` is computed from its arguments (symbolic sizes kept); its module path and source line are
        those of ``like`` (default: ``before``).

        Raises VerifyError when the operator refuses the shapes or dtypes of its arguments.
        """
        with self.graph.inserting_before(before):
            node = self.graph.call_function(target, args, kwargs or {})
        origin = (like or before).meta
        node.meta = {k: origin[k] for k in ("nn_module_stack", "stack_trace", "custom") if k in origin}
        try:
            node.meta["val"] = self.propagate(node)
        except Exception as error:
            self.graph.erase_node(node)
            raise VerifyError(f"{target} does not accept its arguments: {error}") from error
        return node

    def replace(self, old: fx.Node, new: fx.Node) -> None:
        """Every use of ``old`` becomes a use of ``new``; ``old`` is erased.

        Raises VerifyError when shape or dtype would change, so that ``meta["val"]`` of all later nodes stays true.
        """
        check_same_value(old, new)
        old.replace_all_uses_with(new)
        if "custom" in old.meta and new.op != "placeholder":
            new.meta.setdefault("custom", old.meta["custom"])
        self.graph.erase_node(old)

    def erase_dead(self) -> int:
        """Removes calls whose result nothing reads, then constants nothing reads; the inputs stay. Returns the count."""
        before = len(self.graph.nodes)
        for node in reversed(list(self.graph.nodes)):
            if node.op in ("call_function", "get_attr") and not node.users and not _has_effect(node):
                self.graph.erase_node(node)
        for node in list(self.graph.nodes):
            if self.is_constant(node) and not node.users:
                self._drop_constant(node)
        return before - len(self.graph.nodes)

    def _drop_constant(self, node: fx.Node) -> None:
        spec = self._input_specs.pop(node.name)
        self.graph.erase_node(node)
        if all(other.target != spec.target for other in self._input_specs.values()):
            self._state.pop(str(spec.target), None)
            self._constants.pop(str(spec.target), None)

    # ---------------------------------------------------------------- values and shapes

    @property
    def fake_mode(self) -> FakeTensorMode:
        """The mode in which every ``meta["val"]`` lives, with its symbolic sizes."""
        for node in self.graph.nodes:
            value = node.meta.get("val")
            if isinstance(value, FakeTensor):
                return value.fake_mode
        return FakeTensorMode()

    def propagate(self, node: fx.Node) -> Any:
        """The value (shape, dtype) that ``node`` has, computed from the values of its arguments."""
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
        assert callable(node.target)
        # Composite operators in C++ ask for plain sizes, which would fix the symbolic ones; their Python kernels do not.
        with self.fake_mode, enable_python_dispatcher(), shape_rules(), torch.no_grad():
            return node.target(*args, **kwargs)

    def run(self, *inputs: torch.Tensor) -> tuple[Any, ...]:
        """Runs the graph operator by operator in eager PyTorch on the flat ``inputs``; returns the flat outputs."""
        feed = iter(inputs)
        args = []
        for node in self.graph.find_nodes(op="placeholder"):
            value = self.constant_value(node)
            args.append(next(feed) if value is None else value)
        with torch.no_grad():
            result: tuple[Any, ...] = fx.Interpreter(self.graph_module).run(*args)
        return result

    # ---------------------------------------------------------------- whole programs

    def clone(self) -> Program:
        """An independent program over the same tensors: what a pass does to one is not seen by the other."""
        twin = copy.copy(self)
        twin.graph_module = copy.deepcopy(self.graph_module)
        twin.notes = list(self.notes)
        twin._input_specs = dict(self._input_specs)
        twin._output_specs = list(self._output_specs)
        twin._state = dict(self._state)
        twin._constants = dict(self._constants)
        return twin

    def verify(self) -> None:
        """Checks the invariants: graph lint, signature, constants, a ``meta["val"]`` on every call.

        Raises VerifyError naming the first node that breaks one.
        """
        try:
            self.graph.lint()
        except RuntimeError as error:
            raise VerifyError(f"the graph is not well formed: {error}") from error
        for node in self.graph.nodes:
            if node.op == "placeholder" and node.name not in self._input_specs:
                raise VerifyError(f"placeholder {node.name} is neither an input nor a constant of the program")
            if node.op == "call_function" and "val" not in node.meta:
                raise VerifyError(f'{node.name} ({node.target}) has no meta["val"]; use Program.insert')
            if self.is_constant(node) and self.constant_value(node) is None:
                raise VerifyError(f"constant {node.name} has no value")
        counts = (len(self.input_nodes), len(self.output_nodes))
        if counts != (len(self.signature.inputs), len(self.signature.outputs)):
            raise VerifyError(f"the graph has {counts} inputs and outputs, its signature says otherwise")

    def to_exported(self) -> ExportedProgram:
        """The program as a ``torch.export.ExportedProgram`` of its own, over the same tensors."""
        module = copy.deepcopy(self.graph_module)
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
            range_constraints=self._range_constraints,
            module_call_graph=self._module_call_graph,
            constants={k: v for k, v in self._constants.items() if k in live},
            verifiers=self._verifiers,
        )

    def __str__(self) -> str:
        inputs = ", ".join(f"{s.name}{list(s.axes)}" for s in self.signature.inputs)
        outputs = ", ".join(f"{s.name}{list(s.axes)}" for s in self.signature.outputs)
        head = f"Program({inputs}) -> ({outputs}), {self.node_count()} nodes"
        return "\n".join([head, *(f"  note: {note}" for note in self.notes), str(self.graph)])


def module_path(node: fx.Node) -> str:
    """The qualified name of the user's module that made ``node``: ``"encoder.layer.0.attention"``; '' for the root."""
    stack = node.meta.get("nn_module_stack") or {}
    return str(list(stack.values())[-1][0]) if stack else ""


def source_line(node: fx.Node) -> str:
    """``file:line`` of the innermost line of user code that made ``node``, or '' where none was recorded."""
    frames = [line.strip() for line in (node.meta.get("stack_trace") or "").splitlines()]
    places = [line.split('"')[1] + ":" + line.split("line ")[1].split(",")[0] for line in frames if line[:5] == "File "]
    own = [place for place in places if "/torch/" not in place]
    return (own or places or [""])[-1]


def check_same_value(old: fx.Node, new: fx.Node) -> None:
    """Raises VerifyError unless the tensors of two nodes agree in dtype and (symbolic) shape."""
    a, b = old.meta.get("val"), new.meta.get("val")
    if not isinstance(a, torch.Tensor) or not isinstance(b, torch.Tensor):
        return
    same = a.dtype == b.dtype and a.dim() == b.dim()
    if not same or not all(statically_known_true(m == n) for m, n in zip(a.shape, b.shape, strict=True)):
        raise VerifyError(
            f"{new.name} {b.dtype}{tuple(b.shape)} cannot stand for {old.name} {a.dtype}{tuple(a.shape)}"
            f" made at {source_line(old) or 'an unknown line'}"
        )


def _has_effect(node: fx.Node) -> bool:
    """Assertions and constraints return nothing and are kept for a pass that removes them on purpose."""
    return node.is_impure()
