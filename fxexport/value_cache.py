"""Shapes and dtypes of operator calls, computed once for each operator and form of arguments.

Running an operator on symbolic tensors costs a third of a millisecond. A rewrite that makes the same call in ten thousand
places needs its shape once: what an operator returns depends only on the form of its arguments, signed here exactly.
"""

from __future__ import annotations

import operator
import types
from typing import Any

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.utils import _pytree as pytree

from fxexport.shape_rules import shape_rules

_LITERALS = frozenset(
    (int, bool, str, types.NoneType, torch.dtype, torch.device, torch.layout, torch.memory_format, types.EllipsisType)
)
_SYMBOLS = frozenset((torch.SymInt, torch.SymFloat, torch.SymBool))
_MISSING = object()


class _Unsigned(Exception):
    """An argument whose form cannot be written down exactly."""


class ValueCache:
    """The values (fake tensors and sizes in ``mode``) of operator calls, shared by a program and its clones.

    Calls with arguments of one form have one and the same value. A value that a data-dependent operator reads is
    taken apart first, since fake tensors remember the unknown size that ``nonzero`` made of them: two tensors of
    equal shape need not have equally many elements that are not zero. Fake tensors that are views do not tell, by
    their storage, what they are views of.
    """

    def __init__(self, mode: FakeTensorMode) -> None:
        self.mode = mode
        self._values: dict[Any, Any] = {}
        self._shared: set[int] = set()  # ids of tensors in _values, which keeps them alive
        self._forms: dict[int, tuple[FakeTensor, int]] = {}  # by id; the tensor is kept so that its id stays its own
        self._numbers: dict[Any, int] = {}

    def value(self, node: fx.Node) -> Any:
        """What the call ``node`` returns for the ``meta["val"]`` of its arguments; raises what the operator raises."""
        target = node.target
        if target is operator.getitem and not node.kwargs and isinstance(node.args[0], fx.Node):
            whole = node.args[0].meta["val"]
            if isinstance(whole, (tuple, list)):
                return whole[node.args[1]]  # type: ignore[index]
        # Under autocast an operator returns another dtype, and one that writes into its arguments is not a function.
        if not isinstance(target, OpOverload) or target._schema.is_mutable or torch._C._is_any_autocast_enabled():
            return self._compute(node)
        try:
            key = (target, torch.get_default_dtype(), self._sign(node.args), self._sign_named(node.kwargs))
        except _Unsigned:
            return self._compute(node)
        value = self._values.get(key, _MISSING)
        return self._learn(node, key) if value is _MISSING else value

    def _learn(self, node: fx.Node, key: Any) -> Any:
        value = self._compute(node)
        if free_unbacked_symbols(pytree.tree_leaves(value)):
            if self._part(node):
                value = self._compute(node)
            return value
        leaves = pytree.tree_leaves(value)
        given = {id(leaf) for n in node.all_input_nodes for leaf in pytree.tree_leaves(n.meta["val"])}
        # An argument returned as it is (`contiguous`) belongs to its own node.
        if all(self._can_sign(leaf) and id(leaf) not in given for leaf in leaves):
            self._values[key] = value
            self._shared.update(id(leaf) for leaf in leaves if isinstance(leaf, FakeTensor))
        return value

    def _part(self, node: fx.Node) -> bool:
        """Gives the arguments of ``node`` fake tensors that are theirs alone; whether one was not."""
        found = False
        for argument in node.all_input_nodes:
            value = argument.meta["val"]
            if any(id(leaf) in self._shared for leaf in pytree.tree_leaves(value)):
                with self.mode, torch.no_grad():
                    own = pytree.tree_map_only(FakeTensor, lambda t: t.detach(), value)
                argument.meta["val"], found = own, True
        return found

    def _compute(self, node: fx.Node) -> Any:
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
        assert callable(node.target)
        # Composite operators in C++ ask for plain sizes, which would fix the symbolic ones; their Python kernels do not.
        with self.mode, enable_python_dispatcher(), shape_rules(), torch.no_grad():
            return node.target(*args, **kwargs)

    # ---------------------------------------------------------------- forms of arguments

    def _sign(self, value: Any) -> Any:
        """A key that is equal for values of one form only: ``1``, ``1.0`` and ``True`` differ."""
        kind = type(value)
        if kind is fx.Node:
            value = value.meta["val"]
            kind = type(value)
        if isinstance(value, FakeTensor):
            return self._form(value)
        if kind in _LITERALS:
            return kind, value
        if kind is float:
            return float, value.hex()  # 0.0 == -0.0, and nan != nan
        if kind in _SYMBOLS:
            return kind, self._expression(value)
        if isinstance(value, tuple):
            return tuple, *map(self._sign, value)
        if isinstance(value, list):
            return list, *map(self._sign, value)
        raise _Unsigned

    def _sign_named(self, kwargs: dict[str, Any]) -> Any:
        return tuple((name, self._sign(value)) for name, value in kwargs.items()) if kwargs else ()

    def _can_sign(self, value: Any) -> bool:
        try:
            self._sign(value)
        except _Unsigned:
            return False
        return True

    def _form(self, tensor: FakeTensor) -> int:
        """The number of the form of ``tensor``: everything that an operator can ask it except its elements."""
        known = self._forms.get(id(tensor))
        if known is not None:
            return known[1]
        number = self._numbers.setdefault(self._describe(tensor), len(self._numbers))
        self._forms[id(tensor)] = (tensor, number)
        return number

    def _describe(self, tensor: FakeTensor) -> Any:
        plain = tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_nested
        if not plain or tensor.fake_mode is not self.mode or tensor.constant is not None:
            raise _Unsigned
        if getattr(tensor, "real_tensor", None) is not None:
            raise _Unsigned
        # A size that was fixed since is still described by its symbol: less is shared, nothing is wrong.
        sizes = (*tensor.shape, *tensor.stride(), tensor.storage_offset(), tensor.untyped_storage().nbytes())
        flags = (tensor.requires_grad, tensor.is_conj(), tensor.is_neg(), tensor.is_inference())
        kind = (type(tensor), tensor.dtype, tensor.device, tensor.dim())
        return *kind, *flags, *(s if type(s) is int else self._expression(s) for s in sizes)

    def _expression(self, value: Any) -> Any:
        node = value.node
        if getattr(node, "shape_env", None) is not self.mode.shape_env or node.is_nested_int():
            raise _Unsigned
        return node.expr
