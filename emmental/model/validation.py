"""What a model's folder holds, read without loading the model: its config, its weights' names, how it is masked.

These checks run before torch is imported, so that a wrong folder is answered in a moment.
"""

import json
import math
import os
from pathlib import Path
from textwrap import shorten

from safetensors import SafetensorError, safe_open

from emmental.model.families import FAMILIES, Family, check_family, family_of, full_type, is_masked
from emmental.pruning.methods import METHODS
from emmental.utils.errors import InputError

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
PACKED = "model.sparse.safetensors"  # of bertarize.py --format sparse
TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json")
TOKENIZER_FILES = (*TOKENIZERS, "merges.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


def is_path(name: str) -> bool:
    """Whether a model's name is a path; teacher/ is where the shell scripts look for the teachers trained here."""
    return os.path.exists(name) or name.startswith((".", "/", "~", "teacher/")) or name.count("/") > 1


def read_config(name: str, flag: str) -> dict:
    """The config of a model's folder, or of a model on the Hub, as written in config.json; `flag` named it."""
    if os.path.isdir(name):
        return _read_json(Path(name) / "config.json", f"{flag} {name}: no model folder, it has no config.json")
    if is_path(name):
        raise InputError(f"{flag} {name}: no such folder")
    from huggingface_hub import hf_hub_download  # only for names of the Hub: half a second

    try:
        path = hf_hub_download(name, "config.json")
    except Exception as error:  # whatever the reason: neither place has it
        reason = shorten(f"{type(error).__name__}: {error}", 200, placeholder=" ...")
        raise InputError(f"{flag} {name}: no such folder here, and not to be had from the Hub ({reason})") from None
    return _read_json(Path(path), f"{flag} {name}: no config.json")


def _read_json(path: Path, missing: str) -> dict:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise InputError(missing) from None
    except (ValueError, RecursionError):
        raise InputError(f"{path}: not JSON") from None
    if not isinstance(config, dict):
        raise InputError(f"{path}: not a JSON object")
    return config


def check_config(name: str, flag: str, max_seq_length: int, model_type: str | None = None) -> dict:
    """The config of a model of one of the families, of `model_type` if one is given; InputError for any other."""
    config = read_config(name, flag)
    found = config.get("model_type")
    family = FAMILIES[check_family(f"{flag} {name}", found)]
    if model_type and found != full_type(model_type, family_of(found)):
        wanted = full_type(model_type, family_of(found))
        folded = "; it is not masked, or folded already" if is_masked(wanted) else ""
        raise InputError(f"{flag} {name}: model_type is {found!r}, not {wanted}{folded}")
    for key, default in family.sizes.items():
        if type(value := config.get(key, default)) is not int or value < 1:
            raise InputError(f"{flag} {name}: its config's {key} is {value!r}")
    if max_seq_length > (positions := usable_positions(family, config)):
        raise InputError(f"--max_seq_length {max_seq_length}: {name} has {positions} positions")
    return config


def usable_positions(family: Family, config: dict) -> int:
    """The longest input of a model: where positions are counted after the padding token, those before are lost."""
    padding = config.get("pad_token_id", 1)
    lost = 1 + padding if family.after_padding and isinstance(padding, int) else 0
    return family.size(config, "max_position_embeddings") - lost


def is_packed(name: str) -> bool:
    """Whether a folder holds a packed model, which emmental.load_sparse reads, and an evaluation alone."""
    return os.path.isfile(os.path.join(name, PACKED))


def check_model(
    name: str, flag: str, max_seq_length: int, model_type: str | None = None, packed_too: bool = False
) -> dict:
    """The config of a model that can be loaded, as check_config; InputError for any other."""
    config = check_config(name, flag, max_seq_length, model_type)
    if not os.path.isdir(name) or (packed_too and is_packed(name)):
        return config
    if is_packed(name):
        raise InputError(f"{flag} {name}: packed, for evaluation alone; take the masked model that it was folded from")
    if not any(os.path.isfile(os.path.join(name, weights)) for weights in WEIGHTS):
        raise InputError(f"{flag} {name}: no model folder, it has no {WEIGHTS[0]}")
    if os.path.isfile(path := os.path.join(name, WEIGHTS[0])):
        try:
            with safe_open(path, "numpy"):  # reads what tensors there are, and that the file is as long as they need
                pass
        except (SafetensorError, OSError) as error:
            raise InputError(f"{flag} {name}: {WEIGHTS[0]} is damaged ({error})") from None
    return config


def check_masks_defined(name: str, flag: str, config: dict) -> None:
    """Refuses a masked model whose config lacks pruning_method or a finite threshold."""
    if not is_masked(config["model_type"]):
        return
    has_method = "pruning_method" in config
    if not has_method or (config["pruning_method"] and config.get("threshold") is None):
        key = "threshold" if has_method else "pruning_method"
        raise InputError(f"{flag} {name}: its config has no {key}; fold it first: bertarize.py --{key} ...")
    threshold = config.get("threshold")
    if config["pruning_method"] and not (isinstance(threshold, int | float) and math.isfinite(threshold)):
        raise InputError(f"{flag} {name}: its config's threshold is {threshold!r}, not a finite number")


def check_masked(name: str, flag: str, pruning_method: str | None, threshold: float | None) -> bool:
    """Refuses a folder that holds no masked model, or neither it nor the flags say how its masks are made.

    A method or threshold that is given wins over the config's, with a line that says so; returns whether one does.
    """
    if not os.path.isdir(name):
        raise InputError(f"{flag} {name}: no such folder")
    config = check_model(name, flag, 0, "masked")
    others = False
    for key, given in (("pruning_method", pruning_method), ("threshold", threshold)):
        saved = config.get(key)
        if given is None and saved is None:
            raise InputError(f"{flag} {name}: its config has no {key}; give --{key}")
        if given is not None and saved is not None and given != saved:
            print(f"--{key} {given} is taken, not the {saved} of {name}'s config")
            others = True
    method = pruning_method or config["pruning_method"]
    if method not in METHODS:
        raise InputError(f"{flag} {name}: its config's pruning_method is {method!r}, not one of {', '.join(METHODS)}")
    value, fraction = config["threshold"] if threshold is None else threshold, METHODS[method].fraction
    low, high = (0, 1) if fraction else (-1e30, 1e30)
    if not (isinstance(value, int | float) and low <= value <= high):
        where = f"{flag} {name}: its config's threshold" if threshold is None else "--threshold"
        raise InputError(f"{where} {value}: between {low:g} and {high:g} with {method}")
    return others
