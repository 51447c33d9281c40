"""Models and tokenizers as the flags describe them, loaded by transformers' `from_pretrained`."""

from pathlib import Path

import datasets
import torch
import transformers

from emmental.arguments import CommonArguments
from emmental.model.masked_bert import MaskedBert, MaskedBertConfig
from emmental.model.packing import set_packing
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


def load_tokenizer(args: CommonArguments):
    """The model's fast tokenizer; --do_lower_case lower-cases whatever its files say."""
    settings = {"do_lower_case": True} if args.do_lower_case else {}
    name = args.tokenizer_name or args.model_name_or_path
    try:
        return transformers.AutoTokenizer.from_pretrained(name, **settings)
    except Exception as error:  # as above, and the tokenizers' own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise InputError(f"{name}: the tokenizer cannot be loaded ({reason})") from error


def cache_folder(args: CommonArguments) -> Path:
    """Where tokenised sets are kept."""
    return Path(args.cache_dir or datasets.config.HF_DATASETS_CACHE) / "emmental"


def build(args: CommonArguments, model_class: type[MaskedBert], labels: tuple[str, ...] | None) -> MaskedBert:
    """The model that the flags describe: masked or dense to be trained, or one to be evaluated as it was saved.

    `labels` are the task's label names, () for a regression, None for a span.
    """
    settings: dict = {"alignrep": args.alignrep}
    if labels:
        settings |= {"id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}}
    else:
        settings["num_labels"] = 2 if labels is None else 1  # a span's start and end, a regression's value
    if args.do_train and args.masked:
        masks = {name: getattr(args, name) for name in ("pruning_method", "mask_init", "mask_scale")}
        settings |= {**masks, "threshold": None}
        return load(model_class, args.model_name_or_path, args.config_name, trained=False, **settings)
    saved, _ = MaskedBertConfig.get_config_dict(args.config_name or args.model_name_or_path)
    if args.do_train or saved["model_type"] != "masked_bert":
        settings["pruning_method"] = None
    return load(model_class, args.model_name_or_path, args.config_name, trained=not args.do_train, **settings)


def load_teacher(args: CommonArguments, model_class: type[MaskedBert]) -> MaskedBert:
    own = {} if args.teacher_type == "masked_bert" else {"pruning_method": None}
    teacher = load(model_class, args.teacher_name_or_path, alignrep=args.alignrep, **own)
    set_packing(teacher, not args.pad_to_max_length)
    return teacher
