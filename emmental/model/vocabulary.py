"""The tokens of a tokenizer, read from its files without loading it."""

import json
from pathlib import Path


def local(folder: str, name: str = "tokenizer.json") -> Path:
    """The folder itself, or where the file `name` of one on the Hub was put; else the Hub's errors."""
    if Path(folder).is_dir():
        return Path(folder)
    from huggingface_hub import hf_hub_download  # only for names of the Hub

    return Path(hf_hub_download(folder, name)).parent


def read(folder: str, name: str) -> dict:
    return json.loads((local(folder, name) / name).read_text(encoding="utf-8"))


def lower_cases(folder: str) -> bool | None:
    """Whether a folder's tokenizer, or one on the Hub, lower-cases texts; None where its files do not say."""
    try:
        normalizer = read(folder, "tokenizer.json").get("normalizer") or {}
        if normalizer.get("type") == "BertNormalizer":  # transformers makes it anew, by what the other file says
            return read(folder, "tokenizer_config.json").get("do_lower_case", True)
    except (OSError, ValueError, AttributeError):
        return None
    return '"Lowercase"' in json.dumps(normalizer)


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
