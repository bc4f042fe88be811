"""What publishing asks of the disk: durable files, names that are ours, and errors in plain words."""

from __future__ import annotations

import errno
import mmap
import os
import re
import shutil
from collections.abc import Collection, Iterable
from pathlib import Path

from fxexport.destination import TEMPORARY, data_file_name, sibling_name
from fxexport.errors import PublishError

DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NO_DIRECTORY_SYNC = frozenset({errno.EINVAL, errno.ENOTSUP})


def refused(target: Path, error: OSError) -> PublishError:
    full = error.errno in DISK_FULL
    what = "the disk, quota or file size limit is reached" if full else "the operating system refused"
    way_out = "free some space" if full else "correct the permissions"
    return PublishError(
        f"cannot publish {target}: {what} ({error}); the old file is intact: {way_out} or choose another path"
    )


def sync_file(path: Path) -> None:
    _sync(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)


def sync_directory(directory: Path) -> None:
    """Make renames durable; Windows and some network file systems offer no such call."""
    if os.name == "nt":
        return
    try:
        _sync(directory, os.O_RDONLY)
    except OSError as error:
        if error.errno not in _NO_DIRECTORY_SYNC:
            raise


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_tree(path: Path) -> None:
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise PublishError(f"cannot remove the temporary {path}: {error}; remove it by hand") from error


# --- names that are ours ---


def leftovers(target: Path) -> list[Path]:
    """Staging directories of ``target``. Under its lock nobody alive owns any of them but the holder."""
    return _matching(target.parent, sibling_name(target.name, f".{'0' * 8}{TEMPORARY}", "."), "0" * 8)


def data_files(mains: Iterable[Path]) -> list[Path]:
    """The data files of ``mains``, by their names."""
    found = (_matching(main.parent, data_file_name(main.name, "0" * 12), "0" * 12) for main in mains)
    return [path for each in found for path in each]


def sweep_data(mains: Collection[Path]) -> None:
    """Remove the data files of ``mains`` that no file reads: none of them, and no other ONNX file beside them.

    A data file may be shared: an export of one part alone must not take it from the others.
    """
    stale = not_named(data_files(mains), mains)
    if stale:
        directory = next(iter(mains)).parent
        others = [each for each in directory.iterdir() if each.suffix.lower() == ".onnx" and each not in mains]
        for path in not_named(stale, others):
            path.unlink(missing_ok=True)


def not_named(candidates: Iterable[Path], mains: Iterable[Path]) -> set[Path]:
    """The ``candidates`` whose names occur in none of ``mains``. Those are searched as bytes: nothing is parsed.

    A file that may not be read counts as naming all of them.
    """
    left = set(candidates)
    for main in mains:
        if not left:
            break
        try:
            if not main.is_file() or not main.stat().st_size:
                continue
            with main.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                left = {path for path in left if content.find(path.name.encode()) < 0}
        except FileNotFoundError:  # removed this instant
            continue
        except PermissionError:
            return set()
    return left


def _matching(directory: Path, example: str, digits: str) -> list[Path]:
    """Files in ``directory`` named like ``example`` with any hexadecimal digits for the last ``digits``."""
    head, _, tail = example.rpartition(digits)
    pattern = re.compile(re.escape(head) + f"[0-9a-f]{{{len(digits)}}}" + re.escape(tail))
    return sorted(path for path in directory.iterdir() if pattern.fullmatch(path.name))
