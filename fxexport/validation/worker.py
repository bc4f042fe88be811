"""The far side of ``runner.ArtifactProcess``: loads one artifact and runs it in a process that may crash.

Run by path (``python -P worker.py onnx``), so it imports the standard library, numpy and one runtime only,
never fxexport. Protocol: one JSON object per line. On start ``{"ready": versions}``; then for each command
one answer:

    {"load": path, "threads": n, "providers": [...]} -> {"loaded": {inputs, outputs, providers, seconds}}
    {"run": {"inputs": file, "outputs": file}}       -> {"ran": seconds}
    {"stop": true}                                   -> the process ends, as it does at end of file

(``threads`` may be null), or ``{"error": type, "message": text}``. Tensors travel in files: eight bytes
(little endian) with the length of a JSON list of [name, dtype, shape], that list, then the data of each, C
order, each start aligned to 64 bytes.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import os
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

# A tensor on the way: name, dtype as torch spells it ("bfloat16" has no numpy type), shape, its bytes (1-d
# uint8).
Packed = tuple[str, str, tuple[int, ...], npt.NDArray[np.uint8]]
_ALIGN = 64
_ONNX_BFLOAT16 = 16  # onnx.TensorProto.BFLOAT16
_ORT_DTYPES = {"float": "float32", "double": "float64"}  # the rest are spelled alike, as in tensor(int64)
_OUT_OF_MEMORY = ("bad_alloc", "failed to allocate memory", "can't allocate memory", "cannot allocate memory")
ITEM_SIZES = {
    **dict.fromkeys(("bool", "int8", "uint8"), 1),
    **dict.fromkeys(("int16", "uint16", "float16", "bfloat16"), 2),
    **dict.fromkeys(("int32", "uint32", "float32"), 4),
    **dict.fromkeys(("int64", "uint64", "float64", "complex64"), 8),
    "complex128": 16,
}


def write_tensors(path: Path, tensors: list[Packed]) -> None:
    """Write ``tensors`` to ``path`` in the layout described above; OSError when the disk is full."""
    header = json.dumps([(name, dtype, list(shape)) for name, dtype, shape, _ in tensors]).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little"))
        file.write(header)
        for *_, data in tensors:
            file.write(bytes(-file.tell() % _ALIGN))
            file.write(data.data)


def read_tensors(path: Path) -> list[Packed]:
    """The tensors in ``path``, one read for all of them; ValueError when the file is shorter than it says."""
    content = np.fromfile(path, dtype=np.uint8)
    length = int.from_bytes(content[:8].tobytes(), "little")
    position = 8 + length
    tensors: list[Packed] = []
    for name, dtype, shape in json.loads(content[8:position].tobytes()):
        position += -position % _ALIGN
        size = math.prod(shape) * ITEM_SIZES[dtype]
        data = content[position : position + size]
        if data.size != size:
            raise ValueError(f"{path} ends inside tensor '{name}'; the disk may be full")
        tensors.append((name, dtype, tuple(shape), data))
        position += size
    return tensors


class OnnxRuntime:
    """Runs an .onnx file by names; every requested provider must be there, none is replaced by the CPU."""

    def __init__(self) -> None:
        import onnxruntime

        self._ort = onnxruntime
        self._session: Any = None
        self.versions = {"onnxruntime": onnxruntime.__version__}

    def load(self, path: str, threads: int | None, providers: list[str]) -> dict[str, Any]:
        available = self._ort.get_available_providers()
        self._require(providers, available, "this build of onnxruntime has only")
        if "CUDAExecutionProvider" in providers:
            self._ort.preload_dlls()  # CUDA and cuDNN from the nvidia-* wheels, where the system has none
        options = self._ort.SessionOptions()
        options.log_severity_level = 3
        # Threads that spin between runs would take the cores that eager needs meanwhile.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if threads is not None:
            options.intra_op_num_threads = threads
        self._session = self._ort.InferenceSession(path, options, providers=providers)
        self._session.disable_fallback()
        used = self._session.get_providers()
        self._require(providers, used, "the session could start only")
        return {
            "inputs": [self._describe(value) for value in self._session.get_inputs()],
            "outputs": [self._describe(value) for value in self._session.get_outputs()],
            "providers": used,
        }

    @staticmethod
    def _require(asked: list[str], there: list[str], what: str) -> None:
        missing = [name for name in asked if name not in there]
        if missing:
            raise LookupError(f"provider {', '.join(missing)} is missing; {what} {', '.join(there)}")

    @staticmethod
    def _describe(value: Any) -> dict[str, Any]:
        inner = value.type.removeprefix("tensor(").removesuffix(")")
        shape = [size if isinstance(size, int) else str(size) for size in value.shape or ()]
        return {"name": value.name, "dtype": _ORT_DTYPES.get(inner, inner), "shape": shape}

    def run(self, inputs: list[Packed]) -> list[Packed]:
        feeds = {name: self._wrap(dtype, shape, data) for name, dtype, shape, data in inputs}
        names = [value.name for value in self._session.get_outputs()]
        values = self._session.run_with_ort_values(names, feeds)
        return [self._unwrap(name, value) for name, value in zip(names, values, strict=True)]

    def _wrap(self, dtype: str, shape: tuple[int, ...], data: npt.NDArray[np.uint8]) -> Any:
        """An OrtValue over ``data`` (no copy; the caller keeps it alive)."""
        if dtype == "bfloat16":
            bits = data.view(np.uint16).reshape(shape)
            return self._ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, _ONNX_BFLOAT16)
        return self._ort.OrtValue.ortvalue_from_numpy(data.view(dtype).reshape(shape))

    @staticmethod
    def _unwrap(name: str, value: Any) -> Packed:
        kind = value.data_type()
        if not value.is_tensor() or not kind.startswith("tensor("):
            raise TypeError(f"output '{name}' is a {kind}; only tensors can be compared")
        shape = tuple(value.shape())
        if kind == "tensor(bfloat16)":  # numpy has no such type and .numpy() refuses, so take the bytes
            size = math.prod(shape) * ITEM_SIZES["bfloat16"]
            content = ctypes.string_at(value.data_ptr(), size) if size else b""
            return name, "bfloat16", shape, np.frombuffer(content, np.uint8)
        return _pack_array(name, value.numpy())


class TorchRuntime:
    """Runs a TorchScript file or a .pt2 on the CPU: inputs by position, the leaves of the result in order."""

    def __init__(self, form: str) -> None:
        import torch

        self._torch: Any = torch
        self._form = form
        self._call: Any = None
        self.versions = {"torch": torch.__version__}

    def load(self, path: str, threads: int | None, providers: list[str]) -> dict[str, Any]:
        if providers != ["CPUExecutionProvider"]:
            raise LookupError(f"{', '.join(providers)}: of onnxruntime only; torch artifacts run on the CPU")
        if threads is not None:
            self._torch.set_num_threads(threads)
        description = self._load_script(path) if self._form == "torchscript" else self._load_pt2(path)
        return {**description, "providers": ["torch CPU"]}

    def _load_script(self, path: str) -> dict[str, Any]:
        module = self._torch.jit.load(path, map_location="cpu")
        self._call = module
        arguments = module.forward.schema.arguments[1:]
        return {"inputs": [{"name": a.name, "dtype": "", "shape": None} for a in arguments], "outputs": []}

    def _load_pt2(self, path: str) -> dict[str, Any]:
        from torch.export.graph_signature import ConstantArgument, InputKind

        program = self._torch.export.load(path)
        module = program.module()
        specs = [s.arg for s in program.graph_signature.input_specs if s.kind == InputKind.USER_INPUT]
        given = [arg for arg in specs if not isinstance(arg, ConstantArgument)]

        def call(*tensors: Any) -> Any:
            if len(tensors) != len(given):
                names = ", ".join(arg.name for arg in given)
                raise TypeError(f"{len(tensors)} inputs given, the program takes {len(given)}: {names}")
            rest = iter(tensors)
            leaves = [arg.value if isinstance(arg, ConstantArgument) else next(rest) for arg in specs]
            args, kwargs = program.call_spec.in_spec.unflatten(leaves)
            return module(*args, **kwargs)

        self._call = call
        values = {node.name: node.meta.get("val") for node in program.graph.nodes}
        outputs = [s.arg for s in program.graph_signature.output_specs if s.kind.name == "USER_OUTPUT"]
        return {
            "inputs": [self._describe(arg, values) for arg in given],
            "outputs": [self._describe(arg, values) for arg in outputs if arg.name in values],
        }

    def _describe(self, arg: Any, values: dict[str, Any]) -> dict[str, Any]:
        value = values[arg.name]
        if not isinstance(value, self._torch.Tensor):
            return {"name": arg.name, "dtype": type(value).__name__, "shape": None}
        shape = [size if isinstance(size, int) else str(size) for size in value.shape]
        return {"name": arg.name, "dtype": str(value.dtype).removeprefix("torch."), "shape": shape}

    def run(self, inputs: list[Packed]) -> list[Packed]:
        torch = self._torch
        tensors = [
            torch.from_numpy(data).view(getattr(torch, dtype)).reshape(shape) for _, dtype, shape, data in inputs
        ]
        with torch.no_grad():
            result = self._call(*tensors)
        return [self._pack(f"output_{i}", leaf) for i, leaf in enumerate(_leaves(result))]

    def _pack(self, name: str, leaf: Any) -> Packed:
        torch = self._torch
        if not isinstance(leaf, (torch.Tensor, bool, int, float, complex)):
            raise TypeError(f"'{name}' is a {type(leaf).__name__}; only tensors and numbers can be compared")
        tensor = torch.as_tensor(leaf).detach().cpu().resolve_conj().resolve_neg().contiguous()
        dtype = str(tensor.dtype).removeprefix("torch.")
        return name, dtype, tuple(tensor.shape), tensor.reshape(-1).view(torch.uint8).numpy()


Runtime = OnnxRuntime | TorchRuntime


def _leaves(result: Any) -> list[Any]:
    if result is None:
        return []
    if isinstance(result, dict):
        result = list(result.values())
    if isinstance(result, (list, tuple)):
        return [leaf for item in result for leaf in _leaves(item)]
    return [result]


def _pack_array(name: str, array: npt.NDArray[Any]) -> Packed:
    return name, array.dtype.name, array.shape, np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _answer(runtime: Runtime, command: dict[str, Any]) -> dict[str, Any]:
    started = time.perf_counter()
    if "load" in command:
        loaded = runtime.load(command["load"], command["threads"], command["providers"])
        return {"loaded": {**loaded, "seconds": time.perf_counter() - started}}
    if "run" in command:
        inputs = read_tensors(Path(command["run"]["inputs"]))
        started = time.perf_counter()
        outputs = runtime.run(inputs)
        seconds = time.perf_counter() - started
        write_tensors(Path(command["run"]["outputs"]), outputs)
        return {"ran": seconds}
    raise ValueError(f"unknown command {sorted(command)}; known: load, run, stop")


def _describe_error(error: Exception) -> dict[str, str]:
    """Runtimes report a failed allocation as any type; the parent must tell it from a wrong model."""
    text = str(error)
    memory = isinstance(error, MemoryError) or any(sign in text.lower() for sign in _OUT_OF_MEMORY)
    return {"error": "MemoryError" if memory else type(error).__name__, "message": text[:4000]}


def _limit_memory(gigabytes: float) -> None:
    import resource  # Unix only, and needed only here

    limit = int(gigabytes * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _end_with_parent(parent: int) -> None:
    """A worker busy in native code does not see its input end when the parent is killed; this thread does."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("format", choices=("onnx", "torchscript", "pt2"))
    parser.add_argument("--memory-limit-gb", type=float)
    options = parser.parse_args()
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    # Libraries may print; what they print must not land between the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def reply(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")

    try:
        runtime = OnnxRuntime() if options.format == "onnx" else TorchRuntime(options.format)
        if options.memory_limit_gb is not None:  # after the import: a small limit should fail in a command
            _limit_memory(options.memory_limit_gb)
    except Exception as error:  # noqa: BLE001 - the parent raises it
        traceback.print_exc()
        reply(_describe_error(error))
        return
    reply({"ready": {"python": sys.version.split()[0], **runtime.versions}})
    for line in sys.stdin:
        command = json.loads(line)
        if "stop" in command:
            return
        try:
            reply(_answer(runtime, command))
        except Exception as error:  # noqa: BLE001 - the parent raises it
            traceback.print_exc()
            reply(_describe_error(error))


if __name__ == "__main__":
    main()
