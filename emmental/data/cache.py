"""Tokenised sets on disk, by the key of all that they depend on."""

import hashlib
import json
import os
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from emmental.utils.errors import InputError


def import_datasets():
    """The datasets library, without its progress bars where standard error is no terminal."""
    import datasets

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    return datasets


def described(tokenizer) -> dict:
    """All that a fast tokenizer's tokens depend on."""
    return json.loads(tokenizer.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}  # its last call's


def cache_folder(cache_dir: str) -> Path:
    """Where tokenised sets are kept, below `cache_dir` or else Hugging Face's own."""
    import datasets

    return Path(cache_dir or datasets.config.HF_DATASETS_CACHE) / "emmental"


def cached_map(dataset, function, file: Path, overwrite: bool):
    """The Arrow table of `function` mapped over batches of `dataset`'s columns, read from `file` if that holds it.

    The file ends in a digest, so that a damaged one is made anew, and is written beside and renamed, so that several
    runs may share it. Of a run's processes the first makes it. A progress bar is shown for long sets. Raises InputError
    if `file` cannot be written.
    """
    # Imported when called, so that the readers, which are done first, need none of them.
    import pyarrow as pa

    from emmental.utils import distributed

    datasets, tables = import_datasets(), []

    def kept():
        content = memoryview(file.read_bytes() if file.exists() else b"")
        table, digest = content[:-32], content[-32:]
        return pa.ipc.open_stream(table).read_all() if hashlib.sha256(table).digest() == digest else None

    def table(anew: bool):
        if not anew and (found := kept()):
            return found
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=file.parent) as temporary, ExitStack() as bar:
            if len(dataset) < 20_000 and not datasets.are_progress_bars_disabled():
                datasets.disable_progress_bars()
                bar.callback(datasets.enable_progress_bars)
            written, names = Path(temporary) / "table.arrow", dataset.column_names
            columns = {"input_columns": names, "remove_columns": names}
            place = {"cache_file_name": str(written), "new_fingerprint": file.stem[-32:]}
            dataset.map(function, batched=True, **columns, **place, desc="Tokenising")
            digest = hashlib.sha256(written.read_bytes()).digest()
            with written.open("ab") as end:
                end.write(digest)
            os.replace(written, file)
        return kept()

    try:
        distributed.from_main(lambda: tables.append(table(overwrite)))
        return tables[0] if tables else table(anew=False)  # a node that shares no folder with the first makes its own
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"--cache_dir {file.parent}: {getattr(error, 'strerror', None) or error}") from error
