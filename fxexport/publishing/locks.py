"""One run at a time for a destination."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from fxexport.destination import sibling_name
from fxexport.errors import PublishError

_LOCK = ".fxexport-lock"
_HELD: set[tuple[int, Path]] = set()  # (thread, lock file): a thread must not wait for itself


@contextmanager
def locked(target: Path, timeout: float) -> Iterator[None]:
    """Hold the lock of ``target``, waiting up to ``timeout`` seconds for whoever has it.

    Raises PublishError: not free in time (names the holder's pid and the lock file), or the lock cannot be made.
    """
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
