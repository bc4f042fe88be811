"""Example inputs of ATOMMIC's models: small multi-coil MRI acquisitions, drawn at random from a seed.

Each maker takes a batch size and a generator and returns the arguments of ``forward`` in order, each with its batch
axis, or None for an argument that every case of a batch shares. Sizes are chosen so that the U-Nets have to pad.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

COILS, HEIGHT, WIDTH, ECHOES = 3, 24, 20, 4
Inputs = list[tuple[Tensor, int | None]]
Maker = Callable[[int, Generator], Inputs]


@dataclass(frozen=True)
class Acquisition:
    """k-space and coil maps ``[B, coils, H, W, 2]``, mask ``[B, 1, 1, W, 1]``, zero-filled image ``[B, H, W, 2]``."""

    kspace: Tensor
    maps: Tensor
    mask: Tensor
    image: Tensor


def acquire(batch: int, generator: Generator, coils: int = COILS, height: int = HEIGHT) -> Acquisition:
    """A random image seen by random coils (unit energy at each pixel), with about half of its columns measured."""
    pixels = torch.randn(batch, 1, height, WIDTH, dtype=torch.complex64, generator=generator)
    maps = torch.randn(batch, coils, height, WIDTH, dtype=torch.complex64, generator=generator)
    maps = maps / torch.linalg.vector_norm(maps, dim=1, keepdim=True)
    mask = (torch.rand(batch, 1, 1, WIDTH, generator=generator) < 0.4).float()
    mask[..., WIDTH // 2 - 2 : WIDTH // 2 + 2] = 1.0
    measured = torch.fft.fft2(pixels * maps, norm="ortho") * mask
    image = (torch.fft.ifft2(measured, norm="ortho") * maps.conj()).sum(1)
    kspace, maps, image = (torch.view_as_real(x.resolve_conj()).contiguous() for x in (measured, maps, image))
    return Acquisition(kspace, maps, mask.unsqueeze(-1), image)


def from_image(batch: int, generator: Generator) -> Inputs:
    """(k-space, coil maps, mask, initial image)."""
    scan = acquire(batch, generator)
    return [(x, 0) for x in (scan.kspace, scan.maps, scan.mask, scan.image)]


def from_image_and_flags(batch: int, generator: Generator) -> Inputs:
    """As :func:`from_image`, with a mask of booleans, which explicit data consistency asks for."""
    return [(x.bool() if position == 2 else x, axis) for position, (x, axis) in enumerate(from_image(batch, generator))]


def from_coils(batch: int, generator: Generator) -> Inputs:
    """(k-space, coil maps, mask, initial k-space), for the networks that start in k-space."""
    scan = acquire(batch, generator)
    return [(x, 0) for x in (scan.kspace, scan.maps, scan.mask, scan.kspace.clone())]


def volume(batch: int, generator: Generator) -> Inputs:
    """As :func:`from_image`, of two slices: ``[B, 2, coils, H, W, 2]``."""
    scans = [acquire(batch, generator, coils=2, height=16) for _ in range(2)]
    parts = ("kspace", "maps", "mask", "image")
    return [(torch.stack([getattr(scan, name) for scan in scans], 1), 0) for name in parts]


def with_target(batch: int, generator: Generator) -> Inputs:
    """(k-space, coil maps, mask, initial image, target image), for joint reconstruction and segmentation."""
    given = from_image(batch, generator)
    return [*given, (given[-1][0].clone(), 0)]


def echoes(batch: int, generator: Generator, shared_anatomy: bool = False) -> Inputs:
    """(four initial maps, echo times, k-space of each echo, coil maps, initial image, anatomy mask, mask)."""
    scans = [acquire(batch, generator) for _ in range(ECHOES)]
    first = scans[0]
    initial = [torch.rand(batch, HEIGHT, WIDTH, generator=generator) + 0.1 for _ in range(4)]
    times = torch.tensor([3.0, 11.5, 20.0, 28.5])
    kspace = torch.stack([scan.kspace for scan in scans], 1)
    anatomy = (torch.ones(HEIGHT, WIDTH), None) if shared_anatomy else (torch.ones_like(first.mask), 0)
    rest: Inputs = [(kspace, 0), (first.maps, 0), (first.image, 0), anatomy, (first.mask, 0)]
    return [*((x, 0) for x in initial), (times, None), *rest]


def echoes_of_one_body(batch: int, generator: Generator) -> Inputs:
    """As :func:`echoes`, with one anatomy mask ``[H, W]`` for all."""
    return echoes(batch, generator, shared_anatomy=True)


def magnitudes(*shape: int) -> Maker:
    """Non-negative images ``[B, *shape]``."""

    def make(batch: int, generator: Generator) -> Inputs:
        return [(torch.randn(batch, *shape, generator=generator).abs(), 0)]

    return make


def pairs(*shape: int) -> Maker:
    """Complex images as pairs ``[B, *shape, 2]``."""

    def make(batch: int, generator: Generator) -> Inputs:
        return [(torch.randn(batch, *shape, 2, generator=generator), 0)]

    return make
