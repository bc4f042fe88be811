"""Atomic publishing: the requested path holds the old artifact or the new one, never a part of either.

The candidate is written, checked and run in a *staging directory* beside the destination (same file system,
final file names). Publishing makes its files durable and moves them with ``os.replace``: data files first,
the main file last. A data file carries a hash of its content in its name (`data_file_name`), so a new one
never overwrites the one that the old main file still reads, and a crash at any instant leaves a pair that
loads. What a crash leaves behind is recognised by its name and removed by the next run, under the lock of
that destination.

Names beside ``m.onnx``: ``.m.onnx.<8 hex>.fxexport-tmp`` (staging), ``.m.onnx.fxexport-lock`` (while a run is
active), ``m.onnx.<12 hex>.data`` (weights), ``m.onnx.rejected`` (a candidate that failed its checks).
"""

from __future__ import annotations

import errno
import mmap
import os
import re
import shutil
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from fxexport.destination import TEMPORARY, data_file_name, follow_link, sibling_name, temporary_sibling
from fxexport.errors import PublishError

__all__ = ["Staging", "publication"]

_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NO_DIRECTORY_SYNC = frozenset({errno.EINVAL, errno.ENOTSUP})
_LOCK, _REJECTED, _MARK = ".fxexport-lock", ".rejected", ".fxexport-rejected"
_HELD: set[tuple[int, Path]] = set()  # (thread, lock file): a thread must not wait for itself


# --- one run at a time for a destination ---


@contextmanager
def publication(path: str | os.PathLike[str], *, lock_timeout: float = 3600.0) -> Iterator[Staging]:
    """Hold the lock of ``path`` and lend a staging directory beside it, which is removed on every exit.

    Waits up to ``lock_timeout`` seconds for another process or thread that publishes to the same file.
    Nothing appears at ``path`` unless `Staging.publish` is called. Enter several publications in sorted order
    of their paths, or two processes may wait for each other.

    Raises:
        PublishError: the lock was not free in time (names the holder's pid and the lock file), or the disk is
            full (also where the body of the ``with`` ran into that). The old file is intact.
    """
    target = follow_link(Path(path))
    with _locked(target, lock_timeout):
        staging = Staging(target)
        try:
            staging._open()
            yield staging
        except OSError as error:
            if error.errno in _DISK_FULL:
                raise _refused(target, error) from error
            raise
        finally:
            _remove_tree(staging.directory)


@contextmanager
def _locked(target: Path, timeout: float) -> Iterator[None]:
    lock_path = target.parent / sibling_name(target.name, _LOCK, ".")
    mine = (threading.get_ident(), lock_path)
    if mine in _HELD:
        raise PublishError(f"this thread is already publishing to {target}: finish that first")
    if not target.parent.is_dir():  # filelock would create it
        raise PublishError(f"cannot publish {target}: its directory does not exist (any more): create it")
    lock = _acquire(target, lock_path, timeout)
    _HELD.add(mine)
    try:
        yield
    finally:
        _HELD.discard(mine)
        try:
            # Safe only while the lock is held (see _acquire). On Windows filelock removes the file itself.
            if os.name != "nt":
                lock_path.unlink(missing_ok=True)
        finally:
            lock.release()


def _acquire(target: Path, lock_path: Path, timeout: float) -> FileLock:
    """Acquire ``lock_path`` and write our pid into it.

    The holder unlinks the file before it releases, so a waiter may win the lock of a file that is gone while
    a third process locks a new one of that name: a win counts only if the name still leads to that file.
    """
    deadline = time.monotonic() + timeout
    valid = False

    def claim(descriptor: int) -> None:
        nonlocal valid
        try:
            valid = os.path.samestat(os.fstat(descriptor), os.stat(lock_path))
        except FileNotFoundError:
            valid = False
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())

    while True:
        lock = FileLock(lock_path, thread_local=False, on_acquired=claim)
        try:
            lock.acquire(timeout=max(0.0, deadline - time.monotonic()))
        except Timeout:
            raise PublishError(
                f"{target} is being written by {_holder(lock_path)}: waited {timeout:g} s for {lock_path}; "
                "wait until that run ends, or choose another path"
            ) from None
        except OSError as error:
            raise PublishError(f"cannot lock {lock_path}: {error.strerror}; choose another path") from error
        if valid:
            return lock
        lock.release()


def _holder(lock_path: Path) -> str:
    try:
        pid = int(lock_path.read_text())
    except (OSError, ValueError):  # released this instant, or (Windows) not readable while it is locked
        return "another process (pid unknown)"
    try:
        return f"process pid {pid} ({psutil.Process(pid).name()})"
    except psutil.Error:
        return f"process pid {pid} (not visible from here: another machine or container)"


# --- the staging directory ---


class Staging:
    """A directory beside the destination, lent by `publication`.

    ``directory`` holds all files of the artifact, side by side; ``main`` is where to write the main file,
    under its final name; ``target`` is where it will be published.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        self.directory = temporary_sibling(target)
        self.main = self.directory / target.name

    def publish(self) -> list[Path]:
        """Move every file of the directory to the destination; returns the new paths, the main one first.

        Data files of earlier runs that the new main file does not name are removed afterwards; files that are
        not ours are never touched. A main file that is replaced passes its permissions on.

        Raises:
            PublishError: nothing was written, or the operating system refused (disk full, permissions). The
                old files are intact, unless the message says that the new file is already in place.
        """
        try:
            data = self._settle()
            self._move(data)
        except OSError as error:
            raise _refused(self.target, error) from error
        try:
            _sync_directory(self.target.parent)
            _sweep_data(self.target)
        except OSError as error:
            raise PublishError(
                f"the new {self.target} is in place, but tidying up failed: {error}; remove old data by hand"
            ) from error
        return [self.target, *(self.target.parent / file.name for file in data)]

    def reject(self) -> Path:
        """Keep the candidate for inspection as ``<path>.rejected``, replacing an older one of ours.

        The requested path is not touched. Raises PublishError if something that is not ours is in the way.
        """
        rejected = self.target.parent / sibling_name(self.target.name, _REJECTED)
        old = temporary_sibling(self.target)
        try:
            if os.path.lexists(rejected):
                if rejected.is_symlink() or not (rejected / _MARK).is_file():
                    raise PublishError(f"{rejected} is not ours to replace: move it out of the way")
                os.replace(rejected, old)
            (self.directory / _MARK).touch()
            os.replace(self.directory, rejected)
        except OSError as error:
            raise _refused(self.target, error) from error
        _remove_tree(old)
        return rejected

    def _open(self) -> None:
        try:
            _sweep(self.target)
            self.directory.mkdir()
        except OSError as error:
            raise _refused(self.target, error) from error

    def _settle(self) -> list[Path]:
        """Check, give modes to, and fsync every file; returns the files beside the main one, sorted."""
        files = sorted(self.directory.iterdir()) if self.directory.is_dir() else []
        if self.main not in files:
            raise PublishError(f"nothing to publish at {self.target}: write {self.main.name!r} first")
        if odd := [file.name for file in files if file.is_symlink() or not file.is_file()]:
            raise PublishError(f"cannot publish {odd} with {self.target}: only plain files, side by side")
        if strays := set(_data_files(self.main)) - set(_named_in(self.main)):
            raise PublishError(f"cannot publish {self.target}: it does not refer to {sorted(map(str, strays))}")
        if self.target.exists():
            mode = stat.S_IMODE(self.target.stat().st_mode) & 0o777
        else:  # what open() gives under this umask, whatever a writer's own temporary files made of it
            mode = stat.S_IMODE(self.directory.stat().st_mode) & 0o666
        for file in files:
            if stat.S_IMODE(file.stat().st_mode) != mode:
                file.chmod(mode)
            _sync(file, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
        return [file for file in files if file != self.main]

    def _move(self, data: list[Path]) -> None:
        """Move ``data``, then the main file. Whatever stops that takes new data files back with it."""
        fresh: list[Path] = []
        try:
            for file in data:
                destination = self.target.parent / file.name
                if not os.path.lexists(destination):
                    fresh.append(destination)
                os.replace(file, destination)
            _sync_directory(self.target.parent)
            os.replace(self.main, self.target)
        except BaseException:
            # Ask the disk, not a flag: an interrupt may arrive between the last move and the next statement.
            if os.path.lexists(self.main):
                for destination in fresh:
                    destination.unlink(missing_ok=True)
            raise


# --- the disk ---


def _refused(target: Path, error: OSError) -> PublishError:
    full = error.errno in _DISK_FULL
    what = "the disk, quota or file size limit is reached" if full else "the operating system refused"
    way_out = "free some space" if full else "correct the permissions"
    return PublishError(
        f"cannot publish {target}: {what} ({error}); the old file is intact: {way_out} or choose another path"
    )


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_directory(directory: Path) -> None:
    """Make renames durable; Windows and some network file systems offer no such call."""
    if os.name == "nt":
        return
    try:
        _sync(directory, os.O_RDONLY)
    except OSError as error:
        if error.errno not in _NO_DIRECTORY_SYNC:
            raise


def _remove_tree(path: Path) -> None:
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise PublishError(f"cannot remove the temporary {path}: {error}; remove it by hand") from error


def _sweep(target: Path) -> None:
    """Remove what crashed runs left. Call it under the lock: then nobody alive owns any of it."""
    temporary = sibling_name(target.name, f".{'0' * 8}{TEMPORARY}", ".")
    for path in _matching(target.parent, temporary, "0" * 8):
        _remove_tree(path)
    _sweep_data(target)


def _sweep_data(target: Path) -> None:
    """Remove our data files that the main file does not name."""
    for path in set(_data_files(target)) - set(_named_in(target)):
        path.unlink(missing_ok=True)


def _data_files(main: Path) -> list[Path]:
    return _matching(main.parent, data_file_name(main.name, "0" * 12), "0" * 12)


def _named_in(main: Path) -> list[Path]:
    """Our data files whose names occur in the main file. It is searched as bytes: nothing is parsed."""
    candidates = _data_files(main)
    if not candidates or not main.is_file() or not main.stat().st_size:
        return []
    with main.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return [path for path in candidates if content.find(path.name.encode()) >= 0]


def _matching(directory: Path, example: str, digits: str) -> list[Path]:
    """Files in ``directory`` named like ``example`` with any hexadecimal digits for the last ``digits``."""
    head, _, tail = example.rpartition(digits)
    pattern = re.compile(re.escape(head) + f"[0-9a-f]{{{len(digits)}}}" + re.escape(tail))
    return sorted(path for path in directory.iterdir() if pattern.fullmatch(path.name))
