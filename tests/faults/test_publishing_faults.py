"""The rows of the fault table that concern paths, disks, crashes, concurrent runs and files read back."""

from __future__ import annotations

import multiprocessing
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from fxexport.destination import preflight, sibling_name
from fxexport.errors import InputError, PublishError
from fxexport.lowering import onnx_file
from fxexport.lowering.onnx_file import check_onnx, write_onnx
from fxexport.lowering.onnx_reading import read_onnx_skeleton, safe_external_locations
from fxexport.publishing import publication

SUFFIXES = [".onnx", ".pt", ".pt2"]
SIZE = 50_000  # elements; 200 kB of weights
FORK = multiprocessing.get_context("fork") if sys.platform != "win32" else None
posix = pytest.mark.skipif(FORK is None, reason="needs fork and POSIX signals")


def model(fill: float, size: int = SIZE) -> ir.Model:
    """y = x + w, float32[size], every w the same number."""

    def value(name: str, tensor: ir.TensorProtocol | None = None) -> ir.Value:
        return ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([size]), const_value=tensor)

    x, w = value("x"), value("w", ir.tensor(np.full(size, fill, np.float32), name="w"))
    add = ir.node("Add", [x, w], outputs=[value("y")])
    graph = ir.Graph([x], add.outputs, nodes=[add], initializers=[w], opset_imports={"": 20}, name="add")
    return ir.Model(graph, ir_version=10)


def export(path: str | os.PathLike[str], fill: float, *, external: bool = True, lock_timeout: float = 60) -> list[Path]:
    with publication(preflight(path, SUFFIXES), lock_timeout=lock_timeout) as staging:
        write_onnx(model(fill), staging.main, external_data=external)
        return staging.publish()


def run(path: str | os.PathLike[str]) -> float:
    session = onnxruntime.InferenceSession(os.fspath(path))
    found = np.unique(session.run(None, {"x": np.zeros(SIZE, np.float32)})[0])
    assert found.size == 1
    return float(found[0])


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() if path.is_file() else b"(directory)" for path in directory.iterdir()}


def in_child(work: Callable[[], None]) -> multiprocessing.process.BaseProcess:
    assert FORK is not None
    child = FORK.Process(target=work)
    child.start()
    return child


# --- rows 1 to 3: before the work ---


@pytest.mark.parametrize("name", ["noext", "a.txt", ".onnx", "a.onnx.bak", "a."])
def test_fault_01_missing_or_unknown_extension(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"use one of \.onnx, \.pt, \.pt2") as caught:
        preflight(tmp_path / name, SUFFIXES)
    assert isinstance(caught.value, InputError)
    assert contents(tmp_path) == {}


def test_fault_01_case_does_not_matter(tmp_path: Path) -> None:
    assert preflight(tmp_path / "A.ONNX", SUFFIXES) == tmp_path / "A.ONNX"


def test_fault_02_parent_directory_missing(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "m.onnx"
    with pytest.raises(InputError, match=r"mkdir=True.*--mkdir"):
        preflight(path, SUFFIXES)
    assert contents(tmp_path) == {}
    assert preflight(path, SUFFIXES, mkdir=True) == path
    assert contents(path.parent) == {}


@pytest.mark.parametrize("mkdir", [False, True])
def test_fault_02_parent_is_a_file(tmp_path: Path, mkdir: bool) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file"):
        preflight(tmp_path / "file" / "m.onnx", SUFFIXES, mkdir=mkdir)


def test_fault_03_path_is_a_directory(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").mkdir()
    with pytest.raises(InputError, match="is a directory"):
        preflight(tmp_path / "m.onnx", SUFFIXES)


@contextmanager
def as_nobody() -> Iterator[None]:
    """Permissions do not bind root: act as an ordinary user."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@posix
def test_fault_03_unwritable_directory() -> None:
    directory = Path(tempfile.mkdtemp())  # not tmp_path, whose parents are closed to other users
    try:
        directory.chmod(0o555)
        with as_nobody(), pytest.raises(InputError, match=r"cannot create files in .*Permission denied"):
            preflight(directory / "m.onnx", SUFFIXES)
        directory.chmod(0o000)
        with as_nobody(), pytest.raises(InputError, match="Permission denied"):
            preflight(directory / "m.onnx", SUFFIXES)
    finally:
        directory.chmod(0o700)
        shutil.rmtree(directory)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a file system that looks writable and is not")
def test_fault_03_the_probe_really_creates_a_file() -> None:
    with pytest.raises(InputError, match="cannot create files in /proc"):
        preflight("/proc/m.onnx", SUFFIXES)


def test_fault_03_the_probe_leaves_nothing(tmp_path: Path) -> None:
    preflight(tmp_path / "m.onnx", SUFFIXES)
    assert contents(tmp_path) == {}


# --- row 30: large models ---


def gather_model(rows: int) -> ir.Model:
    """y = w[i], w float32[rows, 1024]; numpy's zeros take no memory until written."""
    data = np.zeros((rows, 1024), np.float32)
    data[-1] = 7
    i = ir.Value(name="i", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([1]))
    w = ir.Value(name="w", const_value=ir.tensor(data, name="w"))
    y = ir.Value(name="y", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([1, 1024]))
    gather = ir.node("Gather", [w, i], outputs=[y])
    graph = ir.Graph([i], [y], nodes=[gather], initializers=[w], opset_imports={"": 20}, name="gather")
    return ir.Model(graph, ir_version=10)


def test_fault_30_model_beyond_two_gigabytes(tmp_path: Path) -> None:
    if shutil.disk_usage(tmp_path).free < 6 * 2**30:
        pytest.skip("needs 6 GB of free disk")
    rows = 2**19 + 1
    big = gather_model(rows)
    check_onnx(big)
    try:
        with publication(tmp_path / "m.onnx") as staging:
            write_onnx(big, staging.main)
            path, data = staging.publish()
        assert data.stat().st_size == rows * 4096 > 2**31
        assert path.stat().st_size < 10_000
        session = onnxruntime.InferenceSession(path)
        assert session.run(None, {"i": np.array([rows - 1])})[0].min() == 7
        assert session.run(None, {"i": np.array([0])})[0].max() == 0
    finally:
        for file in tmp_path.iterdir():
            file.unlink()  # pytest keeps directories for a while


# --- row 31: the disk is full ---


@posix
@pytest.mark.parametrize("old_external", [False, True])
@pytest.mark.parametrize("external", [False, True])
def test_fault_31_disk_full_in_mid_write(tmp_path: Path, external: bool, old_external: bool) -> None:
    path = tmp_path / "m.onnx"
    export(path, 1, external=old_external)
    before = contents(tmp_path)

    def write_on_a_full_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        with pytest.raises(PublishError, match=r"limit is reached .*old file is intact"):
            export(path, 2, external=external)
        assert contents(tmp_path) == before, "cleaned up before the process ends, too"

    child = in_child(write_on_a_full_disk)
    child.join()
    assert child.exitcode == 0
    assert contents(tmp_path) == before
    assert run(path) == 1


# --- row 32: kill -9 ---


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_while_writing() -> None:
    real = onnx_file._blocks

    def blocks(tensor: ir.TensorProtocol) -> Iterator[memoryview]:
        for block in real(tensor):
            yield block[: len(block) // 2]
            die()

    onnx_file._blocks = blocks


def die_at_replace(call: int, after: bool) -> Callable[[], None]:
    """Calls: 1 names the data file in the staging directory, 2 publishes it, 3 publishes the main file."""

    def install() -> None:
        real, count = os.replace, 0

        def replace(source: Path, destination: Path) -> None:
            nonlocal count
            count += 1
            if count == call and not after:
                die()
            real(source, destination)
            if count == call:
                die()

        os.replace = replace  # type: ignore[assignment]

    return install


MOMENTS = {
    "while the data is written": (die_while_writing, 1),
    "before the data has its name": (die_at_replace(1, False), 1),
    "before the data is published": (die_at_replace(2, False), 1),
    "between data and main file": (die_at_replace(2, True), 1),
    "before the main file": (die_at_replace(3, False), 1),
    "after the main file": (die_at_replace(3, True), 2),
}


@posix
@pytest.mark.parametrize("moment", MOMENTS)
def test_fault_32_kill_leaves_a_pair_that_loads(tmp_path: Path, moment: str) -> None:
    path = tmp_path / "m.onnx"
    export(path, 1)
    install, expected = MOMENTS[moment]

    def killed() -> None:
        install()
        export(path, 2)

    child = in_child(killed)
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert len(contents(tmp_path)) > 2, "the crash left something behind"
    assert run(path) == expected
    published = export(path, 3, lock_timeout=5)
    assert run(path) == 3
    assert sorted(contents(tmp_path)) == sorted(file.name for file in published), "leftovers are cleaned"


@posix
def test_fault_32_a_failing_next_run_cleans_too_and_keeps_the_pair(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    export(path, 1)
    before = contents(tmp_path)

    def killed() -> None:
        die_at_replace(3, False)()
        export(path, 2)

    in_child(killed).join()
    with pytest.raises(RuntimeError), publication(path):
        raise RuntimeError("the model is wrong")
    assert contents(tmp_path) == before


# --- row 33: two processes ---


@posix
def test_fault_33_the_second_process_waits(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"

    def first() -> None:
        with publication(path) as staging:
            (tmp_path / "started").touch()
            write_onnx(model(1), staging.main, external_data=True)
            time.sleep(0.5)
            staging.publish()
            (tmp_path / "finished").touch()

    child = in_child(first)
    while not (tmp_path / "started").exists():
        time.sleep(0.01)
    with publication(path) as staging:
        assert (tmp_path / "finished").exists()
        write_onnx(model(2), staging.main, external_data=True)
        published = staging.publish()
    child.join()
    assert child.exitcode == 0
    assert run(path) == 2
    assert set(contents(tmp_path)) == {"started", "finished", *(file.name for file in published)}


@posix
def test_fault_33_or_fails_naming_the_pid(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"

    def first() -> None:
        with publication(path):
            (tmp_path / "started").touch()
            while not (tmp_path / "stop").exists():
                time.sleep(0.01)

    child = in_child(first)
    try:
        while not (tmp_path / "started").exists():
            time.sleep(0.01)
        with pytest.raises(PublishError) as caught, publication(path, lock_timeout=0.2):
            pytest.fail("two processes hold one lock")
        assert f"pid {child.pid} " in str(caught.value)
        assert str(tmp_path / ".m.onnx.fxexport-lock") in str(caught.value)
    finally:
        (tmp_path / "stop").touch()
        child.join()
    with publication(path, lock_timeout=0):
        pass
    assert set(contents(tmp_path)) == {"started", "stop"}, "no lock file stays behind"


@posix
def test_fault_33_many_processes_one_at_a_time(tmp_path: Path) -> None:
    """The lock file is unlinked on each release; a read-modify-write that is not exclusive loses counts."""
    counter = tmp_path / "counter"
    counter.write_text("0")

    def count() -> None:
        for _ in range(10):
            with publication(tmp_path / "m.onnx", lock_timeout=60):
                seen = int(counter.read_text())
                time.sleep(0.001)
                counter.write_text(str(seen + 1))

    children = [in_child(count) for _ in range(4)]
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0] * 4
    assert contents(tmp_path) == {"counter": b"40"}


# --- rows 34 and 35: what stays and what goes ---


@pytest.mark.parametrize("error", [RuntimeError("wrong output"), KeyboardInterrupt()])
def test_fault_34_failing_export_over_a_good_file(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "m.onnx"
    export(path, 1)
    before = contents(tmp_path)

    def fail() -> None:
        with publication(path) as staging:
            write_onnx(model(2), staging.main, external_data=True)
            raise error

    with pytest.raises(type(error)):
        fail()
    assert contents(tmp_path) == before
    with publication(path) as staging:
        write_onnx(model(2), staging.main, external_data=True)
        assert run(staging.main) == 2, "the candidate runs where it is checked"
        rejected = staging.reject()
    assert {name: data for name, data in contents(tmp_path).items() if name != rejected.name} == before
    assert run(rejected / "m.onnx") == 2


def test_fault_35_no_data_file_when_nothing_is_in_it(tmp_path: Path) -> None:
    assert write_onnx(model(1, size=4), tmp_path / "m.onnx", external_data=True) == [tmp_path / "m.onnx"]
    assert set(contents(tmp_path)) == {"m.onnx"}


def test_fault_35_stale_data_of_ours_goes_and_foreign_files_stay(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    foreign = ["m.data", "m.onnx.data", "m.onnx.0123456789AB.data", "n.onnx.0123456789ab.data", ".m.onnx.tmp"]
    for name in foreign:
        (tmp_path / name).write_bytes(b"foreign")
    first = export(path, 1)
    second = export(path, 2)
    assert first[1].name != second[1].name
    assert set(contents(tmp_path)) == {*foreign, *(file.name for file in second)}
    assert export(path, 2) == second, "the same weights keep their data file"
    assert run(path) == 2
    export(path, 3, external=False)
    assert set(contents(tmp_path)) == {*foreign, "m.onnx"}


def test_fault_35_a_stray_file_of_the_same_name_is_not_appended_to(tmp_path: Path) -> None:
    _, data = write_onnx(model(1), tmp_path / "m.onnx", external_data=True)
    content = data.read_bytes()
    data.write_bytes(b"stray")
    write_onnx(model(1), tmp_path / "m.onnx", external_data=True)
    assert data.read_bytes() == content


# --- rows 36 and 37: files we only inspect ---


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.999])
def test_fault_36_truncated_file(tmp_path: Path, external: bool, share: float) -> None:
    path, *_ = export(tmp_path / "m.onnx", 1, external=external)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(InputError) as caught:
        read_onnx_skeleton(path)
    message = str(caught.value)
    assert message.startswith(f"{path} ({int(len(content) * share):,} bytes) is not a complete ONNX model")
    assert "\n" not in message


def test_fault_36_every_truncation_is_noticed(tmp_path: Path) -> None:
    path, *_ = export(tmp_path / "m.onnx", 1)
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(InputError):
            read_onnx_skeleton(path)


@pytest.mark.parametrize("content", [b"PK\x03\x04 a zip archive", b"\xff" * 100, b"\n\n\n", b"hello"])
def test_fault_36_not_onnx(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(InputError, match="not a complete ONNX model"):
        safe_external_locations(tmp_path / "m.onnx")


def test_fault_36_data_file_missing_or_cut_short(tmp_path: Path) -> None:
    path, data = export(tmp_path / "m.onnx", 1)
    assert safe_external_locations(path) == [data]
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(InputError, match="ends at byte 199,999 of the 200,000 needed"):
        read_onnx_skeleton(path)
    data.unlink()
    with pytest.raises(InputError, match="not an existing file"):
        read_onnx_skeleton(path)


def point_to(path: Path, location: str, **entries: str) -> None:
    proto = onnx.load(path, load_external_data=False)
    record = proto.graph.initializer[0]
    del record.external_data[:]
    for key, text in {"location": location, **entries}.items():
        record.external_data.add(key=key, value=text)
    path.write_bytes(proto.SerializeToString())


LOCATIONS = {
    "../secret": "leads out",
    "sub/../../secret": "leads out",
    "..\\secret": "leads out",
    "/etc/passwd": "absolute",
    "C:\\secret": "absolute",
    "C:secret": "absolute",
    "\\\\server\\share": "absolute",
    "link": "symbolic link",
    "folder/secret": "symbolic link",
    "": "no file name",
    ".": "no file name",
    "a\0b": "no file name",
    "sub": "not an existing file",
}


@pytest.mark.parametrize("location", LOCATIONS)
def test_fault_37_external_data_outside_the_directory(tmp_path: Path, location: str) -> None:
    (tmp_path / "secret").write_bytes(bytes(10**6))
    (tmp_path / "dir" / "sub").mkdir(parents=True)
    (tmp_path / "dir" / "link").symlink_to(tmp_path / "secret")
    (tmp_path / "dir" / "folder").symlink_to(tmp_path)
    path, *_ = export(tmp_path / "dir" / "m.onnx", 1)
    point_to(path, location)
    with pytest.raises(InputError, match=f"tensor 'w' has its data in .*{LOCATIONS[location]}.*refused"):
        read_onnx_skeleton(path)


@pytest.mark.parametrize("entries", [{"offset": "-1"}, {"length": "many"}, {"offset": "1e9"}, {"length": "200001"}])
def test_fault_37_offsets_that_are_none(tmp_path: Path, entries: dict[str, str]) -> None:
    path, data = export(tmp_path / "m.onnx", 1)
    point_to(path, data.name, **entries)
    with pytest.raises(InputError, match="refused"):
        read_onnx_skeleton(path)


def test_fault_37_a_data_file_in_a_subdirectory_is_fine(tmp_path: Path) -> None:
    path, data = export(tmp_path / "m.onnx", 1)
    (tmp_path / "sub").mkdir()
    data.rename(tmp_path / "sub" / "w")
    point_to(path, "sub/w")
    assert safe_external_locations(path) == [tmp_path / "sub" / "w"]


def test_fault_37_also_in_attributes_of_subgraphs_and_functions(tmp_path: Path) -> None:
    evil = onnx.TensorProto(name="evil", dims=[1], data_type=1, data_location=onnx.TensorProto.EXTERNAL)
    evil.external_data.add(key="location", value="/etc/passwd")
    constant = onnx.helper.make_node("Constant", [], ["k"], value=evil)
    inner = onnx.helper.make_graph([constant], "inner", [], [onnx.helper.make_tensor_value_info("k", 1, [1])])
    branch = onnx.helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    plain = onnx.helper.make_graph([], "plain", [], [])
    opsets = [onnx.helper.make_opsetid("", 20)]
    function = onnx.helper.make_function("local", "f", [], ["k"], [constant], opsets)
    sparse = onnx.helper.make_graph([], "sparse", [], [])
    sparse.sparse_initializer.add(values=evil)
    for graph, functions in (
        (onnx.helper.make_graph([branch], "outer", [], []), []),
        (plain, [function]),
        (sparse, []),
    ):
        proto = onnx.helper.make_model(graph, functions=functions, opset_imports=opsets)
        (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
        with pytest.raises(InputError, match="tensor 'evil' has its data in '/etc/passwd', which is absolute"):
            read_onnx_skeleton(tmp_path / "m.onnx")


# --- row 48: odd names ---

ODD = ["modèle 模型 🚀.onnx", "two words.onnx", "-m.onnx", "--help.onnx", "a'b\"c.onnx", "x" * 250 + ".onnx"]
ODD += ["é" * 125 + ".onnx", "new\nline.onnx", "%s{0}.onnx", "*[a-f].onnx"]


@pytest.mark.parametrize("name", ODD)
def test_fault_48_odd_file_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    export(name, 1)
    published = export(name, 2)
    assert published[0] == tmp_path / name
    assert set(contents(tmp_path)) == {file.name for file in published}
    assert run(name) == 2
    assert [file.absolute() for file in safe_external_locations(name)] == published[1:]
    with publication(name) as staging:
        staging.main.write_bytes(b"candidate")
        assert staging.reject().is_dir()


def test_fault_48_too_long_a_name_is_refused_with_its_length(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="256 bytes: shorten it to at most 255"):
        preflight(tmp_path / ("x" * 251 + ".onnx"), SUFFIXES)
    assert sibling_name("x" * 250 + ".onnx", ".rejected").endswith(".rejected")
