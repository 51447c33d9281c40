"""The tokens of a tokenizer, read from its files without loading it."""

import json
from pathlib import Path


def vocabulary(folder: str) -> dict[str, int] | None:
    """The id of every token of a folder's tokenizer, or of one on the Hub; None where there are none to read."""
    path = Path(folder)
    try:
        if not path.is_dir():
            from huggingface_hub import hf_hub_download  # only for names of the Hub

            path = Path(hf_hub_download(folder, "tokenizer.json")).parent
        if (path / "tokenizer.json").is_file():
            saved = json.loads((path / "tokenizer.json").read_text(encoding="utf-8"))
            added = {token["content"]: token["id"] for token in saved.get("added_tokens", ())}
            return {token: int(number) for token, number in (saved["model"]["vocab"] | added).items()}
        if (path / "vocab.json").is_file():
            return json.loads((path / "vocab.json").read_text(encoding="utf-8"))
        return {word.decode(): number for number, word in enumerate((path / "vocab.txt").read_bytes().split())}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # the Hub's errors are OSErrors or ValueErrors
        return None
