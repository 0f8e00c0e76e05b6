"""Writing files so that a reader never sees half of one."""

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from restorevar.errors import UserError

__all__ = ["atomic_write", "discard", "give_usual_mode", "previous_of", "publish", "refuse_existing", "sha256", "sync"]


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path beside ``path``; on success it is synced and renamed to ``path``.

    On any exception (Ctrl-C included) the temporary file is removed and ``path`` is left as it was.

    Args:
        path: The file to write. Its folder is created if needed.

    Yields:
        A path in the same folder with the same suffix, to be written by the caller.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem[:40]}.", suffix=f".part{path.suffix}")
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        give_usual_mode(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def give_usual_mode(path: Path) -> None:
    """Gives a file made private (by `mkstemp`, by safetensors) the mode that the umask would have given it."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)


def sha256(path: str | os.PathLike[str]) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: str | os.PathLike[str]) -> None:
    """Waits until a file's content, or a folder's list of entries, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def previous_of(path: Path) -> Path:
    """Where :func:`publish` keeps the folder before this one until the new one is in place."""
    return path.with_name(f"{path.stem}-previous{path.suffix}")


def refuse_existing(paths: Iterable[Path], overwrite: bool) -> None:
    """Checks what a command with `--output` and `--overwrite` is about to write.

    Raises:
        UserError: One of the files is there, and may not be replaced.
    """
    existing = [path for path in paths if path.exists()]
    if existing and not overwrite:
        raise UserError(f"{existing[0]} exists already; give another --output, or --overwrite to replace it")


def discard(path: Path) -> None:
    """Removes a file or folder in such a way that, if killed, nobody takes what is left for the whole."""
    if path.is_dir() and not path.is_symlink():
        rubbish = path.with_name(f".{path.name}.rubbish")
        shutil.rmtree(rubbish, ignore_errors=True)
        path.rename(rubbish)
        shutil.rmtree(rubbish, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def publish(temporary: Path, path: Path) -> None:
    """Puts a complete file or folder in the place of another one.

    A file replaces a file in one step. A folder cannot: the old one is moved to :func:`previous_of` first and removed
    last, so that at any moment one of the two is there and whole.

    Args:
        temporary: What is complete and synced, in the same folder as ``path``.
        path: Where it goes.
    """
    previous = previous_of(path)
    if path.exists() and (path.is_dir() or temporary.is_dir()):
        discard(previous)
        path.rename(previous)
    temporary.replace(path)
    sync(path.parent)
    discard(previous)
