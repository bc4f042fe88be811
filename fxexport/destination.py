"""Where an artifact is to appear: names beside it, and whether the path can be written at all."""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
from collections.abc import Sequence
from pathlib import Path

from fxexport.errors import InputError

TEMPORARY = ".fxexport-tmp"  # ends the name of a staging directory
_NAME_LIMIT = 255  # bytes, as on every common file system; constant, so that names do not depend on the disk


def sibling_name(name: str, suffix: str, prefix: str = "") -> str:
    """``prefix + name + suffix``; where that exceeds 255 bytes, the end of ``name`` gives way to its hash."""
    room = _NAME_LIMIT - len((prefix + suffix).encode())
    encoded = name.encode()
    if len(encoded) > room:
        digest = hashlib.sha256(encoded).hexdigest()[:12]
        name = encoded[: room - len(digest) - 1].decode(errors="ignore") + "~" + digest
    return f"{prefix}{name}{suffix}"


def data_file_name(name: str, digest: str) -> str:
    """Name of the data file of main file ``name`` whose content has this hexadecimal hash (12 digits)."""
    return sibling_name(name, f".{digest[:12]}.data")


def temporary_sibling(target: Path) -> Path:
    """A fresh hidden name beside ``target``, by which leftovers of a crash are recognised."""
    return target.parent / sibling_name(target.name, f".{secrets.token_hex(4)}{TEMPORARY}", ".")


# --- before the work: can this path be written at all? ---


def preflight(path: str | os.PathLike[str], suffixes: Sequence[str], *, mkdir: bool = False) -> Path:
    """Check that an artifact can be published at ``path``; returns the absolute path of the file to write.

    A symbolic link at ``path`` is followed, so that the link survives and the file it points to is replaced.
    ``suffixes`` are the known extensions (".onnx"), compared without case. The directory is probed by really
    creating and deleting a file in it.

    Raises:
        InputError: unknown or missing suffix, missing parent directory (unless ``mkdir``), a directory or
            special file at the path, an unwritable directory, or a name that the file system refuses.
    """
    text = os.fspath(path)
    _check_name(text, suffixes)
    target = follow_link(Path(text))
    _check_parent(target, mkdir)
    _check_destination(target)
    _probe(target)
    return target


def follow_link(path: Path) -> Path:
    path = path.absolute()
    return Path(os.path.realpath(path)) if os.path.islink(path) else path


def _check_name(text: str, suffixes: Sequence[str]) -> None:
    known = ", ".join(suffixes)
    if "\0" in text or not _is_unicode(text):
        raise InputError(f"path {text!r} holds characters that no file name can: choose another name")
    if text.endswith(("/", os.sep)):
        raise InputError(f"{text!r} names a directory, not a file: add a file name ending in one of {known}")
    name, suffix = Path(text).name, Path(text).suffix
    if suffix.lower() not in {each.lower() for each in suffixes}:
        what = f"has the unknown suffix {suffix!r}" if suffix else "has no suffix"
        raise InputError(f"{text!r} {what}: the suffix chooses the format, use one of {known}")
    if (size := len(name.encode())) > _NAME_LIMIT:
        raise InputError(f"the file name {name!r} has {size} bytes: shorten it to at most {_NAME_LIMIT}")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_parent(target: Path, mkdir: bool) -> None:
    parent = target.parent
    try:
        if mkdir:
            parent.mkdir(parents=True, exist_ok=True)
        is_directory = stat.S_ISDIR(parent.stat().st_mode)
    except FileNotFoundError:
        raise InputError(
            f"the directory {parent} does not exist: create it, or pass mkdir=True (command line: --mkdir)"
        ) from None
    except OSError as error:
        raise InputError(f"cannot use directory {parent}: {error.strerror}; choose another path") from error
    if not is_directory:
        raise InputError(f"{parent} is not a directory, so it cannot hold a file: choose another path")


def _check_destination(target: Path) -> None:
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise InputError(f"cannot use {target}: {error.strerror}; choose another path") from error
    if stat.S_ISDIR(mode):
        raise InputError(f"{target} is a directory: choose a file name inside it or another path")
    if not stat.S_ISREG(mode):
        raise InputError(f"{target} is not a regular file and cannot be replaced: choose another path")


def _probe(target: Path) -> None:
    """Create and delete a file with the longest name that publishing uses: mode bits do not tell all."""
    probe = temporary_sibling(target)
    try:
        os.close(os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        probe.unlink(missing_ok=True)  # a run that holds the lock may already have swept it
    except OSError as error:
        raise InputError(
            f"cannot create files in {target.parent}: {error.strerror}; correct that or choose another path"
        ) from error
