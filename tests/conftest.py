"""Shared fixtures: one thread, a path to export to, a witness that a model was left alone, and a judge."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read by the runtimes of the worker processes

import hashlib
import pickle
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
import torch
from torch import nn

from fxexport.capture.pipeline import Captured, capture_model
from fxexport.lowering import lower
from fxexport.session import open_session
from fxexport.validation.compare import compare_outputs, tolerance_for
from fxexport.validation.sweep import points

# The sample package's own tests import it as it is installed; where it is not, tests/test_sample_plugin.py says so once.
collect_ignore = [] if find_spec("fxexport_sample_passes") else ["sample_plugin"]

Untouched = Callable[[nn.Module], AbstractContextManager[None]]


class ProveEverywhere(Protocol):
    """What the fixture ``prove`` does; see there."""

    def __call__(
        self,
        model: Any,
        example: Any = None,
        kwargs: Any = None,
        *,
        formats: Sequence[str] = ("onnx", "pt", "pt2"),
        **options: Any,
    ) -> Captured: ...


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Where to export to: ``model.onnx`` in a directory that holds nothing else."""
    folder = tmp_path / "out"
    folder.mkdir()
    return folder / "model.onnx"


@pytest.fixture(scope="session")
def transformers() -> Any:
    """The library; where the torchvision beside it was built for another torch, without torchvision."""
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        sys.modules["torchvision"] = None  # type: ignore[assignment]
    return pytest.importorskip("transformers")


def state_of(model: nn.Module) -> dict[str, Any]:
    """All that an export could disturb: tensors bit for bit, flags, hooks, attributes, generators."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        "bytes": {k: t.detach().cpu().contiguous().view(-1).view(torch.uint8).tolist() for k, t in tensors.items()},
        "identity": {k: (id(t), t.data_ptr(), t._version, t.requires_grad, t.grad is None) for k, t in tensors.items()},
        "training": {k: m.training for k, m in model.named_modules()},
        "hooks": {k: (len(m._forward_hooks), len(m._forward_pre_hooks)) for k, m in model.named_modules()},
        "attributes": {k: {a: _seen(v) for a, v in vars(m).items()} for k, m in model.named_modules()},
        "classes": {type(m): _class_of(m) for m in model.modules()},
        "generators": tuple(map(digest, (torch.get_rng_state().numpy(), random.getstate(), np.random.get_state()))),
        "modes": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype()),
    }


def _class_of(module: nn.Module) -> dict[str, Any]:
    """What is in a module's class, but for Python's own note of its slots, which ``copy.deepcopy`` makes."""
    return {key: value for key, value in vars(type(module)).items() if key != "__slotnames__"}


def digest(value: Any) -> str:
    return hashlib.sha256(pickle.dumps(value)).hexdigest()[:12]


def _seen(value: Any) -> Any:
    """A plain value by its text, anything else by its identity."""
    plain = isinstance(value, bool | int | float | str | tuple | type(None))
    if isinstance(value, list | dict) and not value:
        return repr(value)
    return repr(value) if plain else (type(value), id(value), len(value) if isinstance(value, list | dict) else None)


@pytest.fixture
def untouched() -> Untouched:
    """``with untouched(model): ...`` fails where the block, however it ends, leaves a trace on the model."""

    @contextmanager
    def witness(model: nn.Module) -> Iterator[None]:
        before = state_of(model)
        try:
            yield
        finally:
            after = state_of(model)
            for aspect, value in before.items():
                assert after[aspect] == value, f"the model's {aspect} changed"

    return witness


@pytest.fixture
def prove(tmp_path: Path) -> ProveEverywhere:
    """Captures a model, lowers it to every format, compares each file with eager at every point."""

    def prove(
        model: Any,
        example: Any = None,
        kwargs: Any = None,
        *,
        formats: Sequence[str] = ("onnx", "pt", "pt2"),
        **options: Any,
    ) -> Captured:
        captured = capture_model(model, example, kwargs, **options)
        captured.program.verify()
        tried = points(captured.program.signature, captured.examples)
        for suffix in formats:
            path = tmp_path / f"proved.{suffix}"
            lower(captured.program, path)
            session = open_session(path)
            compared = sum(_agrees(captured, session, point.inputs, f"{suffix} at {point.label}") for point in tried)
            assert compared >= 2, "the sweep compared next to nothing"
        return captured

    return prove


def _agrees(captured: Captured, session: Any, inputs: tuple[torch.Tensor, ...], where: str) -> bool:
    """Whether the point could be compared at all: eager itself may refuse a size."""
    try:
        want = captured.reference.run(inputs)
    except (RuntimeError, ValueError, IndexError):
        return False
    signature = captured.program.signature
    got = session([spec.name for spec in signature.inputs], list(inputs))
    results = compare_outputs([spec.name for spec in signature.outputs], list(want), got, tolerance_for)
    assert all(r.passed for r in results), f"{where}: {[(r.name, r.reason) for r in results if not r.passed]}"
    return True
