"""Counts the sparsity of a saved masked model: a table by matrix, then what remains by both definitions.

The released definition counts biases and LayerNorms of the encoder as kept, and in the total; the other one counts the
masked matrices alone.
"""

from argparse import Namespace
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from emmental.model.validation import check_masked
from emmental.pruning.methods import METHODS
from emmental.utils.errors import InputError, run
from emmental.utils.flags import Parser


def flags() -> Namespace:
    parser = Parser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--pruning_method", choices=tuple(METHODS), help="default: that of the folder's config")
    parser.add_argument("--threshold", type=float, help="default: that of the folder's config")
    parser.add_argument("--serialization_dir", required=True, help="the folder of a saved masked model")
    parser.add_argument("--json", metavar="FILE", help="write the counts as JSON as well")
    parser.add_argument("--plot", metavar="FILE.png", help="draw what remains, by layer and matrix")
    return parser.parse_args()


def save(flag: str, file: str | None, write: Callable[[Path], None]) -> None:
    """Writes what a flag asks for to the file that it names, if any."""
    if file:
        try:
            Path(file).parent.mkdir(parents=True, exist_ok=True)
            write(Path(file))
        except (OSError, ValueError) as error:
            raise InputError(f"{flag} {file}: {error}") from None


def main() -> None:
    args = flags()
    check_masked(args.serialization_dir, "--serialization_dir", args.pruning_method, args.threshold)
    if args.plot and find_spec("matplotlib") is None:
        raise InputError("--plot needs matplotlib: pip install matplotlib")

    from emmental.model.loading import load_masked
    from emmental.pruning import counting
    from emmental.utils.files import write_json

    counted = counting.count(load_masked(args.serialization_dir, args.pruning_method, args.threshold))
    print(counting.table(counted))
    save("--json", args.json, partial(write_json, counting.as_json(counted)))
    save("--plot", args.plot, lambda file: counting.heat_map(counted).savefig(file, dpi=150))


if __name__ == "__main__":
    run(main)
