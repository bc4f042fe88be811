"""Which rule is for which operator."""

from __future__ import annotations

from typing import Any

import torch

from fxexport.capture.rows import layers
from fxexport.capture.rows.rules import Rule, along, first, leading, pointwise, same

aten = torch.ops.aten
_ALONG = """softmax.int log_softmax.int _softmax.default _log_softmax.default sum.dim_IntList mean.dim amax.default
amin.default max.dim min.dim argmax.default argmin.default cumsum.default cumprod.default logsumexp.default prod.dim_int
std.correction var.correction std.dim var.dim std_mean.correction var_mean.correction all.dim any.dim all.dims any.dims
topk.default sort.default sort.stable argsort.default median.dim nanmedian.dim mode.default kthvalue.default
linalg_vector_norm.default norm.ScalarOpt_dim norm.ScalarOpt_dim_dtype fft_fft.default fft_ifft.default fft_rfft.default
fft_irfft.default fft_fft2.default fft_ifft2.default fft_rfft2.default fft_irfft2.default fft_fftn.default
fft_ifftn.default fft_rfftn.default fft_irfftn.default fft_hfft.default fft_ihfft.default fft_fftshift.default
fft_ifftshift.default diff.default cummax.default cummin.default logcumsumexp.default glu.default count_nonzero.dim_IntList
nansum.default nanmean.default linalg_norm.default softmin.int"""
_SAME = """clone.default contiguous.default alias.default detach.default lift_fresh_copy.default _to_copy.default
to.dtype to.device to.dtype_layout to.other view_as_real.default view_as_complex.default real.default imag.default
_conj.default conj.default resolve_conj.default resolve_neg.default zeros_like.default ones_like.default
full_like.default nan_to_num.default empty_like.default detach_copy.default view_as_real_copy.default"""
_LEADING = """linalg_inv.default inverse.default linalg_det.default linalg_slogdet.default linalg_cholesky.default
linalg_eigh.default linalg_eigvalsh.default linalg_svd.default linalg_svdvals.default linalg_qr.default
linalg_pinv.default linalg_matrix_exp.default matrix_exp.default triu.default tril.default linalg_inv_ex.default
linalg_lu_factor.default linalg_matrix_power.default"""
_UPSAMPLED = {
    1: ("linear1d", "nearest1d"),
    2: ("bilinear2d", "nearest2d", "bicubic2d"),
    3: ("trilinear3d", "nearest3d"),
}


def _named(names: str, rule: Rule) -> dict[Any, Rule]:
    pairs = (name.split(".") for name in names.split())
    return {
        getattr(getattr(aten, n), o): rule for n, o in pairs if hasattr(aten, n) and o in getattr(aten, n).overloads()
    }


def _overloads(names: str, rule: Rule) -> dict[Any, Rule]:
    packets = [getattr(aten, name) for name in names.split() if hasattr(aten, name)]
    return {getattr(packet, o): rule for packet in packets for o in packet.overloads() if "out" not in o}


def _spatial(rank: int) -> dict[Any, Rule]:
    kinds = ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool")
    pools = " ".join(f"{kind}{rank}d" for kind in kinds) + f" max_pool{rank}d_with_indices"
    return _overloads(f"conv{rank}d conv_transpose{rank}d {pools}", first(rank + 2))


def _scaled(rank: int) -> dict[Any, Rule]:
    names = " ".join(f"upsample_{kind}" for kind in _UPSAMPLED[rank])
    more = " pixel_shuffle pixel_unshuffle channel_shuffle im2col" if rank == 2 else ""
    return _overloads(names + more, first(rank + 2))


ALONG = tuple(_named(_ALONG, same))
"""Operators along axes ``dim``."""
MATRICES = tuple(_named(_LEADING, same))
"""Operators on the last two axes of their first argument."""
SPATIAL = {target: rank for rank in (1, 2, 3) for target in _spatial(rank)}
"""Operators on the last ``rank`` axes and channels before them, with or without a batch."""
LISTS = {aten.einsum.default}
"""Operators of which a rule reads lists of rows."""

RULES: dict[Any, Rule] = {
    **_named(_ALONG, along),
    **_named(_SAME, same),
    **_named(_LEADING, leading(2)),
    **_named("linalg_solve.default", leading(2, "A", "B")),
    **_named("linalg_solve_triangular.default", leading(2, "self", "B")),
    **{target: rule for rank in (1, 2, 3) for target, rule in (_spatial(rank) | _scaled(rank)).items()},
    **_named("linear.default", layers.linear),
    **_named("matmul.default mm.default", layers.matmul),
    **_named("addmm.default", layers.addmm),
    **_named("bmm.default baddbmm.default", layers.bmm),
    **_named("batch_norm.default", layers.batch_norm),
    **_named("layer_norm.default rms_norm.default", layers.layer_norm),
    **_named("group_norm.default instance_norm.default", layers.per_sample_norm),
    **_named("pad.default constant_pad_nd.default", layers.pad),
    **_named("dropout.default feature_dropout.default alpha_dropout.default", layers.dropout),
    **_named("embedding.default", layers.embedding),
    **_named("gather.default scatter.src scatter.value scatter_add.default take_along_dim.default", layers.gather),
    **_named("index_select.default", layers.index_select),
    **_named("fill.Tensor fill.Scalar copy.default", pointwise),
    **_named("scaled_dot_product_attention.default", layers.attention),
    **_named("einsum.default", layers.einsum),
    **_named("convolution.default", layers.convolution),
    **_named("grid_sampler.default grid_sampler_2d.default grid_sampler_3d.default", layers.sampled),
}


def rule_for(target: Any) -> Rule | None:
    """The rule of an operator, where it has one."""
    if target in RULES:
        return RULES[target]
    return pointwise if torch.Tag.pointwise in getattr(target, "tags", ()) else None
