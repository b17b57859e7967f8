"""Where a store comes to be: one writer at a time, a hidden neighbour of the path, and a last step that is atomic.

A writer holds a lock on ``.<name>.lock`` beside the path, which the system releases when the process ends, however it
ends. It is taken with ``flock``: on a network file system it keeps out writers of other machines only where the server
does locking (NFS mounted with ``nolock``, and Lustre without ``flock``, do not).
"""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ambient_sci.datasets import schema
from ambient_sci.datasets.containers import container_type
from ambient_sci.datasets.durable import sync
from ambient_sci.errors import AmbientError, NotFoundError, OutputError, output_error

try:
    import fcntl
except ImportError:  # not a POSIX system: no lock
    fcntl = None  # type: ignore[assignment]

__all__ = ["Output", "is_store", "remove"]

_HELD = (errno.EAGAIN, errno.EACCES)


class Output:
    """The path of a store that is being written.

    Parameters
    ----------
    path
        Where the store is, or will be.
    overwrite
        Replace a store that is already there.
    append
        There must be a store, which stays.
    """

    def __init__(self, path: Path, overwrite: bool = False, append: bool = False) -> None:
        self.path, self.overwrite, self.append = path, overwrite, append
        self.partial = self.neighbour(f"partial-{os.getpid()}")
        self._lock: int | None = None
        self.check()

    def neighbour(self, ending: str) -> Path:
        """Hidden neighbour of the path."""
        return self.path.parent / f".{self.path.name}.{ending}"

    def check(self) -> None:
        """Refuse what must not be written to."""
        if self.append:
            if not self.path.exists():
                raise NotFoundError(f"no store at {self.path} to append to: there is no such file or folder")
            if not is_store(self.path):
                raise OutputError(f"{self.path} is not an ambient-sci store; nothing can be appended to it")
            return
        if not os.path.lexists(self.path):
            return
        if not self.overwrite:
            raise OutputError(f"{self.path} already exists; choose another path or pass --overwrite (overwrite=True)")
        if not is_store(self.path):
            raise OutputError(f"{self.path} is not an ambient-sci store and is not replaced; choose another path")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only writer of the path.

        Raises
        ------
        OutputError
            If another one is at work.
        """
        with self.faults():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = self._acquire()
        try:
            if descriptor is not None:
                with self.faults():
                    self._recover()
            self.check()  # again: another writer may have been before
            yield
        finally:
            if descriptor is not None:
                with suppress(OSError):
                    self.neighbour("lock").unlink()  # while it is held; whoever waits for this file takes a new one
                os.close(descriptor)

    def _acquire(self) -> int | None:
        if fcntl is None:
            return None
        lock = self.neighbour("lock")
        while True:
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                with suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(descriptor), os.stat(lock)):
                        return descriptor
            except OSError as error:
                os.close(descriptor)
                if error.errno in _HELD:
                    raise OutputError(f"{self.path} is being written by another process; wait until it ends") from error
                return None  # a file system without locks
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)  # it was released and removed in between

    def _recover(self) -> None:
        """Take away what killed writers left; they hold no lock any more."""
        for old in self.path.parent.glob(f".{_literal(self.path.name)}.replaced-*"):
            if os.path.lexists(self.path):
                remove(old)
            else:  # killed between the two renamings of `publish`
                os.rename(old, self.path)
        for old in self.path.parent.glob(f".{_literal(self.path.name)}.partial-*"):
            remove(old)

    def publish(self, partial: Path) -> None:
        """Give what is finished its name; a folder that is there steps aside first, and back if that fails.

        A file is written out to the disk before, a folder has to be already.
        """
        self.check()
        if partial.is_file():
            sync(partial)
        if not self.path.is_dir():
            os.replace(partial, self.path)
            sync(self.path.parent)
            return
        old = self.neighbour(f"replaced-{os.getpid()}")
        remove(old)
        os.rename(self.path, old)
        try:
            os.rename(partial, self.path)
        except OSError:
            os.rename(old, self.path)
            raise
        sync(self.path.parent)
        remove(old)

    @contextmanager
    def faults(self) -> Iterator[None]:
        """Turn what a file system raises into one line."""
        try:
            yield
        except AmbientError:
            raise
        except (OSError, RuntimeError, ValueError) as error:
            raise output_error(self.path, error) from error


def remove(path: Path) -> None:
    """Remove a file or folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _literal(name: str) -> str:
    """Make a name a pattern that matches nothing else."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def is_store(path: Path) -> bool:
    """Whether there is a store, of whatever version."""
    try:
        container = container_type(path)(path)
        found = container.attributes().get("schema") == schema.SCHEMA
        container.close()
    except AmbientError:
        return False
    return found
