"""Complex numbers become pairs of real ones through whole programs, with the numbers of eager PyTorch."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxexport
from fxexport.capture.pipeline import capture_model
from fxexport.passes import DecomposeComplex
from fxexport.program import Program
from fxexport.rewrite import PassManager
from fxexport.testing import assert_unchanged

aten = torch.ops.aten
Forward = Callable[..., Any]
BATCH = ({0: "batch"}, {0: "batch"}, {0: "batch"})


def pairs(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, 2, dtype=dtype)


class Real(nn.Module):
    """``forward(z, w, x)`` of two complex tensors and a real one, as a model of real inputs and outputs."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.way = forward

    def forward(self, z: Tensor, w: Tensor, x: Tensor) -> list[Tensor]:
        result = self.way(torch.view_as_complex(z), torch.view_as_complex(w), x)
        results = result if isinstance(result, tuple | list) else [result]
        return [torch.view_as_real(r.resolve_conj()) if r.is_complex() else r for r in results]


def has_complex(program: Program) -> bool:
    values = [v for n in program.graph.nodes for v in torch.utils._pytree.tree_leaves(n.meta.get("val"))]
    return any(isinstance(v, Tensor) and v.is_complex() for v in values)


def check(forward: Forward, inputs: tuple[Tensor, ...], dynamic: Any = BATCH, tolerance: float = 1e-12) -> Program:
    """Captured, decomposed, and run on the example and on another batch; everything is compared with eager."""
    model = Real(forward)
    before = capture_model(model, inputs, dynamic_shapes=dynamic).program
    after, (record,) = PassManager([DecomposeComplex()]).run(before)
    assert not record.near_misses, record.near_misses
    assert record.count
    assert not has_complex(after)
    again, (second,) = PassManager([DecomposeComplex()]).run(after)
    assert second.count == 0, again
    larger = tuple(torch.cat([t, t.flip(0) * 1.5, t * 0.5]) for t in inputs) if dynamic else inputs
    for given in (inputs, larger):
        for got, want in zip(after.run(*given), model(*given), strict=True):
            compare(got, want, tolerance)
    return after


def compare(got: Tensor, want: Tensor, tolerance: float) -> None:
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    if not want.is_floating_point():
        assert torch.equal(got, want)
        return
    tolerance = max(tolerance, 1e-6 if want.dtype == torch.float32 else 0.0)
    scale = want[want.isfinite()].abs().max().item() if want.isfinite().any() else 1.0
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance * scale, equal_nan=True)


def three(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    return pairs(2, 4, 6, dtype=dtype), pairs(2, 4, 6, dtype=dtype), torch.randn(2, 4, 6, dtype=dtype)


GROUPS: dict[str, Forward] = {
    "parts": lambda z, w, x: (z.real, z.imag, z.abs(), z.angle(), z.conj(), torch.view_as_real(z), z.conj().imag),
    "made of parts": lambda z, w, x: (
        torch.complex(x, x + 1),
        torch.polar(x.abs(), x),
        torch.view_as_complex(torch.stack([x, 2 * x], -1)),
    ),
    "sums": lambda z, w, x: (
        z + w,
        z - w,
        z + x,
        x - z,
        z + 2,
        2 - z,
        z - 1.5j,
        1j - z,
        torch.add(z, w, alpha=2),
        torch.sub(x, z, alpha=3j),
        -z,
    ),
    "products": lambda z, w, x: (
        z * w,
        z * x,
        x * z,
        z * 1j,
        2 * z,
        x * (1 - 2j),
        z.square(),
        z * w.conj(),
        torch.addcmul(z, z, w, value=2),
    ),
    "quotients": lambda z, w, x: (
        z / w,
        z / x,
        x / z,
        1 / z,
        2j / z,
        z / (1 + 3j),
        z / 4,
        x / (2 - 1j),
        z.reciprocal(),
        torch.addcdiv(z, w, z),
    ),
    "powers": lambda z, w, x: (
        z**2,
        z**3,
        z**-1,
        z**0.5,
        z**5,
        z**1.5,
        z**x,
        z**w,
        2**z,
        (1 + 1j) ** z,
        z ** (1 + 1j),
        z.sqrt(),
        z.rsqrt(),
        x**2j,
    ),
    "functions": lambda z, w, x: (
        z.exp(),
        z.log(),
        z.log2(),
        z.log10(),
        z.sin(),
        z.cos(),
        z.tan(),
        z.sinh(),
        z.cosh(),
        z.tanh(),
        z.sigmoid(),
        F.silu(z),
        z.sgn(),
        torch.exp(1j * x),
    ),
    "comparisons": lambda z, w, x: (
        z == w,
        z != w,
        z == z,
        z == 1j,
        z.isnan(),
        z.isinf(),
        z.isfinite(),
        torch.isreal(z),
        z.any(),
        z.bool(),
        torch.logical_not(z),
    ),
    "choices": lambda z, w, x: (
        torch.where(x > 0, z, w),
        torch.where(x > 0, z, 0),
        torch.where(x > 0, 1j, z),
        torch.where(x > 0, z, x),
        z.masked_fill(x > 0, 1 - 1j),
        z.masked_fill(x > 0, 0),
    ),
    "casts": lambda z, w, x: (
        z.to(torch.complex64),
        x.to(torch.complex128),
        x.to(torch.complex64) + z,
        z.type(torch.complex64).abs(),
        x.to(torch.complex128) * w,
        z.bool(),
        x.int() * z,
    ),
    "reductions": lambda z, w, x: (
        z.sum(),
        z.sum(-1),
        z.mean((1, 2), keepdim=True),
        z.cumsum(1),
        z.prod(1),
        z.prod(-1, keepdim=True),
        z.std(-1),
        z.var(1),
        z.norm(),
        torch.linalg.norm(z, dim=-1),
        torch.linalg.vector_norm(z, 1, dim=(1, 2)),
        z.sum(0, dtype=torch.complex64),
    ),
    "shapes": lambda z, w, x: (
        z.reshape(-1, 24),
        z.view(-1, 4, 2, 3),
        z.permute(2, 0, 1),
        z.transpose(0, 1),
        z.mT,
        z.mH,
        z.unsqueeze(1).expand(-1, 3, -1, -1),
        z[:, None].squeeze(1),
        z.flatten(1),
        z.unflatten(2, (2, 3)),
        z.movedim(0, -1),
        z.swapaxes(1, 2),
        z[:, :1].expand_as(z),
        z.repeat(1, 2, 1),
        z.tile(2),
        z.roll((1, 2), (1, 2)),
        z.flip(-1),
        z.conj().mT.contiguous(),
        z.contiguous().clone().detach(),
    ),
    "indices": lambda z, w, x: (
        z[:, 0],
        z[..., 1:5:2],
        z[:, [2, 0]],
        z.index_select(1, torch.tensor([3, 1])),
        z.gather(1, torch.zeros_like(x, dtype=torch.int64)),
        z.narrow(2, 1, 3),
        z.diagonal(0, 1, 2),
        z.tril(),
        z.unfold(-1, 3, 2),
    ),
    "joined": lambda z, w, x: (
        torch.cat([z, w], 1),
        torch.cat([z, x], -1),
        torch.stack([z, w, z]),
        torch.hstack([z, w]),
        *z.chunk(2, -1),
        *z.split([1, 5], -1),
        *z.unbind(1),
        F.pad(z, (1, 2)),
        F.pad(z, (1, 2), value=3.0),
        F.pad(z, (2, 2), mode="reflect"),
    ),
    "new tensors": lambda z, w, x: (
        torch.zeros_like(z) + w,
        torch.ones_like(z),
        torch.full_like(z, 2j),
        torch.full_like(z, 2),
        z.new_zeros(3, 2),
        z.new_ones(2),
        torch.zeros(4, 6, dtype=z.dtype) + z,
        torch.full((6,), 1 - 1j) * z,
        torch.tensor([1j, 2.0, 0, 1, 1, 1]) * z,
        torch.tensor(2j) * z,
        torch.eye(6, dtype=z.dtype) @ z.mT,
    ),
    "matrices": lambda z, w, x: (
        z @ w.mT,
        torch.bmm(z, w.mT),
        torch.einsum("bij,bkj->bik", z, w.conj()),
        torch.einsum("bij,bij,bkj->bk", z, z, w),
        torch.einsum("bij->bj", z),
        torch.tensordot(z, w, dims=([2], [2])),
        torch.outer(z[0, 0], w[0, 0]),
        torch.dot(z[0, 0], w[0, 0]),
        torch.vdot(z[0, 0], w[0, 0]),
        torch.mv(z[0], w[0, 0]),
        torch.baddbmm(z @ z.mT, z, w.mT, beta=2, alpha=1j),
        torch.linalg.vecdot(z, w),
    ),
    "bits": lambda z, w, x: (z.view(torch.float64), x.contiguous().view(torch.complex128)),
    "leftovers": lambda z, w, x: (
        torch.lerp(z, w, 0.25),
        torch.isclose(z, z + 1e-12),
        z.nan_to_num(),
        torch.kron(z[0], w[0]),
    ),
}


@pytest.mark.parametrize("name", GROUPS)
def test_every_operator_has_the_numbers_of_eager(name: str) -> None:
    check(GROUPS[name], three())


def test_writes_into_parts_of_a_tensor() -> None:
    def forward(z: Tensor, w: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        y = torch.zeros_like(z)
        y[:, 0] = w[:, 1]
        y[..., 1:3] = x[..., 1:3]
        y[x > 0] = 0.5j
        y[:, [1, 2]] += z[:, [0, 3]]
        z = z.clone()
        z.real.mul_(2)
        z *= x
        z /= 1 + z.abs()
        return y, z

    check(forward, three())


TRANSFORMS: dict[str, Forward] = {
    "fft": lambda z, x, **o: (torch.fft.fft(z, **o), torch.fft.ifft(z, **o), torch.fft.fft(x, **o)),
    "fft cut": lambda z, x, **o: (torch.fft.fft(z, n=5, dim=1, **o), torch.fft.ifft(z, n=3, **o)),
    "fft filled": lambda z, x, **o: (torch.fft.fft(z, n=9, dim=-2, **o), torch.fft.ifft(x, n=11, **o)),
    "fft2": lambda z, x, **o: (
        torch.fft.fft2(z, **o),
        torch.fft.ifft2(z, dim=(1, 2), **o),
        torch.fft.fft2(z, s=(3, 7), **o),
    ),
    "fftn": lambda z, x, **o: (
        torch.fft.fftn(z, dim=(-2, -1), **o),
        torch.fft.ifftn(z, s=(4, -1), **o),
        torch.fft.fftn(x, dim=(1,), **o),
    ),
    "rfft": lambda z, x, **o: (
        torch.fft.rfft(x, **o),
        torch.fft.rfft(x, n=7, dim=1, **o),
        torch.fft.rfft2(x, **o),
        torch.fft.rfftn(x, dim=(1, 2), **o),
    ),
    "irfft": lambda z, x, **o: (
        torch.fft.irfft(z, **o),
        torch.fft.irfft(z, n=7, dim=1, **o),
        torch.fft.irfft2(z, **o),
        torch.fft.irfftn(z, s=(4, 9), **o),
    ),
    "hfft": lambda z, x, **o: (
        torch.fft.hfft(z, **o),
        torch.fft.hfft(z, n=7, dim=1, **o),
        torch.fft.ihfft(x, **o),
        torch.fft.hfft2(z, **o),
        torch.fft.ihfftn(x, dim=(1, 2), **o),
    ),
}


@pytest.mark.parametrize("norm", [None, "ortho", "forward"])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_every_transform_and_norm(name: str, norm: str | None) -> None:
    check(lambda z, w, x: TRANSFORMS[name](z, x, norm=norm), three())


@pytest.mark.parametrize("length", [1, 15, 128, 131, 320])
def test_short_and_long_prime_and_composite_lengths(length: int) -> None:
    def forward(z: Tensor, w: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        half = z[..., : length // 2 + 1]
        return torch.fft.fft(z), torch.fft.ifft(z, dim=1), torch.fft.rfft(x), torch.fft.irfft(half, n=length)

    z, x = pairs(2, length, length if length < 40 else 3), torch.randn(2, 3, length, dtype=torch.float64)
    first = lambda z, w, x: torch.fft.ifft(z, dim=1)  # noqa: E731
    check(first, (z, z, x))
    if length > 1:
        program = check(forward, (pairs(2, 3, length), z, x))
        assert program.constants_bytes() < 6 * 2**20


def test_the_error_in_single_precision_is_that_of_a_fast_transform() -> None:
    z, x = pairs(4, 8, 640, dtype=torch.float32), torch.randn(4, 8, 640)
    model = Real(lambda z, w, x: (torch.fft.fft(z), torch.fft.rfft(x)))
    program, _ = PassManager([DecomposeComplex()]).run(capture_model(model, (z, z, x)).program)
    exact, own = model(z.double(), z.double(), x.double()), model(z, z, x)
    for got, eager, true in zip(program.run(z, z, x), own, exact, strict=True):
        assert (got - true).abs().max() < 4 * (eager - true).abs().max()


def test_transforms_of_a_dynamic_axis() -> None:
    def forward(z: Tensor, w: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        shifted = torch.fft.ifftshift(torch.fft.fft2(torch.fft.fftshift(z, dim=(-2, -1)), norm="ortho"), dim=(-2, -1))
        return (
            torch.fft.fft(z),
            torch.fft.ifft(z, dim=1),
            shifted,
            torch.fft.rfft(x),
            torch.fft.irfft(z),
            torch.fft.fft(z, n=8),
            torch.fft.rfft(x, n=x.shape[-1] + 3, norm="forward"),
            torch.fft.irfft(z, n=x.shape[-1]),
            torch.fft.hfft(z),
        )

    axes = {0: "batch", 1: "height", 2: "width"}
    model = Real(forward)
    program, (record,) = PassManager([DecomposeComplex()]).run(
        capture_model(model, three(), dynamic_shapes=(axes, axes, axes)).program
    )
    assert not record.near_misses
    assert not has_complex(program)
    for height, width in ((4, 6), (5, 9), (7, 10)):
        z, x = pairs(3, height, width), torch.randn(3, height, width, dtype=torch.float64)
        for got, want in zip(program.run(z, z, x), model(z, z, x), strict=True):
            compare(got, want, 1e-12)


def test_equal_transforms_share_one_matrix() -> None:
    def forward(z: Tensor, w: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        return torch.fft.fft(z) * torch.fft.fft(w), torch.fft.fft(torch.fft.fft(z + w) * x)

    assert len(check(forward, three()).constants()) == 1


class Weights(nn.Module):
    """Complex parameters, a complex buffer, and one that is a lazy conjugate."""

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 3, 3, dtype=torch.complex128)
        self.conv2 = nn.Conv2d(2, 2, 3, groups=2, padding=1, dtype=torch.complex128)
        self.linear = nn.Linear(6, 5, dtype=torch.complex128)
        self.up = nn.ConvTranspose1d(4, 2, 2, stride=2, dtype=torch.complex128)
        self.shift = nn.Parameter(torch.randn(6, dtype=torch.complex128))
        self.register_buffer("scale", torch.randn(4, 1, dtype=torch.complex128).conj())

    def forward(self, z: Tensor) -> list[Tensor]:
        z = torch.view_as_complex(z)
        image = self.conv2(z.reshape(-1, 2, 2, 6))
        results = [
            self.conv(z * self.scale),
            self.linear(z + self.shift),
            self.up(z),
            image,
            F.conv1d(z[0], self.conv.weight),
        ]
        return [torch.view_as_real(r) for r in results]


def test_complex_weights_are_stored_as_two_real_ones() -> None:
    model, z = Weights().eval(), pairs(2, 4, 6)
    before = capture_model(model, z, dynamic_shapes=({0: "batch"},)).program
    after, (record,) = PassManager([DecomposeComplex()]).run(before)
    assert not record.near_misses
    assert not has_complex(after)
    assert {"linear.weight.real", "shift.imag"} <= {name.removeprefix("model.") for name in after.constants()}
    assert after.constants_bytes() <= before.constants_bytes()
    z = pairs(5, 4, 6)
    for got, want in zip(after.run(z), model(z), strict=True):
        compare(got, want, 1e-12)


TELLING: dict[str, Forward] = {
    "angles": lambda z, x: (
        z.angle(),
        (z * -2.0).angle(),
        (z * x).angle(),
        (1 - z).angle(),
        z.conj().angle(),
        (x * 1j).angle(),
        (z / -1.0).angle(),
    ),
    "not numbers": lambda z, x: (
        z.isnan(),
        (z * x).isnan(),
        (z / x).isnan(),
        (x / z).isinf(),
        (z * 2.0).isfinite(),
        z.nan_to_num(),
    ),
    "quotients": lambda z, x: (z / z, z / x, x / z, 1 / z, z / 0.0, z / torch.zeros_like(z)),
    "roots": lambda z, x: (z.sqrt(), z.conj().sqrt(), z.sgn(), z.abs(), z.log()),
}


@pytest.mark.parametrize("name", TELLING)
def test_zeros_and_infinities_as_eager(name: str) -> None:
    special = [0.0, -0.0, 1.0, -1.0, 2.5, 1e-300, 1e300]
    if name in ("angles", "not numbers"):
        special += [math.inf] * (name == "not numbers")
    z = torch.tensor([[a, b] for a in special for b in special], dtype=torch.float64)
    x = torch.linspace(-2, 2, len(z), dtype=torch.float64).round()
    forward = lambda z, w, x: [torch.view_as_real(r) if r.is_complex() else r for r in TELLING[name](z, x)]  # noqa: E731
    model = Real(forward)
    program, (record,) = PassManager([DecomposeComplex()]).run(capture_model(model, (z, z, x), allow_nan=True).program)
    assert not record.near_misses
    for index, (got, want) in enumerate(zip(program.run(z, z, x), model(z, z, x), strict=True)):
        size = torch.hypot(want[..., 0], want[..., 1])[..., None] if want.dim() == 2 else want.double().abs()
        near = (got.double() - want.double()).abs() <= 1e-13 * size
        same = near | (got == want) | (got.isnan() & want.isnan())
        assert same.all(), (index, z[~same if same.dim() == 1 else ~same.all(-1)][:5], got[~same][:5], want[~same][:5])


@pytest.mark.parametrize("scale", [1e30, 1e-30])
def test_nothing_overflows_or_vanishes_on_the_way(scale: float) -> None:
    z, w = pairs(3, 5, dtype=torch.float32) * scale, pairs(3, 5, dtype=torch.float32) * scale
    model = Real(lambda z, w, x: (z / w, z.abs(), z.sgn(), (1 / z).abs(), z.sqrt()))
    program, _ = PassManager([DecomposeComplex()]).run(capture_model(model, (z, w, w)).program)
    for got, want in zip(program.run(z, w, w), model(z, w, w), strict=True):
        assert got.isfinite().all()
        torch.testing.assert_close(got, want, rtol=1e-5, atol=0.0)


def test_branches_and_loops_on_complex_numbers() -> None:
    """Complex numbers cross their borders as pairs, and constants are handed in."""

    class Iterate(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            z = torch.view_as_complex(x)

            def yes(z: Tensor) -> tuple[Tensor, Tensor]:
                return (torch.fft.fft(z) * (1 + 1j)).clone(), z.abs()

            def no(z: Tensor) -> tuple[Tensor, Tensor]:
                return (z.conj() * z + 2).clone(), z.abs() + 1

            y, size = torch.cond(z.real.sum() > 0, yes, no, (z,))
            count, y = torch._higher_order_ops.while_loop(
                lambda i, y: y.abs().sum() < 100, lambda i, y: (i + 1, y * (1 + 1j)), (torch.tensor(0), y)
            )
            return torch.view_as_real(y), size, count

    def eager(x: Tensor) -> tuple[Tensor, ...]:
        z = torch.view_as_complex(x)
        up = bool(z.real.sum() > 0)
        y, size, count = (torch.fft.fft(z) * (1 + 1j) if up else z.conj() * z + 2), z.abs() + (not up), 0
        while y.abs().sum() < 100:
            y, count = y * (1 + 1j), count + 1
        return torch.view_as_real(y), size, torch.tensor(count)

    z = pairs(3, 4)
    before = capture_model(Iterate(), z, dynamic_shapes=({0: "batch"},)).program
    after, (record,) = PassManager([DecomposeComplex()]).run(before)
    assert not record.near_misses
    for _, _, graph in after.graphs():
        assert not any(n.meta["val"].is_complex() for n in graph.nodes if isinstance(n.meta.get("val"), Tensor))
    for given in (z.abs(), -z.abs(), pairs(5, 4)):
        for got, want in zip(after.run(given), eager(given), strict=True):
            compare(got, want, 1e-12)


def test_real_programs_are_left_alone() -> None:
    assert_unchanged(DecomposeComplex(), lambda x: (x.abs() * 2 + x.real).sum(-1), (torch.randn(2, 3),))


def test_what_has_no_form_stays_complex_and_says_so() -> None:
    def forward(z: Tensor, w: Tensor, x: Tensor) -> Tensor:
        y = torch.linalg.inv(z[:, :, :4] * w[:, :, :4])
        return y.real.exp() + (y * 2).imag

    model, inputs = Real(forward), three()
    before = capture_model(model, inputs).program
    after, (record,) = PassManager([DecomposeComplex()]).run(before)
    assert "linalg" in record.near_misses[0].reason
    assert "has no form" in record.near_misses[0].reason
    assert "test_decompose_complex.py" in record.near_misses[0].line
    assert list(after.find(aten.mul.Tensor)), "what stands around it is real"
    compare(after.run(*inputs)[0], model(*inputs)[0], 1e-10)
    _, (second,) = PassManager([DecomposeComplex()]).run(after)
    assert second.count == 0


STEPS: tuple[Callable[[Tensor, Tensor, Tensor], Tensor], ...] = (
    lambda z, w, x: z + w,
    lambda z, w, x: z * x,
    lambda z, w, x: w / (z.abs() + 1),
    lambda z, w, x: z * w.conj(),
    lambda z, w, x: torch.fft.fft(z, norm="ortho"),
    lambda z, w, x: torch.fft.ifft2(w, norm="forward"),
    lambda z, w, x: torch.where(x > 0, z, w),
    lambda z, w, x: z.masked_fill(x < 0, 1j),
    lambda z, w, x: (z.mT @ w).transpose(1, 2)[:, :, :4].mT * x,
    lambda z, w, x: torch.exp(1j * x) * z,
    lambda z, w, x: z.roll(1, -1) - z.flip(1),
    lambda z, w, x: torch.cat([z[..., 1:], w[..., :1]], -1),
    lambda z, w, x: z / (w + 3),
    lambda z, w, x: z - z.mean(-1, keepdim=True),
    lambda z, w, x: z.sgn() + x,
    lambda z, w, x: torch.complex(w.imag, z.real),
    lambda z, w, x: torch.view_as_complex(torch.view_as_real(z) * 2),
    lambda z, w, x: z.sum(1, keepdim=True).expand_as(z) * 0.2j,
)


@pytest.mark.parametrize("seed", range(5))
def test_random_compositions(seed: int) -> None:
    generator = random.Random(seed)
    chosen = [(generator.choice(STEPS), generator.random() < 0.5) for _ in range(14)]

    def forward(z: Tensor, w: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        for step, other in chosen:
            z, w = (w, step(z, w, x)) if other else (step(z, w, x), w)
        return z, w, z.abs()

    check(forward, three(), tolerance=1e-11)


class Reconstruction(nn.Module):
    """Multicoil data consistency and a few steps of conjugate gradients, as in a reconstruction of images."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, dtype=torch.complex64) * 0.1)

    def forward(self, y: Tensor, maps: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        maps, target = torch.view_as_complex(maps), torch.view_as_complex(y)

        def apply(x: Tensor) -> Tensor:
            k = torch.fft.fftn(torch.fft.ifftshift(x * maps, dim=(-2, -1)), dim=(-2, -1), norm="ortho") * mask
            back = torch.fft.fftshift(torch.fft.ifftn(k, dim=(-2, -1), norm="ortho"), dim=(-2, -1))
            return (back * maps.conj()).sum(1, keepdim=True) + x * self.weight.abs()

        b = (torch.fft.ifft2(target * mask, norm="ortho") * maps.conj()).sum(1, keepdim=True)
        x, r = torch.zeros_like(b), b
        p = r
        rr = (r.conj() * r).sum((1, 2, 3), keepdim=True)
        for _ in range(3):
            q = apply(p)
            alpha = rr / (p.conj() * q).sum((1, 2, 3), keepdim=True)
            x, r = x + alpha * p, r - alpha * q
            new = (r.conj() * r).sum((1, 2, 3), keepdim=True)
            p, rr = r + new / rr * p, new
        return torch.view_as_real(x), x.abs()


SIZE = {0: "batch", 2: "height", 3: "width"}


@pytest.mark.parametrize(
    ("suffix", "dynamic"),
    [("onnx", {0: "batch"}), ("onnx", SIZE), ("pt", SIZE)],
    ids=["onnx-batch", "onnx-size", "pt-size"],
)
def test_a_reconstruction_is_right_in_onnx_and_torchscript(
    suffix: str, dynamic: dict[int, str], tmp_path: Path
) -> None:
    inputs = (torch.randn(2, 3, 8, 6, 2), torch.randn(2, 3, 8, 6, 2), (torch.rand(2, 1, 8, 6) > 0.4).float())
    artifact = fxexport.compile(
        Reconstruction().eval(), tmp_path / f"model.{suffix}", inputs, dynamic_shapes=(dynamic,) * 3, allow_nan=True
    )
    names = [record.name for record in artifact.report.passes]
    assert ("decompose-complex" in names) == (suffix == "onnx"), "TorchScript keeps its complex numbers"
