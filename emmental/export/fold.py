"""A masked model as it was saved, read as tensors only and checked before anything is made of it."""

import json
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import BertConfig

from emmental.export.sparse_format import compact, idle_neurons, rounded, save_sparse, size_table
from emmental.model.masked_bert import (
    MaskedBert,
    MaskedBertConfig,
    MaskedBertForQuestionAnswering,
    MaskedBertForSequenceClassification,
    fold,
)
from emmental.model.validation import TOKENIZER_FILES
from emmental.pruning.masked_linear import set_threshold
from emmental.utils.errors import InputError


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a folder's model.safetensors, or of the pytorch_model.bin of older runs; never other objects."""
    for name, reader in (
        ("model.safetensors", load_file),
        ("pytorch_model.bin", lambda path: torch.load(path, map_location="cpu", weights_only=True)),
    ):
        if (folder / name).is_file():
            try:
                return dict(reader(folder / name))
            except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, TypeError, KeyError) as error:
                raise InputError(f"{folder / name}: damaged, or no file of tensors ({_first_line(error)})") from None
            except Exception as error:  # what an unpickler that takes tensors only says of anything else
                raise InputError(f"{folder / name}: not tensors alone, not loaded ({_first_line(error)})") from None
    raise InputError(f"{folder}: has neither model.safetensors nor pytorch_model.bin")


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:120]


def load_masked(directory: str, pruning_method: str | None = None, threshold: float | None = None) -> MaskedBert:
    """The masked model of a folder, its masks made; a method or threshold given here wins over the config's.

    InputError where weights or scores are missing, or are not this model's.
    """
    folder = Path(directory)
    saved = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    given = {"pruning_method": pruning_method, "threshold": threshold}
    settings = saved | {name: value for name, value in given.items() if value is not None}
    kinds = (MaskedBertForSequenceClassification, MaskedBertForQuestionAnswering)
    architecture = (saved.get("architectures") or [kinds[0].__name__])[0]
    kind = {kind.__name__: kind for kind in kinds}.get(architecture)
    if kind is None:
        raise InputError(f"{folder}: architecture {architecture}, not one of {', '.join(k.__name__ for k in kinds)}")
    try:
        model = kind(MaskedBertConfig.from_dict(settings))
    except (TypeError, ValueError, KeyError, ZeroDivisionError) as error:
        raise InputError(f"{folder / 'config.json'}: {_first_line(error)}") from None
    weights, expected = read_weights(folder), model.state_dict()
    # Magnitude needs no scores, and may be tried on a model that has them; older files hold a buffer of positions.
    spare = {name for name in weights if name.endswith(("position_ids", "mask_scores")) and name not in expected}
    weights = {name: value for name, value in weights.items() if name not in spare}
    wrong = [name for name in expected if name not in weights or weights[name].shape != expected[name].shape]
    wrong += [name for name in weights if name not in expected]
    if wrong:
        what = "scores" if wrong[0].endswith("mask_scores") else "weights"
        raise InputError(f"{folder}: {len(wrong)} {what} missing or of another model, the first {wrong[0]}")
    model.load_state_dict(weights)
    set_threshold(model, settings["threshold"])
    return model.eval()


def save_folded(model: MaskedBert, source: Path, target: Path, form: str, dtype: str, compacted: bool) -> str:
    """Writes the model with its masks folded in, as transformers' plain BERT, and the tokenizer of `source`.

    `form` and `dtype` as in export.sparse_format; `compacted` removes idle feed-forward neurons where all layers can
    spare some, and where only some can makes the form sparse, in which they take no room. Returns what to tell of it.
    """
    plain = fold(model)
    state, config = plain.state_dict(), plain.config.to_dict() | {"architectures": [type(plain).__name__]}
    dense, told = state, []
    if compacted:
        before = config["intermediate_size"]
        idle = [int(mask.sum()) for mask in idle_neurons(state)]
        state, config = compact(state, config)
        told.append(f"feed-forward neurons in each layer: {before} -> {config['intermediate_size']}")
        if form == "dense" and any(idle) and config["intermediate_size"] == before:
            form = "sparse"
            told.append(f"idle neurons by layer: {idle}; a plain BERT's layers are all of one size, so it is packed")
    target.mkdir(parents=True)
    if form == "sparse":
        stored = save_sparse(state, config, target, dtype)
    else:
        smaller = type(plain)(BertConfig(**config))
        smaller.to(getattr(torch, dtype)).load_state_dict(rounded(state, dtype))
        smaller.save_pretrained(target)
        stored = smaller.state_dict()
    told.append(f"{'part':12}{'dense float32':>16}{'as saved':>16}{'ratio':>8}")
    told += [
        f"{part:12}{before:16,}{after:16,}{ratio:8.2f}" for part, before, after, ratio in size_table(dense, stored)
    ]
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copy(source / name, target / name)
    return "\n".join(told)
