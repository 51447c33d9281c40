"""Folds the masks of a saved masked model into its weights: a clean folder that plain transformers loads.

`--format sparse` stores the pruned matrices in packed form, for `emmental.load_sparse`; `--compact` removes
feed-forward neurons that have lost all input or all output weights.
"""

import shutil
import sys
from argparse import Namespace
from pathlib import Path

from emmental.model.families import FAMILIES
from emmental.model.validation import PACKED, TOKENIZER_FILES, check_masked, read_config
from emmental.pruning.methods import METHODS
from emmental.utils.errors import InputError, run
from emmental.utils.flags import Parser

WRITTEN = {"README.md", "config.json", "model.safetensors", PACKED, *TOKENIZER_FILES}


def flags() -> Namespace:
    parser = Parser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--pruning_method", choices=tuple(METHODS), help="default: that of the folder's config")
    parser.add_argument("--threshold", type=float, help="default: that of the folder's config")
    parser.add_argument("--model_name_or_path", required=True, help="the folder of a saved masked model")
    parser.add_argument("--target_model_path", help="where to write (default: bertarized_<folder> beside it)")
    parser.add_argument("--format", choices=("dense", "sparse"), default="dense")
    parser.add_argument("--dtype", choices=("float32", "float16"), default="float32", help="of the stored values")
    parser.add_argument("--compact", action="store_true", help="remove neurons without input or output; packed")
    parser.add_argument("--overwrite", action="store_true", help="replace a target folder of an earlier call")
    return parser.parse_args()


def check_replaceable(folder: Path) -> None:
    """Refuses to remove anything but a folder that holds nothing but a plain BERT as this script writes it."""
    where = f"--target_model_path {folder}"
    if not folder.is_dir():
        raise InputError(f"{where}: is not a folder")
    written = WRITTEN | {f"{name}.partial" for name in WRITTEN}  # where an earlier call was killed
    foreign = sorted(path.name for path in folder.iterdir() if path.name not in written or path.is_dir())
    if not foreign and (folder / "config.json").exists():
        kind = read_config(str(folder), "--target_model_path").get("model_type")
        foreign = [] if kind in FAMILIES else [f"a model of type {kind}"]
    if foreign:
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise InputError(f"{where}: holds {foreign[0]}{more}, which bertarize.py does not write; it is not replaced")


def main() -> None:
    args = flags()
    source = Path(args.model_name_or_path)
    other_masks = check_masked(args.model_name_or_path, "--model_name_or_path", args.pruning_method, args.threshold)
    target = Path(args.target_model_path or source.resolve().parent / f"bertarized_{source.resolve().name}")
    if target.resolve() == source.resolve() or target.resolve() in source.resolve().parents:
        raise InputError(f"--target_model_path {target}: is or holds the model that is read")
    if target.exists() and not args.overwrite:
        raise InputError(f"--target_model_path {target}: exists; --overwrite replaces it")
    temporary = target.with_name(target.name + ".partial")
    for folder in (target, temporary):  # the second where an earlier call was killed
        if folder.exists():
            check_replaceable(folder)

    from emmental.export.fold import save_folded
    from emmental.export.model_card import write_folded_card
    from emmental.model.loading import load_masked
    from emmental.pruning.counting import count

    model = load_masked(args.model_name_or_path, args.pruning_method, args.threshold)
    others = count(model) if other_masks else None
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        report = save_folded(model, source, temporary, args.format, args.dtype, args.compact)
        write_folded_card(source, temporary, target.name, sys.argv, others)
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
    except OSError as error:
        raise InputError(f"--target_model_path {target}: {error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    print(report)
    print(f"{'packed' if args.format == 'sparse' else 'folded'} into {target}")


if __name__ == "__main__":
    run(main)
