"""Files that are whole or absent, and how to tell that one is still what was written."""

import json
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from emmental.utils.errors import InputError


@contextmanager
def writing(path: Path) -> Iterator[None]:
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
def whole(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; it takes `path`'s place once written, and is gone if writing failed."""
    beside = path.with_name(path.name + ".partial")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield beside
            sync(beside)
            os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write_json(content: dict, path: Path) -> None:
    """Writes a JSON file, whole or not at all."""
    with whole(path) as beside:
        beside.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def sync(path: Path) -> None:
    """Returns when a file, or a folder's list of files, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def digest(path: Path) -> list[int]:
    """A file's size and CRC-32: enough to notice a torn or damaged one, fast enough for gigabytes."""
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            checksum = zlib.crc32(block, checksum)
    return [path.stat().st_size, checksum]
