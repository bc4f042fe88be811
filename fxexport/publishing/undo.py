"""Taking a half-made move of several files back: in the run that made it or, after a kill, in the next one.

Before the first move, the staging directory gets a folder with every file about to be replaced (a hard link, or
a copy where the file system has none) and a journal of the moves. The main file moves last, so while it is still
staged nothing has been published and everything moved so far goes back.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fxexport.errors import PublishError
from fxexport.publishing.disk import sync_directory, sync_file

_KEPT = ".fxexport-old"
_JOURNAL = "journal.json"


def prepare(directory: Path, files: Sequence[Path], targets: Sequence[Path]) -> None:
    """Keep what ``files`` (staged; the main file last) are about to replace in the parent of ``directory``.

    ``targets`` are the destinations whose locks guard these moves. Raises OSError; then nothing was moved.
    """
    kept = directory / _KEPT
    kept.mkdir()
    for file in files:
        destination = directory.parent / file.name
        if os.path.lexists(destination):
            _keep(destination, kept / file.name)
    journal, partial = kept / _JOURNAL, kept / f"{_JOURNAL}.partial"
    moves = [[file.name, _mark(file)] for file in files]
    partial.write_text(json.dumps({"targets": [target.name for target in targets], "moves": moves}))
    sync_file(partial)
    partial.rename(journal)
    sync_directory(kept)
    sync_directory(directory)


def guarded_targets(directory: Path) -> list[Path]:
    """The destinations that `roll_back` of ``directory`` may touch; none where nothing is to be taken back."""
    journal = _read_journal(directory)
    return [] if journal is None else [directory.parent / name for name in journal["targets"]]


def roll_back(directory: Path) -> None:
    """Put back what the moves out of ``directory`` replaced, and remove what they brought; may be repeated.

    Does nothing where no move began or all were made. A file that somebody replaced since is left alone.

    Raises PublishError naming the folder with the old files, where the operating system refuses.
    """
    journal = _read_journal(directory)
    if journal is None:
        return
    try:
        for name, mark in reversed(journal["moves"]):
            _take_back(directory, name, mark)
        sync_directory(directory.parent)
        shutil.rmtree(directory / _KEPT)
    except OSError as error:
        raise PublishError(
            f"publishing to {directory.parent} stopped halfway and cannot be taken back: {error}; correct that and run "
            f"again, or copy the old files from {directory / _KEPT} by hand"
        ) from error


def _read_journal(directory: Path) -> dict[str, Any] | None:
    """The journal of moves that began and were not completed."""
    path = directory / _KEPT / _JOURNAL
    if not path.is_file():
        return None
    journal: dict[str, Any] = json.loads(path.read_text())
    main = journal["moves"][-1][0]
    return journal if os.path.lexists(directory / main) else None


def _take_back(directory: Path, name: str, mark: list[int]) -> None:
    destination, kept = directory.parent / name, directory / _KEPT / name
    # Ask the disk, not a flag: an interrupt may arrive between a move and the statement after it.
    moved = not os.path.lexists(directory / name)
    if not moved or not os.path.lexists(destination) or _mark(destination) != mark:
        return
    if os.path.lexists(kept):
        os.replace(kept, destination)
    else:
        destination.unlink()


def _mark(path: Path) -> list[int]:
    """What tells one file from the next of that name. No inode: some network file systems change it on a move."""
    status = path.lstat()
    return [status.st_size, status.st_mtime_ns]


def _keep(path: Path, kept: Path) -> None:
    try:
        os.link(path, kept, follow_symlinks=False)
    except OSError:  # no hard links here (or not for this file); what a copy cannot do either is told by the copy
        shutil.copy2(path, kept, follow_symlinks=False)
        sync_file(kept)
