"""Writing a report so that a failure leaves neither half a file nor a lost old one."""

import os
import secrets
from contextlib import suppress
from pathlib import Path

from gradoscope.errors import CannotWrite

__all__ = ["write_bytes"]


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file whole or not at all: into a new file beside it, which then takes its place.

    Raises:
        CannotWrite: where the folder is missing or locked, the path is a folder, or the disk is full.
    """
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise CannotWrite(f"cannot write {path}: this is a folder. Name a file in it, e.g. {Path(path) / 'report.html'}.")
    if not target.parent.is_dir():
        raise CannotWrite(f"cannot write {path}: there is no folder {target.parent}. Make it first, or name another path.")
    try:
        if target.exists() and not target.is_file():
            target.write_bytes(content)  # a device or pipe is written to, never replaced
        else:
            _replace(target, content)
    except OSError as error:
        reason = error.strerror or str(error)
        raise CannotWrite(f"cannot write {path}: {reason}. Name a path that you may write to, with {_size(content)} to spare.") from error


def _replace(target: Path, content: bytes) -> None:
    fresh = target.parent / f".gradoscope-{secrets.token_hex(6)}.tmp"
    # os.open and not tempfile: a temporary file would be private to the user, a report should follow the umask
    handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, target)
    except BaseException:
        with suppress(OSError):
            fresh.unlink()
        raise


def _size(content: bytes) -> str:
    return f"{max(len(content) / 1e6, 0.1):.1f} MB"
