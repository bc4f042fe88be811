"""Staging, publishing, rejecting and locking, with plain bytes for artifacts."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from fxexport.destination import data_file_name, preflight, sibling_name
from fxexport.errors import InputError, PublishError
from fxexport.publishing import locks, publication
from fxexport.publishing import staging as staging_room

DIGEST = "0123456789abcdef"


def publish(path: Path, content: bytes = b"new", data: dict[str, bytes] | None = None) -> list[Path]:
    with publication(path) as staging:
        for name, each in (data or {}).items():
            (staging.directory / name).write_bytes(each)
        staging.main.write_bytes(content)
        return staging.publish()


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_publish_returns_the_main_file_first_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    data = data_file_name("m.onnx", DIGEST)
    assert data == "m.onnx.0123456789ab.data"
    assert publish(path, data.encode(), {data: b"weights"}) == [path, tmp_path / data]
    assert names(tmp_path) == ["m.onnx", data]


def test_nothing_appears_without_publish(tmp_path: Path) -> None:
    with publication(tmp_path / "m.onnx") as staging:
        staging.main.write_bytes(b"candidate")
        assert staging.main.name == "m.onnx"
        assert staging.directory.parent == tmp_path, "same file system"
    assert names(tmp_path) == []


@pytest.mark.parametrize("error", [RuntimeError("model is wrong"), KeyboardInterrupt()])
def test_an_exception_passes_through_unchanged(tmp_path: Path, error: BaseException) -> None:
    publish(tmp_path / "m.onnx", b"old")

    def fail() -> None:
        with publication(tmp_path / "m.onnx") as staging:
            staging.main.write_bytes(b"candidate")
            raise error

    with pytest.raises(type(error)) as caught:
        fail()
    assert caught.value is error
    assert names(tmp_path) == ["m.onnx"]
    assert (tmp_path / "m.onnx").read_bytes() == b"old"


def test_files_get_the_mode_of_the_umask_or_of_the_file_they_replace(tmp_path: Path) -> None:
    path, data = tmp_path / "m.onnx", data_file_name("m.onnx", DIGEST)
    before = os.umask(0o027)
    try:
        with publication(path) as staging:
            for file in (staging.main, staging.directory / data):
                os.close(os.open(file, os.O_CREAT | os.O_WRONLY, 0o600))  # as mkstemp does
            staging.main.write_text(data)
            published = staging.publish()
    finally:
        os.umask(before)
    assert [stat.S_IMODE(file.stat().st_mode) for file in published] == [0o640, 0o640]
    path.chmod(0o604)
    assert [stat.S_IMODE(file.stat().st_mode) for file in publish(path)] == [0o604]


def test_a_symbolic_link_survives_and_its_target_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    real, link = tmp_path / "store" / "real.onnx", tmp_path / "link.onnx"
    real.write_bytes(b"old")
    link.symlink_to(real)
    assert preflight(link, [".onnx"]) == real
    assert publish(link) == [real]
    assert link.is_symlink()
    assert link.read_bytes() == b"new"
    assert names(tmp_path / "store") == ["real.onnx"]


def test_a_link_to_a_file_yet_to_come_or_to_itself(tmp_path: Path) -> None:
    (tmp_path / "link.onnx").symlink_to("later.onnx")
    assert publish(tmp_path / "link.onnx") == [tmp_path / "later.onnx"]
    (tmp_path / "loop.onnx").symlink_to("loop.onnx")
    with pytest.raises(InputError, match="symbolic links"):
        preflight(tmp_path / "loop.onnx", [".onnx"])


def test_the_main_file_must_be_there_and_everything_plain(tmp_path: Path) -> None:
    with (
        pytest.raises(PublishError, match=r"write 'm.onnx' first"),
        publication(tmp_path / "m.onnx") as staging,
    ):
        staging.publish()
    with publication(tmp_path / "m.onnx") as staging:
        staging.main.write_bytes(b"")
        (staging.directory / "folder").mkdir()
        with pytest.raises(PublishError, match=r"\['folder'\]"):
            staging.publish()
    assert names(tmp_path) == []


def test_a_data_file_that_the_main_file_does_not_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PublishError, match="no file refers to"):
        publish(tmp_path / "m.onnx", b"no name", {data_file_name("m.onnx", DIGEST): b"weights"})
    assert names(tmp_path) == []


def test_rejected_candidate_is_kept_beside_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    publish(path, b"old")
    for content in (b"bad", b"worse"):
        with publication(path) as staging:
            staging.main.write_bytes(content)
            rejected = staging.reject()
        assert rejected == tmp_path / "m.onnx.rejected"
        assert (rejected / "m.onnx").read_bytes() == content
        assert names(tmp_path) == ["m.onnx", "m.onnx.rejected"]
    assert path.read_bytes() == b"old"


def test_reject_does_not_replace_what_is_not_ours(tmp_path: Path) -> None:
    foreign = tmp_path / "m.onnx.rejected"
    foreign.mkdir()
    (foreign / "notes.txt").write_text("mine")
    with pytest.raises(PublishError, match="not ours"), publication(tmp_path / "m.onnx") as staging:
        staging.reject()
    assert (foreign / "notes.txt").read_text() == "mine"
    assert names(tmp_path) == ["m.onnx.rejected"]


def fail_at(monkeypatch: pytest.MonkeyPatch, call: int, error: BaseException, after: bool = False) -> None:
    """Let the ``call``-th os.replace raise, before or after it has done its work."""
    real, count = os.replace, 0

    def replace(source: Path, destination: Path) -> None:
        nonlocal count
        count += 1
        if count != call:
            real(source, destination)
            return
        if after:
            real(source, destination)
        raise error

    monkeypatch.setattr(os, "replace", replace)


@pytest.mark.parametrize("call", [1, 2])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EACCES])
def test_a_failing_move_takes_the_data_file_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int, code: int
) -> None:
    path, data = tmp_path / "m.onnx", data_file_name("m.onnx", DIGEST)
    publish(path, b"old")
    fail_at(monkeypatch, call, OSError(code, os.strerror(code)))
    with pytest.raises(PublishError, match="the old file is intact") as caught:
        publish(path, data.encode(), {data: b"weights"})
    assert os.strerror(code) in str(caught.value)
    assert names(tmp_path) == ["m.onnx"]
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize(
    ("call", "after", "new"), [(1, False, False), (1, True, False), (2, False, False), (2, True, True)]
)
def test_an_interrupt_between_the_moves_leaves_a_whole_pair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int, after: bool, new: bool
) -> None:
    path, data = tmp_path / "m.onnx", data_file_name("m.onnx", DIGEST)
    publish(path, b"old")
    fail_at(monkeypatch, call, KeyboardInterrupt(), after)
    with pytest.raises(KeyboardInterrupt):
        publish(path, data.encode(), {data: b"weights"})
    assert names(tmp_path) == (["m.onnx", data] if new else ["m.onnx"])
    assert path.read_bytes() == (data.encode() if new else b"old")


def test_trouble_after_the_move_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with publication(tmp_path / "m.onnx") as staging:  # the first sweep is over, the one after the move is to come
        staging.main.write_bytes(b"new")

        def refuse(targets: list[Path]) -> None:
            raise PermissionError(errno.EPERM, "not permitted")

        monkeypatch.setattr(staging_room, "sweep_data", refuse)
        with pytest.raises(PublishError, match="is in place, but"):
            staging.publish()
    assert (tmp_path / "m.onnx").read_bytes() == b"new"


def test_a_thread_waits_for_another_and_not_for_itself(tmp_path: Path) -> None:
    order: list[str] = []
    inside = threading.Event()

    def second() -> None:
        inside.wait()
        with publication(tmp_path / "m.onnx"):
            order.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    with publication(tmp_path / "m.onnx"):
        inside.set()
        with pytest.raises(PublishError, match="this thread"), publication(tmp_path / "m.onnx"):
            pass
        thread.join(0.3)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    assert names(tmp_path) == []


@pytest.mark.parametrize("replaced", [False, True])
def test_a_lock_on_a_file_that_lost_its_name_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replaced: bool
) -> None:
    """What a waiter meets: the holder unlinked the file (network disks rename it), another took its name."""
    locked: list[int] = []

    def lock(path: Path, *, thread_local: bool, on_acquired: Callable[[int], None]) -> FileLock:
        def hook(descriptor: int) -> None:
            locked.append(descriptor)
            if len(locked) == 1:
                path.rename(tmp_path / "moved")
                if replaced:
                    path.touch()
            on_acquired(descriptor)

        return FileLock(path, thread_local=thread_local, on_acquired=hook)

    monkeypatch.setattr(locks, "FileLock", lock)
    with publication(tmp_path / "m.onnx"):
        assert len(locked) == 2
        assert (tmp_path / ".m.onnx.fxexport-lock").read_text() == f"{os.getpid()}\n"
    assert names(tmp_path) == ["moved"]


def test_different_files_of_one_directory_do_not_wait(tmp_path: Path) -> None:
    with publication(tmp_path / "a.onnx") as one, publication(tmp_path / "b.onnx", lock_timeout=0) as two:
        assert one.directory != two.directory


@pytest.mark.parametrize(("content", "told"), [("", "pid unknown"), ("4194305\n", "pid 4194305 (not visible")])
def test_a_holder_that_cannot_be_looked_up_is_still_reported(tmp_path: Path, content: str, told: str) -> None:
    with publication(tmp_path / "m.onnx"):
        (tmp_path / ".m.onnx.fxexport-lock").write_text(content)
        failures: list[str] = []

        def second() -> None:
            with pytest.raises(PublishError) as caught, publication(tmp_path / "m.onnx", lock_timeout=0):
                pass
            failures.append(str(caught.value))

        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert told in failures[0]
    assert ".m.onnx.fxexport-lock" in failures[0]


def test_a_lock_that_cannot_be_made_is_a_publish_error(tmp_path: Path) -> None:
    with pytest.raises(PublishError, match="does not exist"), publication(tmp_path / "missing" / "m.onnx"):
        pass
    (tmp_path / ".m.onnx.fxexport-lock").mkdir()
    with pytest.raises(PublishError, match=r"cannot lock .*Is a directory"), publication(tmp_path / "m.onnx"):
        pass


def test_sibling_names_fit_and_stay_apart() -> None:
    assert sibling_name("m.onnx", ".rejected") == "m.onnx.rejected"
    one, two = "é" * 120 + "a.onnx", "é" * 120 + "b.onnx"
    shortened = [sibling_name(name, ".0123456789ab.data") for name in (one, two)]
    assert shortened[0] != shortened[1]
    assert all(len(name.encode()) <= 255 and name.endswith(".0123456789ab.data") for name in shortened)
    assert sibling_name("x" * 255, ".tmp", ".").startswith(".xxx")


@pytest.mark.parametrize("bad", ["a\0.onnx", "a\udcff.onnx", "folder.onnx/", "x" * 251 + ".onnx"])
def test_impossible_names(tmp_path: Path, bad: str) -> None:
    with pytest.raises(InputError):
        preflight(f"{tmp_path}/{bad}", [".onnx"])
    assert names(tmp_path) == []


def test_special_files_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.onnx")
    with pytest.raises(InputError, match="not a regular file"):
        preflight(tmp_path / "pipe.onnx", [".onnx"])
