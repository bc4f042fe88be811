"""Which rule each operator has."""

from __future__ import annotations

from typing import Any

import torch

from fxexport.ops import complex_pair as cp
from fxexport.ops import complex_products as products
from fxexport.ops import complex_rules as rules
from fxexport.ops.complex_call import DATA, Call, Result, Rule
from fxexport.ops.complex_fourier import RULES as FOURIER
from fxexport.ops.complex_pair import Pair
from fxexport.ops.complex_rules import of_one, of_two

aten = torch.ops.aten

# They move or add up elements, and do so with both parts alike.
_STRUCTURAL = """
    transpose permute t numpy_T mT swapaxes swapdims movedim moveaxis reshape flatten unflatten ravel squeeze unsqueeze
    select slice narrow expand broadcast_to broadcast_tensors roll flip fliplr flipud rot90 repeat tile repeat_interleave
    sum mean cumsum trace diff index index_select gather take take_along_dim unfold diagonal diag diagflat diag_embed
    tril triu split split_with_sizes chunk tensor_split hsplit vsplit dsplit unbind unsafe_chunk unsafe_split
    unsafe_split_with_sizes 
    cat concat concatenate stack
    reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d
    replication_pad2d replication_pad3d atleast_1d atleast_2d atleast_3d nan_to_num fft_fftshift fft_ifftshift
    _unsafe_index block_diag combinations meshgrid expand_as view_as reshape_as
"""
_SAME = """
    clone contiguous detach alias lift_fresh lift_fresh_copy resolve_conj resolve_neg positive _lazy_clone
    view_as_complex_copy
"""
# Whose elements are taken from these arguments too.
_ALSO = {
    **dict.fromkeys(("where",), "other"),
    **dict.fromkeys(("scatter", "scatter_add"), "src value"),
    **dict.fromkeys(("slice_scatter", "select_scatter", "diagonal_scatter", "copy"), "src"),
    **dict.fromkeys(("index_put", "_unsafe_index_put"), "values"),
    **dict.fromkeys(("index_add", "index_copy", "masked_scatter"), "source"),
    **dict.fromkeys(("index_fill", "masked_fill", "constant_pad_nd", "pad"), "value"),
}


def _found(names: str) -> list[Any]:
    """The operators of these names that this torch has."""
    return [getattr(aten, name) for name in names.split() if hasattr(aten, name)]


def _alike(also: str = "") -> Rule:
    data = DATA | set(also.split())
    return lambda call: call.alike(data=data)


def _reshaped(call: Call) -> Result:
    """The parts lie in memory in another order than the complex numbers: a view of those may be none of these."""
    return call.alike(aten.reshape.default)


def _size(call: Call) -> Result:
    """A size, stride or count of elements of a complex tensor is that of its real part."""
    whole = call.pair(call.args["self"]).whole()[0]
    return call.site.call(call.node.target, whole, *call.node.args[1:])


def _nothing(call: Call) -> Result:
    return None


RULES: dict[Any, Rule] = {
    **dict.fromkeys(_found(_STRUCTURAL), _alike()),
    **{getattr(aten, name): _alike(names) for name, names in _ALSO.items()},
    **dict.fromkeys((aten.view.default, aten._unsafe_view.default), _reshaped),
    **dict.fromkeys(_found(_SAME), of_one(lambda z: z)),
    **dict.fromkeys(_found("add"), lambda call: rules.total(call, sign=1)),
    **dict.fromkeys(_found("sub subtract"), lambda call: rules.total(call, sign=-1)),
    aten.rsub: rules.reversed_difference,
    **dict.fromkeys(_found("mul multiply"), of_two(lambda z, w: z * w)),
    **dict.fromkeys(_found("div divide true_divide"), rules.quotient),
    **dict.fromkeys(_found("addcmul addcdiv"), rules.added_product),
    **dict.fromkeys(_found("neg negative"), of_one(lambda z: -z)),
    **dict.fromkeys(_found("conj _conj conj_physical _conj_physical"), of_one(lambda z: z.conj())),
    **dict.fromkeys(_found("adjoint mH matrix_H"), lambda call: _adjoint(call)),
    aten.reciprocal: of_one(lambda z: z.reciprocal()),
    aten.square: of_one(lambda z: z * z),
    aten.pow: rules.power,
    aten.sqrt: of_one(cp.square_root),
    aten.rsqrt: of_one(lambda z: cp.square_root(z).reciprocal()),
    aten.exp: of_one(cp.exponential),
    aten.log: of_one(cp.logarithm),
    aten.log2: of_one(lambda z: cp.logarithm(z).scaled(1.4426950408889634)),
    aten.log10: of_one(lambda z: cp.logarithm(z).scaled(0.4342944819032518)),
    aten.sin: of_one(cp.sine),
    aten.cos: of_one(cp.cosine),
    aten.sinh: of_one(lambda z: -cp.by_i(cp.sine(cp.by_i(z)))),
    aten.cosh: of_one(lambda z: cp.cosine(cp.by_i(z))),
    aten.tan: of_one(rules.tangent),
    aten.tanh: of_one(cp.hyperbolic_tangent),
    aten.sigmoid: of_one(rules.sigmoid),
    aten.silu: of_one(lambda z: z * rules.sigmoid(z)),
    **dict.fromkeys(_found("sgn sign"), of_one(cp.direction)),
    **dict.fromkeys(_found("abs absolute"), of_one(cp.magnitude)),
    **dict.fromkeys(_found("angle"), of_one(cp.argument)),
    aten.real: of_one(lambda z: z.whole()[0]),
    aten.imag: of_one(lambda z: z.whole()[1]),
    **dict.fromkeys(_found("view_as_real view_as_real_copy"), rules.stacked),
    aten.view_as_complex: rules.from_stacked,
    aten.complex: lambda call: Pair(call.real("real"), call.real("imag")),
    aten.polar: lambda call: cp.from_polar(call.real("abs"), call.real("angle")),
    aten.view.dtype: rules.as_bits,
    **dict.fromkeys(_found("to _to_copy type_as"), rules.cast),
    aten.eq: lambda call: rules.compared(call, aten.logical_and.default, aten.eq),
    aten.ne: lambda call: rules.compared(call, aten.logical_or.default, aten.ne),
    aten.isnan: of_one(lambda z: rules.tested(z, aten.isnan.default, aten.logical_or.default)),
    aten.isinf: of_one(lambda z: rules.tested(z, aten.isinf.default, aten.logical_or.default)),
    aten.isfinite: of_one(lambda z: rules.tested(z, aten.isfinite.default, aten.logical_and.default)),
    aten.isreal: of_one(lambda z: z.whole()[1].call(aten.eq.Scalar, 0)),
    **dict.fromkeys(
        _found("any all logical_not logical_and logical_or logical_xor count_nonzero nonzero"), rules.as_truth
    ),
    **dict.fromkeys(_found("norm linalg_norm linalg_vector_norm"), rules.norm),
    **dict.fromkeys(_found("var std"), rules.spread),
    **dict.fromkeys(_found("full full_like new_full scalar_tensor"), rules.filled),
    **dict.fromkeys(
        _found(
            "zeros zeros_like new_zeros ones ones_like new_ones empty empty_like new_empty eye empty_permuted empty_strided"
        ),
        rules.made,
    ),
    **dict.fromkeys(
        _found("matmul mm bmm mv dot outer ger inner kron tensordot linalg_matmul"),
        products.product_of("self", "other"),
    ),
    **{aten.mm: products.product_of("self", "mat2"), aten.bmm: products.product_of("self", "mat2")},
    **{aten.mv: products.product_of("self", "vec"), aten.dot: products.product_of("self", "tensor")},
    **{aten.outer: products.product_of("self", "vec2"), aten.ger: products.product_of("self", "vec2")},
    aten.vdot: products.inner,
    aten.einsum: products.einsum,
    **dict.fromkeys(
        _found("linear conv1d conv2d conv3d convolution conv_transpose1d conv_transpose2d conv_transpose3d"),
        products.with_bias,
    ),
    **dict.fromkeys(_found("addmm baddbmm addmv"), products.added_matmul),
    aten.prod: products.product_of_all,
    **dict.fromkeys(_found("sym_size sym_stride sym_numel sym_storage_offset"), _size),
    **dict.fromkeys(_found("_assert_tensor_metadata"), _nothing),
    **FOURIER,
}


def _adjoint(call: Call) -> Result:
    turned = call.alike(aten.mT.default)
    assert isinstance(turned, Pair)
    return turned.conj()


def rule_of(target: Any) -> Rule | None:
    """The rule of an operator, or None."""
    return RULES.get(target) or RULES.get(getattr(target, "overloadpacket", None))
