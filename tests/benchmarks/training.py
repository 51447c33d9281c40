"""Times a training step and an encoding pass, the released way and this project's, side by side: a program, no test.

    python -m tests.benchmarks.training --model DIR --data_dir glue_data/QQP --growth --floor --json speed.json

Both ways (released.py, project.py) work on one case (case.py); they first have to give the same losses, gradient norms
and encodings on the same batches.
"""

import argparse
import json
import platform
import random
import shlex
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import transformers

from tests.benchmarks import growth
from tests.benchmarks.agreement import differences, effects
from tests.benchmarks.case import SIZES, Case, build, subset
from tests.benchmarks.project import Project
from tests.benchmarks.released import Released
from tests.benchmarks.report import show, show_differences, show_growth, table
from tests.benchmarks.sparse import cpu
from tests.benchmarks.timing import PEAK, compare

WARM, PASSES = 2, 2  # steps before the first one timed, of encoding passes one; encoding passes timed


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data_dir", type=Path, help="QQP's TSV files; default: random tokens in its lengths")
    parser.add_argument("--examples", type=int, default=20_000, help="how many to generate without --data_dir")
    parser.add_argument("--model", type=Path, help="folder of a BERT; default: random weights of --size")
    parser.add_argument("--size", choices=SIZES, default="mini", help="mini is MiniLM-L6's shape")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=128, help="the released way pads every text to it")
    parser.add_argument("--extra", type=int, default=4096, help="bank rows drawn beside the batch's own")
    parser.add_argument("--snapshots", type=int, default=9)
    parser.add_argument("--steps", type=int, default=10, help="steps timed whole, and as many by part")
    parser.add_argument(
        "--encode", type=int, default=4096, help="examples of an encoding pass; the released way's has a sixteenth"
    )
    parser.add_argument("--attention", choices=("eager", "sdpa"), default="eager", help="the released way's")
    parser.add_argument("--bf16", action="store_true", help="bfloat16 autocast, the project's way only")
    parser.add_argument("--tf32", action="store_true", help="TF32 for the project's way; the released always has it")
    parser.add_argument("--effects", action="store_true", help="also what the flags for speed change; TF32 is emulated")
    parser.add_argument("--growth", action="store_true", help="also how cost grows with examples and snapshots")
    parser.add_argument("--gigabytes", type=float, default=6, help="the largest bank that --growth may build")
    parser.add_argument("--floor", action="store_true", help="also how far each part is above the machine's floor")
    parser.add_argument("--json", type=Path, help="write all figures to this file too")
    options = parser.parse_args(argv)
    if options.data_dir and not options.model:
        parser.error("--data_dir needs --model, whose tokenizer reads it")
    if not options.data_dir and options.extra > options.examples:
        parser.error(f"--extra {options.extra}: more rows than --examples {options.examples}")
    return options


def measure(options: argparse.Namespace, case: Case) -> dict:
    """All figures, printed as they come."""
    device, dtype = case.device, torch.bfloat16 if options.bf16 else None
    # the project's batches are of like length only in a set that makes several; the released way's are all the same
    counts = {"released": max(options.batch, options.encode // 16), "project": options.encode}
    encoded = {name: subset(case.examples, np.arange(count) % len(case.examples)) for name, count in counts.items()}
    some = subset(case.examples, np.arange(64))
    results: dict = {"differences": differences(case, options.attention, some)}
    show_differences("largest differences", results["differences"])
    for name, difference in results["differences"].items():
        if not difference < 1e-3:
            raise SystemExit(f"the two ways differ: {name} by {difference:.1e}")
    if options.effects:
        results["effects"] = effects(case, options.attention, some)
        for flag, found in results["effects"].items():
            show_differences(f"with {flag}", found)
    steps = 2 * options.steps + WARM + 1
    ways = {"released": Released(case, options.attention), "project": Project(case, steps, dtype)}
    step = compare(ways, lambda way, i: way.step(case.first_step + i), options.steps, WARM, device)
    show("Training step, ms", step)
    encode = compare(ways, lambda way, _: way.encode(encoded[way.name]), PASSES, 1, device)
    for name, count in counts.items():
        encode[name] = {part: x if part == PEAK else 1e3 * x / count for part, x in encode[name].items()}
    encode["ratio"] = encode["released"]["total"] / encode["project"]["total"]
    show("Encoding 1,000 examples, ms", encode)
    results |= {"step": step, "encode": encode}
    if options.floor:
        rate, bandwidth = growth.machine_rates(device, dtype or torch.float32)
        parts = {
            part: (minimum, step["project"][part]) for part, minimum in growth.floor(case, rate, bandwidth).items()
        }
        parts = {part: {"floor": x, "measured": y, "times": y / x} for part, (x, y) in parts.items()}
        results["floor"] = {"rate": rate, "bandwidth": bandwidth, "parts": parts}
        title = f"At {rate / 1e9:.0f} G operations/s, {bandwidth / 1e9:.1f} GB/s"
        table(title, ["floor", "measured", "times"], ((part, *row.values()) for part, row in parts.items()))
    if options.growth:
        cells = growth.growth(ways, case, options.gigabytes)
        results |= {"growth": cells, "banks": growth.bank_memory(Path(case.args.output_dir))}
        if cells[-1]["examples"] == growth.QQP:
            results["epoch"] = growth.last_epoch(step, encode, cells[-1], options.batch)
        show_growth(results)
    return results


def main(argv: list[str] | None = None) -> dict:
    options = parse(argv)
    transformers.logging.set_verbosity_error()
    random.seed(0)
    device = torch.device(options.device)
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu()
    command = shlex.join(["python", "-m", "tests.benchmarks.training", *(sys.argv[1:] if argv is None else argv)])
    versions = f"python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}"
    about = {"machine": f"{machine}, {torch.get_num_threads()} threads", "versions": versions, "command": command}
    with TemporaryDirectory() as folder:
        case = build(options, Path(folder))
        lengths = case.examples.lengths
        print(*about.values(), f"{len(lengths)} examples, {lengths.mean():.1f} tokens on average", sep="\n", flush=True)
        results = about | measure(options, case)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")
    return results


if __name__ == "__main__":
    main()
