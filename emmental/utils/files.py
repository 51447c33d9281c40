"""Files that are complete or absent, and digests that show whether one is still what was written."""

import json
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

from safetensors import SafetensorError

from emmental.utils.errors import InputError


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Says in one line that `path` could not be written, on a full disk for example."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: could not be written ({error})") from None
    except Exception as error:
        if type(error) is not Exception:  # which is what tokenizers raises on a full disk
            raise
        raise InputError(f"{path}: could not be written ({error})") from None


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary path to write to; it replaces `path` once written, and is removed if writing failed."""
    temporary = path.with_name(path.name + ".partial")
    try:
        with write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            open_to_others(temporary)
            sync(temporary)
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(content: dict, path: Path) -> None:
    """Writes a JSON file, completely or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict | None:
    """A JSON object, None where there is none to read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def open_to_others(*paths: Path) -> None:
    """Lets others read files as any new one: safetensors makes its own for their owner alone."""
    os.umask(mask := os.umask(0))
    for path in paths:
        with suppress(OSError):  # another's file, or a file system without modes
            path.chmod(path.stat().st_mode | 0o666 & ~mask)


def sync(path: Path) -> None:
    """Returns when a file, or a folder's list of files, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def digest(path: Path) -> list[int]:
    """A file's size and CRC-32: enough to notice a torn or damaged one, fast enough for gigabytes."""
    found = path.stat()
    return [found.st_size, _checksum(path, found.st_ino, found.st_size, found.st_mtime_ns)]


@lru_cache(maxsize=4096)
def _checksum(path: Path, *version: int) -> int:
    """A file's CRC-32, read once as long as its `version` is the same: a run looks at its checkpoints several times."""
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            checksum = zlib.crc32(block, checksum)
    return checksum
