"""Normalizations of half-precision numbers are computed in float32, as eager PyTorch does inside, in every runtime."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from fxexport.program import Program
from fxexport.rewrite import NodePass, arguments, first_result

aten = torch.ops.aten
HALF = (torch.float16, torch.bfloat16)
NORMS = (
    aten.batch_norm.default,
    aten._native_batch_norm_legit_no_training.default,
    aten.layer_norm.default,
    aten.native_layer_norm.default,
    aten.rms_norm.default,
    aten.group_norm.default,
    aten.native_group_norm.default,
    aten.instance_norm.default,
)
SOFTMAX = (aten.softmax.int, aten.log_softmax.int, aten._softmax.default, aten._log_softmax.default)


@dataclass(frozen=True)
class AddCastsAroundNorms(NodePass):
    """``norm(half) -> _to_copy(norm(_to_copy(half, float32)), half)``, for norms and, with ``softmax``, for softmax.

    For float16 and bfloat16: batch, layer, RMS, group and instance normalization, softmax and log_softmax. Weights and
    statistics become float32 constants of the same values. PyTorch sums in float32 inside of these operators, other
    runtimes may not: mean and variance of large float16 numbers overflow, and sums lose their small terms.

    Exact up to the rounding of one result: the values are those of float32 arithmetic on the same half-precision input,
    rounded once. Never further from the float32 model than without. A softmax that is told its dtype stays.
    """

    name: ClassVar[str] = "add-casts-around-norms"
    after: ClassVar[tuple[str, ...]] = ("fold-batchnorm", "fold-affine", "cancel-casts")
    targets: ClassVar = (*NORMS, *SOFTMAX)
    softmax: bool = True

    def rewrite(self, program: Program, node: fx.Node) -> fx.Node | str | None:
        """The call on float32 copies of its operands, rounded back."""
        result = first_result(node)
        if node.target in SOFTMAX and not self.softmax:
            return None
        if result is None:
            return "its saved statistics are read"
        dtype, call = result.meta["val"].dtype, arguments(node)
        if dtype not in HALF or call.get("dtype") is not None:
            return None
        operands = {key: self._wide(program, node, value) for key, value in call.items()}
        new = program.insert(node.target, tuple(operands.values()), before=node)  # type: ignore[arg-type]
        if isinstance(new.meta["val"], tuple | list):
            new = program.insert(operator.getitem, (new, 0), before=node)
        return program.insert(aten._to_copy.default, (new,), {"dtype": dtype}, before=node)

    def _wide(self, program: Program, node: fx.Node, operand: Any) -> Any:
        """A half-precision tensor as float32; everything else as it is."""
        if not isinstance(operand, fx.Node) or not isinstance(value := operand.meta["val"], Tensor):
            return operand
        if value.dtype not in HALF:
            return operand
        if (constant := program.constant_value(operand)) is not None:
            return self.constant(program, f"{program.constant_name(operand)}_float32", constant.float())
        insert = partial(program.insert, before=node)
        return insert(aten._to_copy.default, (operand,), {"dtype": torch.float32})
