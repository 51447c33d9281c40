"""Models and tokenizers, loaded from a folder or the Hub and checked before anything is made of them."""

import json
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file

from emmental.model.families import MASKED, check_family, family_of
from emmental.model.heads import ANSWERS, CLASSIFIES
from emmental.model.masked_classes import masked_class
from emmental.model.masked_model import POOLER, MaskedConfig, MaskedModel
from emmental.pruning.masked_linear import set_threshold
from emmental.utils.errors import InputError, print_once


def load_config(name: str, **settings) -> MaskedConfig:
    """The config of a model, masked or not, as its family's masked model needs it, with `settings` in place of its."""
    family = check_family(name, transformers.PretrainedConfig.get_config_dict(name)[0].get("model_type"))
    return masked_class(family, "Config").from_pretrained(name, model_type=MASKED + family, **settings)


def load(head: str, name: str, config_name: str = "", *, trained: bool = True, **settings) -> MaskedModel:
    """A model by transformers' `from_pretrained`, with `settings` in place of its config's.

    `head` is one of masked_classes.HEADS. InputError where it cannot be loaded, or weights are missing or of another
    shape; of one that is not `trained` yet scores, pooler and head may be missing, and the head may be another.
    """
    options = {"dtype": torch.float32, "output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        config = load_config(config_name or name, **settings)
        model_class = masked_class(family_of(config.model_type), head)
        model, loading_info = model_class.from_pretrained(name, config=config, **options)
    except InputError:
        raise
    except Exception as error:  # transformers, safetensors and torch's unpickler share no base class
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise InputError(f"{name}: the model cannot be loaded ({reason})") from error
    new = () if trained else model.family.new_weights
    shapes = {key: f"{list(theirs)} instead of {list(ours)}" for key, theirs, ours in loading_info["mismatched_keys"]}
    wrong = sorted(key for key in shapes if not key.startswith(new))
    if wrong:
        reason = f"{len(wrong)} weights of another shape, the first {wrong[0]}, {shapes[wrong[0]]}"
        raise InputError(f"{name}: the model cannot be loaded ({reason})")
    missing = [key for key in loading_info["missing_keys"] if not key.startswith(new)]
    missing = sorted(key for key in missing if trained or not key.endswith("mask_scores"))
    if missing:
        of = model_class.__name__
        raise InputError(f"{name}: {len(missing)} weights of a {of} are missing, the first {missing[0]}")
    if not trained:
        report_new_weights(name, model, loading_info)
    return model


def report_new_weights(name: str, model: MaskedModel, loading_info: dict) -> None:
    """Says where a model that is to be trained starts with a new head, or with scores that were trained before."""
    for key, theirs, ours in loading_info["mismatched_keys"]:
        if key.endswith(".weight"):
            print_once(f"{name}: training starts with a new head: the model has {theirs[0]} labels, the task {ours[0]}")
    scores = {key for key in model.state_dict() if key.endswith("mask_scores")}
    if scores and not scores & loading_info["missing_keys"]:
        print_once(f"{name}: training starts from its mask scores; --mask_init and --mask_scale are not used")
    if not scores and any(key.endswith("mask_scores") for key in loading_info["unexpected_keys"]):
        print_once(f"{name}: its mask scores are not used; {model.config.pruning_method} has none")


def load_tokenizer(name: str, do_lower_case: bool):
    """A folder's fast tokenizer; `do_lower_case` lower-cases whatever its files say, and is refused where it cannot."""
    settings = {"do_lower_case": True} if do_lower_case else {}
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, **settings)
    except Exception as error:  # as above, and the tokenizers' own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise InputError(f"{name}: the tokenizer cannot be loaded ({reason})") from error
    if do_lower_case and tokenizer.tokenize("A") != tokenizer.tokenize("a"):
        raise InputError(f"--do_lower_case: the tokenizer of {name} keeps capitals apart, whatever this flag says")
    return tokenizer


def load_masked(directory: str, pruning_method: str | None = None, threshold: float | None = None) -> MaskedModel:
    """The masked model of a folder, its masks made; a method or threshold given here wins over the config's.

    InputError where weights or scores are missing, or are not this model's.
    """
    folder = Path(directory)
    saved = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    given = {"pruning_method": pruning_method, "threshold": threshold}
    settings = saved | {name: value for name, value in given.items() if value is not None}
    family = check_family(str(folder), saved.get("model_type"))
    classes = {kind.__name__: kind for kind in (masked_class(family, head) for head in (CLASSIFIES, ANSWERS))}
    architecture = (saved.get("architectures") or list(classes))[0]
    if architecture not in classes:
        raise InputError(f"{folder}: architecture {architecture}, not one of {', '.join(classes)}")
    try:
        model = classes[architecture](masked_class(family, "Config").from_dict(settings))
    except (TypeError, ValueError, KeyError, ZeroDivisionError) as error:
        raise InputError(f"{folder / 'config.json'}: {_first_line(error)}") from None
    weights, expected = read_weights(folder), model.state_dict()
    # Magnitude needs no scores, and may be tried on a model that has them; older files hold a buffer of positions, and
    # for a span a pooler that nothing reads (D67).
    unread = "position_ids", "mask_scores", *POOLER
    spare = {name for name in weights if name.endswith(unread) and name not in expected}
    weights = {name: value for name, value in weights.items() if name not in spare}
    wrong = [name for name in expected if name not in weights or weights[name].shape != expected[name].shape]
    wrong += [name for name in weights if name not in expected]
    if wrong:
        what = "scores" if wrong[0].endswith("mask_scores") else "weights"
        raise InputError(f"{folder}: {len(wrong)} {what} missing or of another model, the first {wrong[0]}")
    model.load_state_dict(weights)
    set_threshold(model, settings["threshold"])
    return model.eval()


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
