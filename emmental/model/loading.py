"""Models and tokenizers, loaded from a folder or the Hub and checked before anything is made of them."""

import torch
import transformers

from emmental.model.masked_bert import MaskedBert, MaskedBertConfig
from emmental.utils.errors import InputError


def load(
    model_class: type[MaskedBert], name: str, config_name: str = "", *, trained: bool = True, **settings
) -> MaskedBert:
    """A model by transformers' `from_pretrained`, with `settings` in place of its config's.

    InputError where it cannot be loaded, or weights are missing; of one that is not `trained` yet scores, pooler and
    head may be.
    """
    try:
        config = MaskedBertConfig.from_pretrained(config_name or name, **settings)
        model, told = model_class.from_pretrained(name, config=config, dtype=torch.float32, output_loading_info=True)
    except Exception as error:  # transformers, safetensors and torch's unpickler share no base class
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise InputError(f"{name}: the model cannot be loaded ({reason})") from error
    new = ("bert.pooler.", "classifier.", "qa_outputs.")
    missing = [x for x in told["missing_keys"] if trained or not (x.endswith("mask_scores") or x.startswith(new))]
    if missing:
        of = model_class.__name__
        raise InputError(f"{name}: {len(missing)} weights of a {of} are missing, the first {min(missing)}")
    return model


def load_tokenizer(name: str, do_lower_case: bool):
    """A folder's fast tokenizer; `do_lower_case` lower-cases whatever its files say."""
    settings = {"do_lower_case": True} if do_lower_case else {}
    try:
        return transformers.AutoTokenizer.from_pretrained(name, **settings)
    except Exception as error:  # as above, and the tokenizers' own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise InputError(f"{name}: the tokenizer cannot be loaded ({reason})") from error
