"""Several files published as one: all appear, or none."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from fxexport.destination import follow_link
from fxexport.errors import PublishError
from fxexport.publishing import undo
from fxexport.publishing.disk import sync_directory
from fxexport.publishing.locks import locked
from fxexport.publishing.staging import Staging, lent


@contextmanager
def joint_publication(
    targets: Sequence[str | os.PathLike[str]], main: str | os.PathLike[str], *, lock_timeout: float = 3600.0
) -> Iterator[JointStaging]:
    """Hold the locks of ``targets`` and ``main`` and lend one staging directory for all of them.

    Like `publication`, for files that belong together: the parts of a pipeline and ``main``, the file that
    describes it, which is published last (it may be one of ``targets``, too). All lie in one directory. The locks
    are taken in sorted order, within ``lock_timeout`` seconds altogether.

    Raises:
        PublishError: the files are not of one directory, or two have one name; a lock was not free in time; the
            disk is full. The old files are intact.
    """
    last = follow_link(Path(main))
    parts = [part for part in (follow_link(Path(target)) for target in targets) if part != last]
    for part in parts:
        if part.parent != last.parent:
            raise PublishError(f"cannot publish {part} together with {last}: put them into one directory")
        if parts.count(part) > 1:
            raise PublishError(f"cannot publish two files as {part}: give each a name of its own")
    deadline = time.monotonic() + lock_timeout
    with ExitStack() as locks:
        for target in sorted({*parts, last}):
            locks.enter_context(locked(target, max(0.0, deadline - time.monotonic())))
        yield locks.enter_context(lent(JointStaging(parts, last)))


class JointStaging(Staging):
    """A staging directory for several targets, lent by `joint_publication`.

    ``parts`` are the targets without ``target``, the main one.
    """

    def __init__(self, parts: Sequence[Path], main: Path) -> None:
        super().__init__(main)
        self.parts = tuple(parts)

    def path_of(self, target: str | os.PathLike[str]) -> Path:
        """Where to write the file that is to appear at ``target``, under its final name.

        Raises PublishError where ``target`` is none of those that were asked for.
        """
        wanted = follow_link(Path(target))
        if wanted not in self._targets():
            known = ", ".join(each.name for each in self._targets())
            raise PublishError(f"{wanted} is not published here; these are: {known}")
        return self.directory / wanted.name

    def _targets(self) -> Sequence[Path]:
        return [*self.parts, self.target]

    def _move(self, data: list[Path]) -> None:
        """Move ``data``, then the parts, then the main file. Whatever stops that brings the old files back."""
        parts = [self.directory / part.name for part in self.parts]
        try:
            undo.prepare(self.directory, [*data, *parts, self.main], self._targets())
            for files in (data, parts):
                for file in files:
                    os.replace(file, self.target.parent / file.name)
                sync_directory(self.target.parent)
            os.replace(self.main, self.target)
        except BaseException:
            undo.roll_back(self.directory)
            raise
