"""Folders for what a piece of work has on disk meanwhile: rows of people, which no killed process may leave behind."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

PREFIX = "c360-scratch-"
LOCK = ".lock"


@contextmanager
def scratch_folder(parent: Path | None = None) -> Iterator[Path]:
    """A folder that is gone afterwards; where this process is killed, gone when the next one asks for one.

    Args:
        parent: where; the system's folder for temporary files by default.
    """
    parent = parent or Path(tempfile.gettempdir())
    parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(parent)
    folder = parent / f"{PREFIX}{uuid4().hex}"
    # The lock comes first and goes last: a folder whose lock is free is nobody's.
    with _held(folder.with_suffix(LOCK)):
        folder.mkdir(mode=0o700)
        try:
            yield folder
        finally:
            with suppress(FileNotFoundError):  # an erasure clears what can be made again
                shutil.rmtree(folder)


@contextmanager
def _held(lock: Path) -> Iterator[None]:
    """Hold a lock that ends with the process, however that ends; its file is removed with it."""
    while True:
        with lock.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if not _is_at(file.fileno(), lock):
                continue  # between opening and locking, another process found the lock free and removed it
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
            return


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _remove_abandoned(parent: Path) -> None:
    """Remove the folders of processes that are gone; those of other users of the machine are theirs."""
    for lock in parent.glob(f"{PREFIX}*{LOCK}"):
        with suppress(FileNotFoundError, PermissionError, BlockingIOError), lock.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(FileNotFoundError):
                shutil.rmtree(lock.with_suffix(""))
            lock.unlink(missing_ok=True)
