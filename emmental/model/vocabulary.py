"""The tokens of a tokenizer, read from its files without loading it."""

import json
from pathlib import Path


def local(folder: str) -> Path:
    """The folder itself, or where the tokenizer.json of a name on the Hub was put; else the Hub's errors."""
    if Path(folder).is_dir():
        return Path(folder)
    from huggingface_hub import hf_hub_download  # only for names of the Hub

    return Path(hf_hub_download(folder, "tokenizer.json")).parent


def lower_cases(folder: str) -> bool | None:
    """Whether a folder's tokenizer, or one on the Hub, lower-cases texts; None where no tokenizer.json says."""
    try:
        saved = json.loads((local(folder) / "tokenizer.json").read_text(encoding="utf-8"))
        normalizer = json.dumps(saved.get("normalizer"))
    except (OSError, ValueError, AttributeError):
        return None
    return '"lowercase": true' in normalizer or '"Lowercase"' in normalizer


def vocabulary(folder: str) -> dict[str, int] | None:
    """The id of every token of a folder's tokenizer, or of one on the Hub; None where there are none to read."""
    try:
        path = local(folder)
        if (path / "tokenizer.json").is_file():
            saved = json.loads((path / "tokenizer.json").read_text(encoding="utf-8"))
            added = {token["content"]: token["id"] for token in saved.get("added_tokens", ())}
            return {token: int(number) for token, number in (saved["model"]["vocab"] | added).items()}
        if (path / "vocab.json").is_file():
            return json.loads((path / "vocab.json").read_text(encoding="utf-8"))
        return {word.decode(): number for number, word in enumerate((path / "vocab.txt").read_bytes().split())}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # the Hub's errors are OSErrors or ValueErrors
        return None
