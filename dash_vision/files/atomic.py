"""Files that are either complete or not there."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

_TEMPORARY = ".tmp"
_TRIES = 5  # to lock a folder, a twentieth of a second apart


@contextmanager
def replacing(path: str | PathLike[str]) -> Iterator[Path]:
    """Gives a temporary path beside `path`; on success it is synced and renamed over `path`, else deleted.

    A reader, or a run that is killed at any moment, sees the old file or the new one, never a part of one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=_TEMPORARY)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes it private; a result is an ordinary file
        os.replace(temporary, path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: str | PathLike[str]) -> Iterator[Path]:
    """Gives a temporary folder beside `path`, which is not there or empty; on success it is renamed to `path`, else
    deleted."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-", suffix=_TEMPORARY))
    try:
        yield temporary
        os.chmod(temporary, 0o777 & ~_umask())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: str | PathLike[str], text: str) -> None:
    """`text` in UTF-8, written at once."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | PathLike[str], value: Any) -> None:
    """`value` as indented JSON, written at once."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def remove_left(folder: Path) -> None:
    """Remove the temporary files and folders that a killed process left in `folder`, to which nothing else writes."""
    for left in folder.glob(f".*{_TEMPORARY}"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


class FolderInUse(Exception):
    """Another process holds `folder`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(f"another run is writing to {folder}")


class FolderLock:
    """Holds a folder for this process until `release` or the end of the process.

    Raises FolderInUse when another one has it. Where the system has no such locks it holds nothing. Temporary files
    that a killed run left in the folder are removed.
    """

    def __init__(self, folder: Path) -> None:
        self._handle: int | None = None
        try:
            import fcntl

            self._handle = os.open(folder, os.O_RDONLY)
            for more in reversed(range(_TRIES)):  # who looks by `in_use` holds it for a moment
                try:
                    fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if not more:
                        raise
                    time.sleep(0.05)
        except BlockingIOError:
            self.release()
            raise FolderInUse(folder) from None
        except (ImportError, OSError):
            return
        for left in folder.glob(f".*{_TEMPORARY}"):
            if not left.is_dir():  # a command that writes a whole folder here holds no lock
                left.unlink(missing_ok=True)

    def release(self) -> None:
        """Let others have it."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def __del__(self) -> None:
        self.release()


def in_use(folder: Path) -> bool:
    """Whether a process holds `folder` by a FolderLock; False where the system has no such locks."""
    try:
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(handle)
    return False


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    """The rename itself has to reach the disk; not every system lets a folder be opened for that."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)
