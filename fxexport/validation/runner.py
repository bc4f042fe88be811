"""Run an artifact in a process of its own, so that a crash, a hang or a memory fault is a failed check and no
more.

Starting the process costs about a second (imports), hence two steps: ``start`` returns at once and the
imports overlap with the caller's work; ``load`` waits for them.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import torch
from torch import Tensor

from fxexport.errors import InputError, ValidationError
from fxexport.validation.worker import ITEM_SIZES, Packed, read_tensors, write_tensors

_FORMATS = ("onnx", "torchscript", "pt2")
_WORKER = Path(__file__).with_name("worker.py")
_CPU_ONLY = ("CPUExecutionProvider",)
_EXIT_GRACE = 30.0  # seconds between a closed pipe and the exit status: the kernel may be writing a core dump


@dataclass(frozen=True)
class TensorInfo:
    """One input or output as the file declares it; ``dtype`` is '' and ``shape`` None where the format does
    not say.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...] | None


@dataclass(frozen=True)
class LoadedInfo:
    """What the runtime found in the file; ``outputs`` is empty for TorchScript, which declares none."""

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    providers: tuple[str, ...]
    versions: dict[str, str]
    seconds: float


class ArtifactProcess:
    """A runtime in a subprocess: ``with ArtifactProcess("onnx") as process: process.load(path);
    process.run(inputs)``.

    ``timeout`` is in seconds and holds for each command; ``memory_limit_gb`` bounds the address space of the
    process (GiB, Unix only, not for CUDA, which reserves far more than it uses); ``threads`` is the number of
    compute threads (None: the runtime's default). Whatever goes wrong in there is raised here as
    ValidationError. After a crash or a timeout the instance is spent: make a new one. One instance serves one
    thread at a time.
    """

    def __init__(
        self,
        format: str,
        *,
        timeout: float = 300.0,
        memory_limit_gb: float | None = None,
        threads: int | None = None,
    ) -> None:
        if format not in _FORMATS:
            raise InputError(f"no runtime for format '{format}'; known formats: {', '.join(_FORMATS)}")
        for name, value in (("timeout", timeout), ("memory_limit_gb", memory_limit_gb), ("threads", threads)):
            if value is not None and not value > 0:
                raise InputError(f"{name}={value} must be greater than 0")
        self.format = format
        self.timeout = timeout  # seconds for each command; may be changed between commands
        self.last_run_seconds = 0.0  # of the latest run, inside the runtime, without the transfer of tensors
        self._memory_limit_gb = memory_limit_gb
        self._threads = threads
        self._child: _Child | None = None
        self._versions: dict[str, str] = {}
        self._spent = ""  # why no command can follow, once something went wrong
        self._loaded = False
        self._runs = 0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """The process id of the worker, None before ``start`` and after ``close``."""
        return None if self._child is None else self._child.process.pid

    def start(self) -> None:
        """Launch the worker and return without waiting for its imports; a second call does nothing."""
        if self._child is not None:
            return
        if self._spent:
            raise ValidationError(f"this artifact process is closed ({self._spent}); make a new one")
        arguments = [self.format]
        if self._memory_limit_gb is not None:
            arguments += ["--memory-limit-gb", str(self._memory_limit_gb)]
        self._child = _Child(arguments)

    def restart(self) -> None:
        """Launch a new worker with nothing loaded, also after a crash, a timeout or ``close``."""
        self.close()
        self._spent, self._versions, self._loaded = "", {}, False
        self.start()

    def load(self, path: str | os.PathLike[str], providers: Sequence[str] = _CPU_ONLY) -> LoadedInfo:
        """Load the file at ``path``, after ``start`` if need be; ValidationError when the runtime refuses it.

        A provider that this machine does not have is an error, never replaced by the CPU.
        """
        self.start()
        what = f"loading {os.fspath(path)}"
        if not self._versions:
            self._versions = self._ask(None, "starting its runtime")["ready"]
        self._loaded = False
        # Absolute, since nothing promises that both processes stay in one directory.
        command = {"load": os.path.abspath(path), "threads": self._threads, "providers": list(providers)}
        loaded = self._ask(command, what)["loaded"]
        self._loaded = True
        inputs, outputs = (tuple(map(_tensor_info, loaded[key])) for key in ("inputs", "outputs"))
        return LoadedInfo(inputs, outputs, tuple(loaded["providers"]), self._versions, loaded["seconds"])

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run the loaded artifact once, on tensors of any device, strides and shape; results are on the CPU.

        ONNX takes and returns tensors by name. TorchScript and pt2 take them by position, in the order of
        ``inputs``, and return the leaves of the result (None dropped, numbers as 0-d tensors) as
        ``output_0``, ``output_1``, ...
        """
        child = self._alive()
        if not self._loaded:
            raise ValidationError("the artifact process has nothing loaded; call load(path) first")
        self._runs += 1
        given, returned = (child.directory / f"{side}{self._runs}" for side in ("in", "out"))
        try:
            self._write(given, inputs)
            command = {"run": {"inputs": str(given), "outputs": str(returned)}}
            self.last_run_seconds = self._ask(command, "running")["ran"]
            packed = read_tensors(returned)
        finally:
            for path in (given, returned):
                path.unlink(missing_ok=True)
        return {
            name: torch.from_numpy(data).view(getattr(torch, dtype)).reshape(shape)
            for name, dtype, shape, data in packed
        }

    def _write(self, path: Path, inputs: Mapping[str, Tensor]) -> None:
        packed = [_pack(name, tensor) for name, tensor in inputs.items()]
        try:
            write_tensors(path, packed)
        except OSError as error:
            size = sum(data.nbytes for *_, data in packed)
            raise ValidationError(
                f"cannot hand {size} bytes of inputs to the artifact process through {path.parent}: {error}; "
                "set TMPDIR to a directory with more room"
            ) from error

    def close(self) -> None:
        """Kill the worker and all it started, and remove the temporary files; a second call does nothing."""
        child, self._child = self._child, None
        self._spent = self._spent or "close() was called"
        if child is not None:
            child.destroy()

    def _ask(self, command: dict[str, Any] | None, what: str) -> dict[str, Any]:
        """Send ``command`` (None: just listen) and return the answer; raises its error, if it is one.

        Without a complete answer the worker ends: a late one would be taken for that of the next command.
        """
        child = self._alive()
        try:
            if command is not None:
                child.send(json.dumps(command))
            line = child.receive(self.timeout)
        except BrokenPipeError:
            raise self._died(what) from None
        except TimeoutError:
            raise self._fail(
                f"the artifact process ({self.format}) was still {what} after {self.timeout:g} s and was "
                "stopped; if the model needs longer, raise the limit: ArtifactProcess(timeout=...)"
            ) from None
        except BaseException:
            self._fail(f"interrupted while {what}")
            raise
        if line is None:
            raise self._died(what)
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ValidationError(self._explain(answer["error"], answer["message"], what))
        return answer

    def _alive(self) -> _Child:
        if self._child is None:
            raise ValidationError(f"the artifact process has ended ({self._spent}); make a new one")
        return self._child

    def _explain(self, kind: str, message: str, what: str) -> str:
        text = f"the {self.format} artifact failed while {what}: {kind}: {message}"
        if kind == "MemoryError":
            text += f"; it ran out of memory (memory_limit_gb={self._memory_limit_gb}): raise the limit, "
            text += "if there is one, or use smaller inputs"
        elif kind == "NotImplemented":
            text += "; the provider has no kernel for this operator and dtype: use another dtype or provider"
        return text

    def _died(self, what: str) -> ValidationError:
        status, tail = self._alive().last_words()
        fate = f"died with {_signal_name(-status)}" if status < 0 else f"ended with exit status {status}"
        if -status in (signal.SIGKILL, signal.SIGABRT):
            fate += " (possibly out of memory)"
        ending = f"; its last messages:\n{tail}" if tail else ""
        return self._fail(f"artifact process ({self.format}) {fate} while {what}{ending}")

    def _fail(self, message: str) -> ValidationError:
        """Close for good; the error says why to whoever comes later, too."""
        self._spent = message
        self.close()
        return ValidationError(message)


class _Child:
    """The worker process, its pipes and its temporary directory; destroyed with this object at the latest."""

    def __init__(self, arguments: list[str]) -> None:
        folder = tempfile.TemporaryDirectory(prefix="fxexport-run-")
        self.directory = Path(folder.name)
        self._messages = self.directory / "stderr"
        with self._messages.open("wb") as messages:
            # A session of its own: Ctrl-C in the terminal reaches the parent alone, and killing the group
            # kills all.
            self.process = subprocess.Popen(
                [sys.executable, "-P", str(_WORKER), *arguments],
                bufsize=0,  # else closing the pipe of a dead worker would try to flush into it
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=messages,
                start_new_session=True,
            )
        self._received = b""
        self._finalizer = weakref.finalize(self, _end, self.process, folder)

    def send(self, line: str) -> None:
        pipe = _opened(self.process.stdin)
        pipe.write(line.encode() + b"\n")

    def receive(self, timeout: float) -> str | None:
        """The next line, None when the worker has closed its end; TimeoutError after ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        pipe = _opened(self.process.stdout)
        poll = select.poll()
        poll.register(pipe, select.POLLIN)
        while b"\n" not in self._received:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            if not poll.poll(min(left, 60.0) * 1000):
                continue
            chunk = os.read(pipe.fileno(), 1 << 16)
            if not chunk:
                return None
            self._received += chunk
        line, _, self._received = self._received.partition(b"\n")
        return line.decode()

    def last_words(self) -> tuple[int, str]:
        """Exit status (negative: signal) of a worker whose pipe is closed, and the end of its stderr."""
        try:
            status = self.process.wait(_EXIT_GRACE)
        except subprocess.TimeoutExpired:
            _kill_group(self.process)
            status = self.process.wait()
        return status, self._messages.read_bytes()[-2000:].decode(errors="replace").strip()

    def destroy(self) -> None:
        self._finalizer()


def _end(process: subprocess.Popen[bytes], folder: tempfile.TemporaryDirectory[str]) -> None:
    try:
        _kill_group(process)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            _opened(pipe).close()
    finally:
        folder.cleanup()


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill the session that the worker leads; its number stays taken while a member of it lives."""
    with contextlib.suppress(ProcessLookupError):  # nobody is left
        os.killpg(process.pid, signal.SIGKILL)


def _opened(pipe: IO[bytes] | None) -> IO[bytes]:
    if pipe is None:
        raise RuntimeError("the worker was started without pipes")
    return pipe


def _signal_name(number: int) -> str:
    return {known.value: known.name for known in signal.Signals}.get(number, f"signal {number}")


def _tensor_info(entry: dict[str, Any]) -> TensorInfo:
    shape = entry["shape"]
    return TensorInfo(entry["name"], entry["dtype"], None if shape is None else tuple(shape))


def _pack(name: str, tensor: Tensor) -> Packed:
    """The bytes of ``tensor`` in C order; no copy where it lies so already."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    if tensor.layout != torch.strided or dtype not in ITEM_SIZES:
        raise InputError(f"input '{name}' ({tensor.layout}, {tensor.dtype}) cannot be handed to an artifact")
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    return name, dtype, tuple(tensor.shape), plain.reshape(-1).view(torch.uint8).numpy()
