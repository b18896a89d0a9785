"""JSON Lines to a file: a private one that takes its place as a whole, or one that is open."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from ironbus.errors import InvalidOption, StorageError


class TextFile(Protocol):
    """What is open for writing text."""

    def write(self, text: str, /) -> object: ...


Target = str | os.PathLike[str] | TextFile


def write_lines(target: Target, objects: Iterable[dict[str, Any]], *, replace: bool = True) -> int:
    """Writes each on a line; how many. Raises :class:`ironbus.StorageError` where the path cannot be written.

    Without ``replace`` a path where something is cannot be.
    """
    if not isinstance(target, (str, os.PathLike)):
        if not callable(getattr(target, "write", None)):
            raise InvalidOption("file must be a path, or a file that is open for writing text", "file")
        return _write(target, objects)
    path = Path(target)
    draft = path.with_name(f"{path.name}.new-{secrets.token_hex(4)}")
    try:
        if not replace:
            # It has its name from here on, so that nobody else's file is replaced.
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        raise StorageError(
            f"{path}: is there already; choose another path, or replace it with --force", "file"
        ) from None
    except OSError as error:
        raise _unwritable(path, error) from None
    try:
        number = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with open(number, "w", encoding="utf-8") as file:
                count = _write(file, objects)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
    except BaseException as error:
        if not replace:
            path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _unwritable(path, error) from None
        raise
    return count


def _unwritable(path: Path, error: OSError) -> StorageError:
    return StorageError(f"{path}: cannot be written ({error.strerror}); choose another path", "file")


def _write(file: TextFile, objects: Iterable[dict[str, Any]]) -> int:
    count = 0
    for each in objects:
        file.write(json.dumps(each, default=str) + "\n")
        count += 1
    return count
