"""Models and tokenizers, loaded from a folder or the Hub and checked before anything is made of them."""

import json
from pathlib import Path

import torch
import transformers

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


def load(
    head: str, name: str, config_name: str = "", *, trained: bool = True, exact: bool = False, **settings
) -> MaskedModel:
    """A model by transformers' `from_pretrained`, with `settings` in place of its config's.

    `head` is one of masked_classes.HEADS. InputError where it cannot be loaded, or weights are missing or of another
    shape; of one that is not `trained` yet scores, pooler and head may be missing, and the head may be another. With
    `exact` there may be no weights that the model lacks.
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
    # magnitude needs no scores, and older files hold a buffer of positions, and for a span a pooler (D67)
    unread = "mask_scores", "position_ids", *POOLER
    spare = sorted(key for key in loading_info["unexpected_keys"] if not key.endswith(unread))
    if exact and spare:
        raise InputError(f"{name}: {len(spare)} weights are of another model, the first {spare[0]}")
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
    saved = json.loads((Path(directory) / "config.json").read_text(encoding="utf-8"))
    family = check_family(directory, saved.get("model_type"))
    heads = {masked_class(family, head).__name__: head for head in (CLASSIFIES, ANSWERS)}
    architecture = (saved.get("architectures") or list(heads))[0]
    if architecture not in heads:
        raise InputError(f"{directory}: architecture {architecture}, not one of {', '.join(heads)}")
    given = {"pruning_method": pruning_method, "threshold": threshold}
    settings = {name: value for name, value in given.items() if value is not None}
    transformers.logging.set_verbosity_error()  # what is missing is said here
    transformers.logging.disable_progress_bar()
    model = load(heads[architecture], directory, exact=True, **settings)
    set_threshold(model, model.config.threshold)
    return model.eval()
