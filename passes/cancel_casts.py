"""Of several conversions of dtype in a row one is enough where nothing is lost on the way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from fxexport.ops import looks_at_memory
from fxexport.program import Program
from fxexport.rewrite import NodePass, arguments

aten = torch.ops.aten
CASTS = (
    *(aten.to.dtype, aten.to.device, aten.to.dtype_layout, aten.to.other, aten._to_copy.default),
    *(aten.to.prim_Device, aten.to.prim_dtype, aten.to.prim_other, aten.type_as.default),
)
F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
U8, I8, I16, I32, I64 = torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64
LOSSLESS: dict[torch.dtype, frozenset[torch.dtype]] = {
    torch.bool: frozenset((U8, I8, I16, I32, I64, F16, BF16, F32, F64)),
    **{U8: frozenset((I16, I32, I64, F16, BF16, F32, F64)), I8: frozenset((I16, I32, I64, F16, BF16, F32, F64))},
    **{I16: frozenset((I32, I64, F32, F64)), I32: frozenset((I64, F64))},
    **{F16: frozenset((F32, F64)), BF16: frozenset((F32, F64)), F32: frozenset((F64,))},
}
"""dtype -> the dtypes that have each of its values."""


@dataclass(frozen=True)
class CancelCasts(NodePass):
    """``to(to(x, b), c) -> to(x, c)``, or ``x`` where it has dtype ``c``, for a ``b`` that holds every value of ``x``.

    Exact: widening loses nothing, so the second conversion sees the numbers of ``x`` (float16 to float32 to float16, bool
    to int64 to bool). The other way round, float32 to float16 to float32, is a rounding that somebody wanted: it stays.
    """

    name: ClassVar[str] = "cancel-casts"
    default: ClassVar[bool] = True
    repeats: ClassVar[bool] = True
    targets: ClassVar = CASTS

    def rewrite(self, program: Program, node: fx.Node) -> fx.Node | str | None:
        """The conversion of what the first one is applied to."""
        inner: Any = node.args[0]
        if not isinstance(inner, fx.Node) or inner.target not in CASTS or not isinstance(inner.args[0], fx.Node):
            return None
        source = inner.args[0]
        values: list[Tensor] = [n.meta["val"] for n in (source, inner, node)]
        first, between, last = (value.dtype for value in values)
        if first == between or not (_is_plain(inner, values[0], values[1]) and _is_plain(node, values[1], values[2])):
            return None
        if between not in LOSSLESS.get(first, ()):
            return f"{str(between)[6:]} does not hold every value of {str(first)[6:]}"
        if "memory" not in self.memo:
            self.memo["memory"] = looks_at_memory(program)
        if self.memo["memory"]:
            return "the program looks at strides or memory"
        if first == last:
            return source
        if len(inner.users) > 1:
            return f"{inner.name} is read elsewhere, so nothing would be saved"
        return program.insert(aten._to_copy.default, (source,), {"dtype": last}, before=node)


def _is_plain(node: fx.Node, old: Tensor, new: Tensor) -> bool:
    """Whether a call converts the dtype alone."""
    layout = arguments(node).get("memory_format")
    return layout in (None, torch.preserve_format) and (old.device, old.layout) == (new.device, new.layout)
