"""The staging directory of one destination."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

from fxexport.destination import follow_link, sibling_name, temporary_sibling
from fxexport.errors import PublishError
from fxexport.publishing import undo
from fxexport.publishing.disk import (
    DISK_FULL,
    data_files,
    leftovers,
    not_named,
    refused,
    remove_tree,
    sweep_data,
    sync_directory,
    sync_file,
)
from fxexport.publishing.locks import locked

_REJECTED, _MARK = ".rejected", ".fxexport-rejected"


@contextmanager
def publication(path: str | os.PathLike[str], *, lock_timeout: float = 3600.0) -> Iterator[Staging]:
    """Hold the lock of ``path`` and lend a staging directory beside it, which is removed on every exit.

    Waits up to ``lock_timeout`` seconds for another process or thread that publishes to the same file.
    Nothing appears at ``path`` unless `Staging.publish` is called. For several files that belong together use
    `joint_publication`; where they do not, enter several publications in sorted order of their paths, or two
    processes may wait for each other.

    Raises:
        PublishError: the lock was not free in time (names the holder's pid and the lock file), or the disk is
            full (also where the body of the ``with`` ran into that). The old file is intact.
    """
    target = follow_link(Path(path))
    with locked(target, lock_timeout), lent(Staging(target)) as staging:
        yield staging


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
        """Move every file of the directory to the destination; returns the new paths: main, parts, data.

        Data files of earlier runs that no file names any more are removed afterwards; files that are not ours
        are never touched. A main file that is replaced passes its permissions on.

        Raises:
            PublishError: nothing was written, or the operating system refused (disk full, permissions). The
                old files are intact, unless the message says that the new file is already in place.
        """
        try:
            data = self._settle()
            self._move(data)
        except OSError as error:
            raise refused(self.target, error) from error
        try:
            sync_directory(self.target.parent)
            sweep_data(self._targets())
        except OSError as error:
            raise PublishError(
                f"the new {self.target} is in place, but tidying up failed: {error}; remove old data by hand"
            ) from error
        parts = [target for target in self._targets() if target != self.target]
        return [self.target, *parts, *(self.target.parent / file.name for file in data)]

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
            raise refused(self.target, error) from error
        remove_tree(old)
        return rejected

    def _targets(self) -> Sequence[Path]:
        """The destinations whose files may name data files, in the order in which they are published."""
        return [self.target]

    def _open(self) -> None:
        targets = self._targets()
        try:
            for target in targets:
                for path in leftovers(target):
                    _clear_leftover(path, targets)
            sweep_data(targets)
            self.directory.mkdir()
        except OSError as error:
            raise refused(self.target, error) from error

    def _settle(self) -> list[Path]:
        """Check, give modes to, and fsync every file; returns those that are no target, sorted."""
        files = sorted(self.directory.iterdir()) if self.directory.is_dir() else []
        mains = {self.directory / target.name: target for target in self._targets()}
        for main, target in mains.items():
            if main not in files:
                raise PublishError(f"nothing to publish at {target}: write {main.name!r} first")
        if odd := [file.name for file in files if file.is_symlink() or not file.is_file()]:
            raise PublishError(f"cannot publish {odd} with {self.target}: only plain files, side by side")
        if strays := not_named(data_files(mains), mains):
            raise PublishError(f"cannot publish {self.target}: no file refers to {sorted(map(str, strays))}")
        owners = {data: target for main, target in mains.items() for data in data_files([main])}
        for file in files:
            mode = self._mode(mains.get(file) or owners.get(file, self.target))
            if stat.S_IMODE(file.stat().st_mode) != mode:
                file.chmod(mode)
            sync_file(file)
        return [file for file in files if file not in mains]

    def _mode(self, target: Path) -> int:
        if target.exists():
            return stat.S_IMODE(target.stat().st_mode) & 0o777
        # What open() gives under this umask, whatever a writer's own temporary files made of it.
        return stat.S_IMODE(self.directory.stat().st_mode) & 0o666

    def _move(self, data: list[Path]) -> None:
        """Move ``data``, then the main file. Whatever stops that takes new data files back with it."""
        fresh: list[Path] = []
        try:
            for file in data:
                destination = self.target.parent / file.name
                if not os.path.lexists(destination):
                    fresh.append(destination)
                os.replace(file, destination)
            sync_directory(self.target.parent)
            os.replace(self.main, self.target)
        except BaseException:
            # Ask the disk, not a flag: an interrupt may arrive between the last move and the next statement.
            if os.path.lexists(self.main):
                for destination in fresh:
                    destination.unlink(missing_ok=True)
            raise


_Staging = TypeVar("_Staging", bound=Staging)


@contextmanager
def lent(staging: _Staging) -> Iterator[_Staging]:
    """``staging`` with its directory made; whatever is half done is taken back on exit. Hold the locks."""
    try:
        staging._open()
        yield staging
    except OSError as error:
        if error.errno in DISK_FULL:
            raise refused(staging.target, error) from error
        raise
    finally:
        undo.roll_back(staging.directory)
        remove_tree(staging.directory)


def _clear_leftover(directory: Path, held: Sequence[Path]) -> None:
    """Remove what a crashed run left, after taking back what it had half done.

    That may concern files beyond those that this run has ``held`` locks for. Their locks are not waited for:
    another run may wait for ours.
    """
    with ExitStack() as locks:
        for target in undo.guarded_targets(directory):
            if target not in held:
                locks.enter_context(locked(target, 0.0))
        undo.roll_back(directory)
        remove_tree(directory)
