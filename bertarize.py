"""Folds the masks of a saved masked BERT into its weights: a clean folder that plain transformers loads.

`--format sparse` stores the pruned matrices in packed form, for `emmental.load_sparse`; `--compact` removes
feed-forward neurons that do nothing.
"""

import shutil
from argparse import Namespace
from pathlib import Path

from emmental.arguments import Parser
from emmental.model.validation import check_masked
from emmental.pruning.methods import METHODS
from emmental.utils.errors import InputError, run


def flags() -> Namespace:
    parser = Parser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--pruning_method", choices=tuple(METHODS), help="default: that of the folder's config")
    parser.add_argument("--threshold", type=float, help="default: that of the folder's config")
    parser.add_argument("--model_name_or_path", required=True, help="the folder of a saved masked BERT")
    parser.add_argument("--target_model_path", help="where to write (default: bertarized_<folder> beside it)")
    parser.add_argument("--format", choices=("dense", "sparse"), default="dense")
    parser.add_argument("--dtype", choices=("float32", "float16"), default="float32", help="of the stored values")
    parser.add_argument("--compact", action="store_true", help="remove feed-forward neurons that do nothing")
    parser.add_argument("--overwrite", action="store_true", help="replace the target folder if it is there")
    return parser.parse_args()


def main() -> None:
    args = flags()
    source = Path(args.model_name_or_path)
    check_masked(args.model_name_or_path, "--model_name_or_path", args.pruning_method, args.threshold)
    target = Path(args.target_model_path or source.resolve().parent / f"bertarized_{source.resolve().name}")
    if target.resolve() == source.resolve() or target.resolve() in source.resolve().parents:
        raise InputError(f"--target_model_path {target}: is or holds the model that is read")
    if target.exists() and not args.overwrite:
        raise InputError(f"--target_model_path {target}: exists; --overwrite replaces it")

    from emmental.export.fold import load_masked, save_folded

    model = load_masked(args.model_name_or_path, args.pruning_method, args.threshold)
    beside = target.with_name(target.name + ".partial")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        report = save_folded(model, source, beside, args.format, args.dtype, args.compact)
        shutil.rmtree(target, ignore_errors=True)
        beside.rename(target)
    except OSError as error:
        raise InputError(f"--target_model_path {target}: {error}") from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    print(report)
    print(f"folded into {target}")


if __name__ == "__main__":
    run(main)
