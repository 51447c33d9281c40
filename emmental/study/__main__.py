"""A study of pruning methods: `python -m emmental.study GRID --output_dir DIR` runs a grid's missing cells.

Teachers first, then floors and pruned models, each by the scripts that users run. A finished cell is one JSON line in
DIR/GRID.jsonl; --report makes DIR/GRID.md and DIR/GRID.png of these lines alone.
"""

import fcntl
import os
from argparse import Namespace
from pathlib import Path

from emmental.model.validation import check_config
from emmental.study import data, report, results
from emmental.study.cells import Places, grid_cells
from emmental.study.grids import GRIDS
from emmental.study.runner import run_cells
from emmental.utils.errors import InputError, run
from emmental.utils.flags import Parser


def flags() -> Namespace:
    parser = Parser(prog="python -m emmental.study", description=__doc__, allow_abbrev=False)
    parser.add_argument("grid", choices=tuple(GRIDS))
    parser.add_argument("--output_dir", required=True, help="cells, lines and report; several runners may share it")
    parser.add_argument(
        "--data_dir", default="", help="holds QQP, SST-2, MNLI as GLUE's archive does, and SQuAD's files"
    )
    parser.add_argument("--model", default="bert-base-uncased", help="a BERT's folder, or its name on the Hub")
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time: one thread, or one GPU, each")
    about = "print one command for each missing cell and run none; a teacher's has to end before its students', "
    about += "and the grid's next run adds the lines of what was run"
    parser.add_argument("--list", action="store_true", help=about)
    parser.add_argument("--report", action="store_true", help="make table and picture, and run nothing")
    args = parser.parse_args()
    if args.jobs < 1:
        raise InputError(f"--jobs {args.jobs}: at least 1")
    args.output_dir, args.data_dir, args.model = map(spelled_alike, (args.output_dir, args.data_dir, args.model))
    if os.path.isdir(args.model) and (kind := check_config(args.model, "--model", 0)["model_type"]) != "bert":
        raise InputError(f"--model {args.model}: a {kind}; the study is of BERT")
    return args


def spelled_alike(path: str) -> str:
    """A path as seen from here, however it was given: a cell goes on with the command that it was started with."""
    return os.path.relpath(path) if os.path.isabs(path) or os.path.isdir(path) else path


def demo_places(output: Path) -> Places:
    """Data and model of the demo, made once."""
    import random

    from emmental.demo.__main__ import pretrain
    from emmental.demo.data import write_pairs

    folder = output / "demo"
    if not (folder / "model" / "config.json").exists():
        together, _ = write_pairs(folder / "data" / "QQP", random.Random(42))
        pretrain(folder / "model", together, 42)
    return Places(output, str(folder / "data"), str(folder / "model"))


def main() -> None:
    args = flags()
    output = Path(args.output_dir)
    path = output / f"{args.grid}.jsonl"
    if args.report:
        report.write(path)
        return
    output.mkdir(parents=True, exist_ok=True)
    own = args.grid == "demo" and not args.data_dir
    with (output / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one runner makes the data, the others wait
        places = demo_places(output) if own else Places(output, args.data_dir, args.model)
        for experiment in GRIDS[args.grid]:
            data.write_subset(experiment, places)
    cells = grid_cells(GRIDS[args.grid], places)
    if args.list:
        lines = results.latest(results.read(path))
        missing = [cell for cell in cells if lines.get(cell.name, {}).get("status") != "finished"]
        print(*(cell.command for cell in missing), sep="\n")
        return
    if failed := run_cells(cells, places, path, args.jobs):
        raise InputError(f"{failed} cells failed; the same command tries them again")


if __name__ == "__main__":
    run(main)
