"""Several files as one unit: all appear or none, whatever stops it, with plain bytes for artifacts."""

from __future__ import annotations

import errno
import itertools
import multiprocessing
import os
import shutil
import signal
import stat
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from fxexport.destination import data_file_name
from fxexport.errors import PublishError
from fxexport.publishing import JointStaging, Staging, joint_publication, publication

PARTS = ("encoder-m.onnx", "joint-m.onnx")
MAIN = "pipeline.json"
FORK = multiprocessing.get_context("fork") if sys.platform != "win32" else None
posix = pytest.mark.skipif(FORK is None, reason="needs fork and POSIX signals")


def digest(fill: str) -> str:
    return fill * 12


def fill_in(staging: JointStaging, folder: Path, fill: str) -> None:
    """Two parts that share weights, the first with data of its own too, and the file that describes them."""
    shared, own = data_file_name(MAIN, digest(fill)), data_file_name(PARTS[0], digest(fill))
    for name in (shared, own):
        (staging.directory / name).write_text(f"weights {fill}")
    staging.path_of(folder / PARTS[0]).write_text(f"{fill} reads {shared} and {own}")
    staging.path_of(folder / PARTS[1]).write_text(f"{fill} reads {shared}")
    staging.main.write_text(f"{fill} is {PARTS}")


def publish(folder: Path, fill: str) -> list[Path]:
    with joint_publication([folder / part for part in PARTS], folder / MAIN, lock_timeout=5) as staging:
        fill_in(staging, folder, fill)
        return staging.publish()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() if path.is_file() else b"(directory)" for path in sorted(folder.iterdir())}


def expected(folder: Path, fill: str) -> dict[str, bytes]:
    other = folder.parent / f"expected-{fill}"
    other.mkdir()
    publish(other, fill)
    return contents(other)


def in_child(work: Callable[[], None]) -> int | None:
    assert FORK is not None
    child = FORK.Process(target=work)
    child.start()
    child.join()
    return child.exitcode


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


# --- what is published ---


def test_all_files_appear_the_main_one_is_told_first(folder: Path) -> None:
    names = [path.name for path in publish(folder, "a")]
    assert names[:3] == [MAIN, *PARTS]
    assert sorted(names) == sorted(contents(folder))
    assert len(names) == 5


def test_new_data_replaces_old_data_and_foreign_files_stay(folder: Path) -> None:
    publish(folder, "a")
    (folder / "notes.data").write_text("mine")
    publish(folder, "b")
    assert contents(folder) == expected(folder, "b") | {"notes.data": b"mine"}


def test_main_may_be_one_of_the_targets_and_the_staging_is_a_staging(folder: Path) -> None:
    with joint_publication([folder / "a.onnx", folder / "b.onnx"], folder / "b.onnx") as staging:
        assert isinstance(staging, Staging)
        assert staging.path_of(folder / "b.onnx") == staging.main
        for name in ("a.onnx", "b.onnx"):
            staging.path_of(folder / name).write_text(name)
        with pytest.raises(PublishError, match=r"c\.onnx is not published here; these are: a\.onnx, b\.onnx"):
            staging.path_of(folder / "c.onnx")
        assert [path.name for path in staging.publish()] == ["b.onnx", "a.onnx"]


def test_nothing_appears_without_publish_and_every_target_must_be_written(folder: Path) -> None:
    with joint_publication([folder / part for part in PARTS], folder / MAIN) as staging:
        fill_in(staging, folder, "a")
        staging.path_of(folder / PARTS[1]).unlink()
        with pytest.raises(PublishError, match=r"write 'joint-m\.onnx' first"):
            staging.publish()
    assert contents(folder) == {}


@pytest.mark.parametrize("owner", [*PARTS, MAIN])
def test_a_data_file_of_any_target_that_no_file_names_is_refused(folder: Path, owner: str) -> None:
    with joint_publication([folder / part for part in PARTS], folder / MAIN) as staging:
        fill_in(staging, folder, "a")
        (staging.directory / data_file_name(owner, digest("f"))).write_text("?")
        with pytest.raises(PublishError, match="no file refers to"):
            staging.publish()
    assert contents(folder) == {}


def test_each_part_keeps_the_permissions_of_the_file_it_replaces(folder: Path) -> None:
    publish(folder, "a")
    (folder / PARTS[0]).chmod(0o604)
    (folder / MAIN).chmod(0o640)
    publish(folder, "b")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert modes[PARTS[0]] == modes[data_file_name(PARTS[0], digest("b"))] == 0o604
    assert modes[MAIN] == modes[data_file_name(MAIN, digest("b"))] == 0o640
    assert modes[PARTS[1]] not in (0o604, 0o640)


def test_files_of_two_directories_or_of_one_name_are_refused(folder: Path) -> None:
    (folder / "sub").mkdir()
    with pytest.raises(PublishError, match="one directory"), joint_publication([folder / "sub" / "a"], folder / MAIN):
        pass
    with pytest.raises(PublishError, match="two files"), joint_publication([folder / "a", folder / "a"], folder / MAIN):
        pass


def test_a_rejected_candidate_is_kept_whole_and_the_old_files_stay(folder: Path) -> None:
    publish(folder, "a")
    with joint_publication([folder / part for part in PARTS], folder / MAIN) as staging:
        fill_in(staging, folder, "b")
        kept = staging.reject()
    assert kept == folder / f"{MAIN}.rejected"
    assert {*PARTS, MAIN} <= set(contents(kept))
    assert contents(folder) == expected(folder, "a") | {kept.name: b"(directory)"}


# --- shared data files ---


def test_an_export_of_one_part_leaves_the_others_their_weights(folder: Path) -> None:
    publish(folder, "a")
    with publication(folder / PARTS[0]) as staging:
        staging.main.write_text("alone, without data")
        staging.publish()
    assert data_file_name(MAIN, digest("a")) in contents(folder)
    assert data_file_name(PARTS[0], digest("a")) not in contents(folder)


def test_data_that_a_part_of_an_earlier_run_reads_stays_until_that_part_goes(folder: Path) -> None:
    publish(folder, "a")
    shared = data_file_name(MAIN, digest("a"))
    for expected_there in (True, False):
        with joint_publication([folder / PARTS[0]], folder / MAIN) as staging:
            staging.path_of(folder / PARTS[0]).write_text("new")
            staging.main.write_text("only the encoder")
            staging.publish()
        assert (shared in contents(folder)) is expected_there, "the joint still reads it"
        (folder / PARTS[1]).unlink(missing_ok=True)


# --- stopped halfway ---


def stop_at(monkeypatch: pytest.MonkeyPatch, call: int, error: BaseException, after: bool) -> None:
    """Let the ``call``-th move raise, before or after it has done its work."""
    real, numbers = os.replace, itertools.count(1)

    def replace(source: Path, destination: Path) -> None:
        number = next(numbers)
        if number != call or after:
            real(source, destination)
        if number == call:
            raise error

    monkeypatch.setattr(os, "replace", replace)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("call", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("old", [False, True])
def test_an_interrupt_at_any_move_leaves_all_or_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, call: int, after: bool, old: bool
) -> None:
    if old:
        publish(folder, "a")
    before = contents(folder)
    stop_at(monkeypatch, call, KeyboardInterrupt(), after)
    with pytest.raises(KeyboardInterrupt):
        publish(folder, "b")
    monkeypatch.undo()
    new = (call, after) == (5, True)
    if not new:
        assert contents(folder) == before
    publish(folder, "b")
    assert contents(folder) == expected(folder, "b")


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
@pytest.mark.parametrize("call", [2, 3, 4, 5])
def test_a_refused_move_brings_every_old_file_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch, call: int, code: int, links: bool
) -> None:
    publish(folder, "a")
    before = contents(folder)
    if not links:

        def no_links(*args: object, **kwargs: object) -> None:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

        monkeypatch.setattr(os, "link", no_links)
    stop_at(monkeypatch, call, OSError(code, os.strerror(code)), False)
    with pytest.raises(PublishError, match="the old file is intact"):
        publish(folder, "b")
    assert contents(folder) == before


def test_a_full_disk_while_the_old_files_are_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(folder, "a")
    before = contents(folder)

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "link", full)
    monkeypatch.setattr(shutil, "copy2", full)
    with pytest.raises(PublishError, match=r"limit is reached .*old file is intact"):
        publish(folder, "b")
    assert contents(folder) == before


def test_what_cannot_be_taken_back_is_told_and_the_next_run_does_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(folder, "a")
    before = contents(folder)
    real, numbers = os.replace, itertools.count(1)

    def replace(source: Path, destination: Path) -> None:
        if next(numbers) > 3:  # the joint cannot be published, nor the encoder taken back
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        real(source, destination)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(PublishError, match=r"stopped halfway and cannot be taken back.*copy the old files from"):
        publish(folder, "b")
    monkeypatch.undo()
    with pytest.raises(RuntimeError), joint_publication([folder / part for part in PARTS], folder / MAIN):
        raise RuntimeError("the model is wrong")
    assert contents(folder) == before


# --- kill -9 ---


def kill_at(call: int, after: bool) -> None:
    real, numbers = os.replace, itertools.count(1)

    def replace(source: Path, destination: Path) -> None:
        number = next(numbers)
        if number != call or after:
            real(source, destination)
        if number == call:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = replace  # type: ignore[assignment]


@posix
@pytest.mark.parametrize(("call", "after"), [(1, False), (2, True), (3, False), (3, True), (4, True), (5, True)])
def test_after_a_kill_each_part_has_its_data_and_the_next_run_restores_the_set(
    folder: Path, call: int, after: bool
) -> None:
    publish(folder, "a")
    before = contents(folder)

    def killed() -> None:
        kill_at(call, after)
        publish(folder, "b")

    assert in_child(killed) == -signal.SIGKILL
    found = contents(folder)
    assert any(name.endswith("fxexport-tmp") for name in found), "the crash left something behind"
    for part in PARTS:
        named = [word for word in found[part].decode().split() if word.endswith(".data")]
        assert named
        assert all(found[name].decode() == f"weights {found[part].decode()[0]}" for name in named)
    with pytest.raises(RuntimeError), joint_publication([folder / part for part in PARTS], folder / MAIN):
        raise RuntimeError("the model is wrong")
    assert contents(folder) == (expected(folder, "b") if (call, after) == (5, True) else before)
    publish(folder, "c")
    assert contents(folder) == expected(folder, "c")


@posix
@pytest.mark.parametrize("by", ["a single export of the main file", "another set of parts"])
def test_after_a_kill_other_runs_restore_the_set_and_newer_files_stay(folder: Path, by: str) -> None:
    publish(folder, "a")

    def killed() -> None:
        kill_at(4, True)
        publish(folder, "b")

    in_child(killed)
    with publication(folder / PARTS[1]) as alone:
        alone.main.write_text("newer, by itself")
        alone.publish()
    lending = publication(folder / MAIN) if by.startswith("a single") else joint_publication([], folder / MAIN)
    with lending:
        assert (folder / PARTS[0]).read_bytes().startswith(b"a"), "taken back"
        assert (folder / PARTS[1]).read_bytes() == b"newer, by itself"
        assert not (folder / data_file_name(PARTS[0], digest("b"))).exists()


@posix
def test_a_leftover_is_not_touched_while_another_run_writes_one_of_its_files(folder: Path) -> None:
    publish(folder, "a")

    def killed() -> None:
        kill_at(3, True)
        publish(folder, "b")

    in_child(killed)
    told: list[str] = []

    def second() -> None:
        with pytest.raises(PublishError) as caught, publication(folder / MAIN):
            pass
        told.append(str(caught.value))

    with publication(folder / PARTS[0]):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
        assert "encoder-m.onnx is being written by process pid" in told[0]
    with publication(folder / MAIN):
        assert (folder / PARTS[0]).read_bytes().startswith(b"a")


# --- locks ---


def test_joint_runs_of_overlapping_sets_do_not_wait_for_each_other_forever(folder: Path) -> None:
    sets = [("a", "b"), ("b", "c"), ("c", "a")]
    done: list[tuple[str, ...]] = []

    def run(names: tuple[str, ...]) -> None:
        for _ in range(5):
            with joint_publication([folder / names[0]], folder / names[1], lock_timeout=20) as staging:
                for name in names:
                    staging.path_of(folder / name).write_text("".join(names))
                staging.publish()
        done.append(names)

    threads = [threading.Thread(target=run, args=(names,)) for names in sets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == sorted(sets)
    assert sorted(contents(folder)) == ["a", "b", "c"]


def test_a_part_that_another_run_holds_is_named(folder: Path) -> None:
    told: list[str] = []

    def second() -> None:
        with pytest.raises(PublishError) as caught, joint_publication([folder / "a"], folder / "b", lock_timeout=0.1):
            pass
        told.append(str(caught.value))

    with publication(folder / "a"):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert f"{folder / 'a'} is being written by process pid {os.getpid()}" in told[0]
    assert contents(folder) == {}
