"""Functions that take a size as a number keep it open, and compute what PyTorch's own do."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxexport.capture import capture

W = torch.hann_window(8)


def coordinates(x: Tensor) -> Tensor:
    places = torch.meshgrid(torch.linspace(-1, 1, x.shape[2]), torch.linspace(0, 3, x.shape[3]), indexing="ij")
    return torch.stack(places)


def affine(x: Tensor, align: bool) -> Tensor:
    theta = torch.tensor([[1.0, 0.5, 0.1], [0.2, 1.0, 0.0]]).expand(x.shape[0], 2, 3)
    return F.affine_grid(theta, list(x.shape), align_corners=align)


def there_and_back(x: Tensor) -> Tensor:
    z = torch.stft(x[:, 0, 0], 8, 2, window=W, return_complex=True)
    return torch.istft(z * 2, 8, 2, window=W, length=x.shape[3])


def there_and_back_odd(x: Tensor) -> Tensor:
    z = torch.stft(x[:, 0, 0], 7, 2, return_complex=True)
    return torch.istft(z * 2, 7, 2)


CALLS: dict[str, Callable[[Tensor], Tensor]] = {
    "linspace": coordinates,
    "logspace": lambda x: torch.logspace(0, 1, x.shape[3], base=2.0),
    "fftfreq": lambda x: torch.cat([torch.fft.fftfreq(x.shape[3], 0.5), torch.fft.rfftfreq(x.shape[3])]),
    "hann": lambda x: torch.hann_window(x.shape[3]) + torch.hann_window(x.shape[3], periodic=False),
    "hamming": lambda x: torch.hamming_window(x.shape[3]) + torch.hamming_window(x.shape[3], True, 0.6, 0.4),
    "blackman": lambda x: torch.blackman_window(x.shape[3]),
    "bartlett": lambda x: torch.bartlett_window(x.shape[3]),
    "affine_grid": lambda x: torch.stack([affine(x, True), affine(x, False)]),
    "take_along_dim": lambda x: x.take_along_dim(x.argmax(1, keepdim=True)[:, :, :1], 1),
    "matrix_norm": lambda x: torch.linalg.matrix_norm(x, 1) + torch.linalg.matrix_norm(x, float("-inf")),
    "istft": there_and_back,
    "istft of odd length": there_and_back_odd,
}


@pytest.mark.parametrize("call", CALLS.values(), ids=list(CALLS))
def test_other_sizes_than_the_captured_one(call: Callable[[Tensor], Tensor]) -> None:
    class Calls(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return call(x)

    program = capture(Calls().eval(), torch.randn(2, 3, 8, 10), dynamic={"x": {0: "batch", 2: "height", 3: "width"}})
    assert [d.name for d in program.signature.dimensions] == ["batch", "height", "width"]
    for shape in [(2, 3, 8, 10), (3, 3, 5, 17), (1, 3, 2, 9)]:
        x = torch.randn(shape)
        torch.testing.assert_close(program.run(x)[0], call(x), rtol=1e-5, atol=1e-6)


def test_a_fixed_size_is_left_to_pytorch() -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.linspace(0, 1, x.shape[1])

    program = capture(Fixed().eval(), torch.randn(2, 4), dynamic={"x": {0: "batch"}})
    assert list(program.find(torch.ops.aten.linspace.default))
