"""A TorchScript module in the place of a module: one operator for capture and passes, itself again in a ``.pt`` file.

    y = GatedBlock(x)  ->  [y] = fxexport_script::call([x], 7, 0)  ->  y = self.scripted_block(x)

So its control flow stays in the file. Eager PyTorch, which judges the file, runs the module it was made from.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv, free_unbacked_symbols
from torch.utils import _pytree as pytree

from fxexport.capture.exporting import user_line
from fxexport.capture.nesting import describe, flatten
from fxexport.errors import CaptureError, ExportError, InputError
from fxexport.exportable.decisions import on_every_path
from fxexport.program import same_size

_WAY_OUT = (
    "Ways out: leave this class out of replacements, or move the part whose result has one size into a module of its own "
    "and replace that one"
)


@dataclass
class CallForm:
    """How the tensors of one call nest in its arguments, and its results in what it returns.

    Attributes:
        fixed: the leaves of the arguments; None for each tensor, and for None itself.
        keys: index or key of each result in the tuple, list or dict returned; None: one tensor is returned.
    """

    spec: pytree.TreeSpec
    fixed: list[Any]
    is_tensor: list[bool]
    keys: list[int | str] | None = None
    result: pytree.TreeSpec | None = None

    def arguments(self, tensors: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """``args, kwargs`` with ``tensors``, or graph nodes that stand for them, in their places."""
        feed = iter(tensors)
        leaves = [next(feed) if here else value for here, value in zip(self.is_tensor, self.fixed, strict=True)]
        args, kwargs = pytree.tree_unflatten(leaves, self.spec)
        return args, kwargs


class Script:
    """A TorchScript module, the module it was made from and the forms of its calls; copies of a model share it."""

    def __init__(self, module: torch.jit.ScriptModule, eager: nn.Module, path: str) -> None:
        self.module, self.eager, self.path = module, eager, path
        self.forms: list[CallForm] = []
        self.number = next(_NUMBERS)
        _SCRIPTS[self.number] = self

    def __deepcopy__(self, memo: dict[int, Any]) -> Script:
        return self

    @property
    def name(self) -> str:
        """For messages: ``"encoder.block (GatedBlock)"``."""
        return f"{self.path} ({type(self.eager).__name__})"


_NUMBERS = itertools.count()
_SCRIPTS: weakref.WeakValueDictionary[int, Script] = weakref.WeakValueDictionary()


def script_of(number: int) -> Script:
    """The script behind the number in a call; it lives as long as the model it stands in, or a copy of that."""
    return _SCRIPTS[number]


@contextmanager
def annotations_kept(module: nn.Module) -> Iterator[None]:
    """``torch.jit.script`` gives every class of the modules in ``module`` that has no annotations an empty dict of them."""
    classes = {cls for each in module.modules() for cls in type(each).__mro__}
    without = [cls for cls in classes if "__annotations__" not in vars(cls)]
    try:
        yield
    finally:
        for cls in without:
            if vars(cls).get("__annotations__") == {}:
                del cls.__annotations__


class ScriptedModule(nn.Module):
    """Runs ``eager``, and is one call of :data:`CALL` while torch.export looks."""

    def __init__(self, eager: nn.Module, module: torch.jit.ScriptModule, path: str) -> None:
        """``path``: where it stands in the model. Raises InputError for a ``module`` that is no function."""
        super().__init__()
        self.eager = eager
        for parameter in module.eval().parameters():
            parameter.requires_grad_(False)
        self.script = Script(module, eager, path)
        _refuse_effects(self.script)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What ``eager`` returns."""
        if not torch.compiler.is_exporting():
            return self.eager(*args, **kwargs)
        leaves, spec = flatten((args, kwargs))
        tensors = [leaf.value for leaf in leaves if leaf.is_tensor]
        fixed = [None if leaf.is_tensor else leaf.value for leaf in leaves]
        if not tensors or not all(isinstance(each, bool | int | float | str | None) for each in fixed):
            given = ", ".join(describe(leaf.value) for leaf in leaves) or "nothing"
            raise InputError(f"{self.script.name} stays TorchScript, so it takes tensors and constants; got {given}")
        forms = self.script.forms
        forms.append(CallForm(spec, fixed, [leaf.is_tensor for leaf in leaves]))
        results = CALL(tensors, self.script.number, len(forms) - 1)
        assert forms[-1].result is not None
        return pytree.tree_unflatten(results, forms[-1].result)

    def __getattr__(self, name: str) -> Any:
        """The model may read attributes of the module that stood here."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("__") or "eager" not in self.__dict__.get("_modules", {}):
                raise
            return getattr(self.eager, name)


def _call(tensors: list[Tensor], script: int, form: int) -> list[Tensor]:
    """What the operator computes: in memory of its own, contiguous."""
    args, kwargs = script_of(script).forms[form].arguments(tensors)
    leaves, _ = flatten(script_of(script).module(*args, **kwargs))
    return [leaf.value.clone(memory_format=torch.contiguous_format) for leaf in leaves]


def _call_fake(tensors: list[Tensor], script: int, form: int) -> list[Tensor]:
    """Shapes and dtypes of the results: those that ``eager`` has on every path."""
    own, call = script_of(script), script_of(script).forms[form]
    mode = next(t.fake_mode for t in tensors if isinstance(t, FakeTensor))
    held: dict[str, Tensor] = {
        name: mode.from_tensor(tensor.detach(), static_shapes=True) for name, tensor in _tensors_of(own.eager)
    }
    args, kwargs = call.arguments(tensors)
    env = mode.shape_env
    unbound = env.ignore_fresh_unbacked_symbols() if isinstance(env, ShapeEnv) else nullcontext()
    try:
        with mode, torch.no_grad(), unbound:
            found = on_every_path(lambda: torch.func.functional_call(own.eager, held, args, kwargs))
    except ExportError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever the module raises on tensors without values: told here
        place = user_line(error)
        where = f" at {place}" if place else ""
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CaptureError(
            f"the sizes of what {own.name} returns cannot be told without the values of its inputs{where}: {reason}\n"
            f"  A decision must be on a tensor (if x.sum() > 0), not on a number read from it (.item()). {_WAY_OUT}"
        ) from None
    return _agreed(own, call, mode, tensors, found)


def _agreed(own: Script, call: CallForm, mode: FakeTensorMode, given: list[Tensor], found: list[Any]) -> list[Tensor]:
    """New tensors of the form that all results in ``found`` have."""
    results = [flatten(each) for each in found]
    leaves, spec = results[0]
    nested = type(found[0]) in (tuple, list, dict) and all(len(leaf.path) == 1 for leaf in leaves)
    if not (nested or isinstance(found[0], Tensor)) or not all(leaf.is_tensor for leaf in leaves):
        raise InputError(
            f"{own.name} stays TorchScript, so it must return a tensor, or a tuple, list or dict of tensors; it returns "
            f"{describe(found[0])}"
        )
    first = [leaf.value for leaf in leaves]
    for others, other_spec in results[1:]:
        values = [leaf.value for leaf in others]
        if other_spec != spec or not all(map(_same_form, first, values)):
            raise CaptureError(
                f"{own.name} returns {_show(first)} or {_show(values)}, by the values of its inputs; an exported model "
                f"has one form of results\n  {_WAY_OUT}"
            )
    if free_unbacked_symbols(first) - free_unbacked_symbols(given):
        raise CaptureError(f"{own.name} returns {_show(first)}: sizes made by the values of its inputs\n  {_WAY_OUT}")
    call.result, call.keys = spec, [leaf.path[0] for leaf in leaves] if nested else None
    with mode:
        return [torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in first]


def _same_form(a: Any, b: Any) -> bool:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return False
    same = a.dtype == b.dtype and a.device == b.device and a.dim() == b.dim()
    return same and all(map(same_size, a.shape, b.shape))


def _show(values: list[Any]) -> str:
    return ", ".join(f"{t.dtype}{list(t.shape)}" if isinstance(t, Tensor) else describe(t) for t in values)


def _tensors_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def _refuse_effects(own: Script) -> None:
    """Raises InputError where the TorchScript module writes into its arguments or its own state, or draws random numbers.

    Judged on its code as it is in eval mode, all branches.
    """
    frozen = own.module
    if hasattr(frozen, "training"):  # else it is frozen already
        frozen = torch.jit.freeze(frozen, optimize_numerics=False)
    graph = frozen.inlined_graph
    aliases: Any = graph.alias_db()
    inside = list(_nodes(graph))
    given = [*graph.inputs(), *(out for n in inside if n.kind() in _HELD for out in n.outputs())]
    written = [value.debugName() for value in given if aliases.has_writers(value)]
    written += [node.s("name") for node in inside if node.kind() == "prim::SetAttr"]
    random = [node.kind() for node in inside if node.isNondeterministic()]
    if written or random:
        what = f"writes into {written[0]!r}" if written else f"draws random numbers ({random[0]})"
        raise InputError(
            f"{own.name} cannot stay TorchScript: it {what}, and an artifact gives the same for the same inputs, without a "
            "trace. Change its code, or leave this class out of replacements"
        )


_HELD = ("prim::GetAttr", "prim::Constant")


def _nodes(block: Any) -> Iterator[Any]:
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from _nodes(inner)


_definition = torch.library.custom_op(
    "fxexport_script::call",
    _call,
    mutates_args=(),
    schema="(Tensor[] tensors, int script, int form) -> Tensor[]",
)
_definition.register_fake(_call_fake)
CALL = torch.ops.fxexport_script.call.default
"""``(tensors, number of a Script, index of one of its forms) -> its results, flat``."""
