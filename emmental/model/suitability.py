"""Whether the models that the flags name suit the task and each other: labels, masks, vocabularies, sizes.

Like validation.py, on which it builds, it reads folders without loading a model, before torch is imported.
"""

import math
import os
import shlex
import sys
from pathlib import Path

from emmental.model.families import FAMILIES, family_of, full_type, is_masked
from emmental.model.heads import CLASSIFIES, check_head, check_order, label_names
from emmental.model.validation import TOKENIZERS, check_config, check_masks_defined, check_model, is_path
from emmental.model.vocabulary import lower_cases, vocabulary
from emmental.pruning.methods import METHODS, MIN_SHARE_KEPT, highest_sparsity
from emmental.utils.errors import InputError, print_once
from emmental.utils.files import read_json

# what a teacher must share with its student: texts, how they are windowed and tokenised
OF_DATA = ("task_name", "data_dir", "train_file", "predict_file", "version_2_with_negative", "config_name")
OF_DATA += ("tokenizer_name", "do_lower_case", "max_seq_length", "doc_stride", "max_query_length", "cache_dir")


def check_models(args, labels: tuple[str, ...] | None) -> None:
    """Refuses the model that the flags name, and a teacher that does not suit it; `labels` as in check_head.

    --model_type and --teacher_type become the full types, with the family that the model's config tells.
    """
    name, length = args.model_name_or_path, args.max_seq_length
    config = check_config(name, "--model_name_or_path", 0)
    found = config["model_type"]
    args.model_type = fitting_type(args.model_type, name, family_of(found))
    args.teacher_type = full_type(args.teacher_type, family_of(found))
    student = check_student(name, args.config_name, args.tokenizer_name, length, args.trains, labels)
    if is_masked(args.trains):
        check_first_masks(args, config)
        if args.target_sparsity:
            check_target(args.target_sparsity, args.config_name or name, student)
    if not args.trains:
        say_other_task("--model_name_or_path", name, args)
    if args.needs_teacher:
        check_teacher_exists(args, labels)
        say_other_task("--teacher_name_or_path", args.teacher_name_or_path, args)
        teacher = args.teacher_name_or_path, args.teacher_type
        check_teacher(*teacher, name, student, args.tokenizer_name or name, length, labels)
        say_other_case(args)


def say_other_task(flag: str, name: str, args) -> None:
    """Warns of a model that was trained here on another task, which its labels alone do not show."""
    trained = read_json(Path(name, "arguments.json")) or {}
    for key in ("task_name", "version_2_with_negative"):
        theirs, ours = trained.get(key), getattr(args, key, None)
        if None not in (theirs, ours) and theirs != ours:
            print_once(f"warning: {flag} {name}: trained with {key} {theirs}, and here it is {ours}")


def say_other_case(args) -> None:
    """Warns of a teacher that was trained on lower-cased texts where the student's are not, or the reverse."""
    teacher, tokenizer = args.teacher_name_or_path, args.tokenizer_name or args.model_name_or_path
    theirs, ours = lower_cases(teacher), lower_cases(tokenizer)
    if None not in (theirs, ours) and theirs != (ours or args.do_lower_case):
        case = f"{'lower-cases texts' if theirs else 'keeps capitals'}, and here it is otherwise (--do_lower_case)"
        print_once(f"warning: --teacher_name_or_path {teacher}: its tokenizer {case}")


def check_first_masks(args, config: dict) -> None:
    """Refuses an initial threshold that no new score exceeds: all but the fewest weights would go before step 0 (D68).

    Warns where scores that are all alike would be ranked. `config` is that of the folder where training starts: a
    masked one brings its scores. kaiming's are not checked, as they depend on the matrix.
    """
    method = METHODS[args.pruning_method]
    kept = METHODS.get(config.get("pruning_method")) if is_masked(config["model_type"]) else None
    compared = method.compared and not args.global_topk
    if args.mask_init == "kaiming" or (kept and kept.scored):
        return
    alike = args.mask_init == "constant" or args.mask_scale == 0
    if alike and method.scored and method.ranked and args.initial_threshold < 1:
        places = "new scores are all alike, so the last rows of each matrix are pruned first"
        print_once(f"warning: --initial_threshold {args.initial_threshold}: {places}")
    if not compared:
        return
    highest = 1 / (1 + math.exp(-args.mask_scale)) if method.sigmoid else args.mask_scale
    if highest <= args.initial_threshold:
        scores = f"{'the sigmoids of ' if method.sigmoid else ''}new scores are at most {highest:g}"
        scores += f" (--mask_scale {args.mask_scale}), none above it"
        raise InputError(f"--initial_threshold {args.initial_threshold}: {scores}")


def check_target(target_sparsity: float, name: str, config: dict) -> None:
    """Refuses a target that this model's matrices cannot reach, since some of each are always kept."""
    most = highest_sparsity(FAMILIES[family_of(config["model_type"])].matrix_sizes(config))
    if target_sparsity > most:
        most = math.floor(most * 1e5) / 1e5
        kept = f"of each of its matrices {MIN_SHARE_KEPT:.1%} and one weight more are kept"
        raise InputError(f"--target_sparsity {target_sparsity}: at most {most} with {name}, since {kept}")


def fitting_type(asked: str, name: str, family: str) -> str:
    """The full model_type of a model of this family; InputError where another family's is asked for."""
    fits = full_type("masked" if is_masked(asked) else "dense", family)
    if full_type(asked, family) != fits:
        raise InputError(f"--model_type {asked}: {name} is of the family {family}, which --model_type {fits} fits")
    return fits


def check_teacher_exists(args, labels: tuple[str, ...] | None) -> None:
    """Refuses the path of a teacher that is not there, with the command that trains it."""
    name = args.teacher_name_or_path
    if os.path.isdir(name) or not is_path(name):
        return
    batch, epochs = ("16", "2") if labels is None else ("32", "3")  # as published
    command = [
        "python",
        sys.argv[0],
        "--model_type",
        family_of(args.model_type),
        "--model_name_or_path",
        args.model_name_or_path,
    ]
    command += ["--output_dir", name, "--do_train", "--do_eval", "--per_gpu_train_batch_size", batch]
    command += ["--learning_rate", "3e-5", "--num_train_epochs", epochs, "--save_steps", "0"]
    for flag in OF_DATA:
        if (value := getattr(args, flag, None)) != getattr(type(args), flag, None):
            command += [f"--{flag}"] if value is True else [f"--{flag}", str(value)]
    raise InputError(f"--teacher_name_or_path {name}: no such folder; this trains it: {shlex.join(command)}")


def check_student(
    name: str,
    config_name: str,
    tokenizer_name: str,
    max_seq_length: int,
    trains: str,
    labels: tuple[str, ...] | None,
) -> dict:
    """The config of the model that is trained or evaluated; InputError where it, or its tokenizer, is not to be had.

    `trains` is the model_type that is trained, "" where a model is only evaluated; `labels` as in check_head.
    """
    flag = "--model_name_or_path"
    config = check_model(name, flag, max_seq_length, packed_too=not trains)
    family = FAMILIES[family_of(config["model_type"])]
    if not trains:
        check_masks_defined(name, flag, config)
        check_head(f"{flag} {name}", config, labels)
    elif labels and CLASSIFIES in str(config.get("architectures")):
        named = label_names(f"{flag} {name}", config)
        if len(named) == len(labels):  # else training makes a new head
            check_order(f"{flag} {name}", named, labels)
    pruned = is_masked(config["model_type"]) and config.get("pruning_method")
    if trains and not is_masked(trains) and pruned:
        raise InputError(f"--model_type {trains}: {name} is masked; fold it first, with bertarize.py")
    if config_name:
        config = check_other_config(config_name, name, config, max_seq_length, trains)
    folder, flag = (tokenizer_name, "--tokenizer_name") if tokenizer_name else (name, "--model_name_or_path")
    found = any(os.path.isfile(os.path.join(folder, file)) for file in TOKENIZERS)
    if not found and (os.path.exists(folder) or folder.startswith((".", "/", "~"))):
        raise InputError(f"{flag} {folder}: no tokenizer, it has none of {', '.join(TOKENIZERS)}")
    tokens, embedded = 1 + max((vocabulary(folder) or {"": 0}).values()), family.size(config, "vocab_size")
    if tokens > embedded:
        raise InputError(f"{flag} {folder}: its tokenizer has {tokens} tokens, and {config_name or name} {embedded}")
    return config


def check_other_config(config_name: str, name: str, config: dict, max_seq_length: int, trains: str) -> dict:
    """The config of --config_name; InputError where a pruned model would be evaluated without its masks."""
    other = check_config(config_name, "--config_name", max_seq_length)
    theirs, ours = (family_of(x["model_type"]) for x in (other, config))
    if theirs != ours:
        raise InputError(f"--config_name {config_name}: of the family {theirs}, and {name} of {ours}")
    if not trains:
        check_masks_defined(config_name, "--config_name", other)
        method, given = (x.get("pruning_method") if is_masked(x["model_type"]) else None for x in (config, other))
        if method and given != method:
            raise InputError(f"--config_name {config_name}: its pruning_method is {given}, and {name} has {method}")
    return other


def check_teacher(
    name: str,
    kind: str,
    student_name: str,
    student: dict,
    tokenizer_name: str,
    max_seq_length: int,
    labels: tuple[str, ...] | None,
) -> None:
    """Refuses a teacher whose representations or logits would not be the student's.

    `kind` is the model_type it must have; `tokenizer_name` whose tokenizer both read; `labels` as in check_head.
    """
    flag = f"--teacher_name_or_path {name}"
    teacher = check_model(name, "--teacher_name_or_path", max_seq_length, kind)
    check_masks_defined(name, "--teacher_name_or_path", teacher)
    for key in ("hidden_size", "vocab_size"):
        theirs, ours = (FAMILIES[family_of(kind)].size(config, key) for config in (teacher, student))
        if theirs != ours:
            raise InputError(f"{flag}: {key} {theirs}, and {student_name} has {ours}")
    theirs, ours = vocabulary(name), vocabulary(tokenizer_name)
    if theirs and ours and theirs != ours:
        raise InputError(f"{flag}: its vocabulary is another than that of {tokenizer_name}")
    check_head(flag, teacher, labels)
