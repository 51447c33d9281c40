"""Time `load_sparse` on this CPU against transformers' dense model and other engines: a program, not a test.

    python -m tests.benchmarks.sparse --batch 1 8 --length 128 --threads 1 --density 0.1 0.03 --json speed.json

The weights are random, and so is what is pruned, which is the worst case: pruning by training empties whole rows. Each
cell first checks that both give the same logits, then runs all ways in turn and compares their medians.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from itertools import product
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
from transformers import BertConfig, BertForSequenceClassification

from emmental.export.sparse_bert import load_sparse
from emmental.export.sparse_format import save_sparse
from tests.benchmarks import engines

SIZES = {
    "base": {},
    "tiny": {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48},
    "mini": {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024},
}


def pruned_bert(size: str, density: float) -> BertForSequenceClassification:
    """A random BERT whose encoder matrices keep each weight with probability `density`."""
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(architectures=["BertForSequenceClassification"], **SIZES[size]))
    for weight in model.bert.encoder.parameters():
        if weight.dim() == 2:
            weight.data *= torch.rand_like(weight) < density
    return model.eval()


def cpu() -> str:
    """The processor's name, as Linux gives it."""
    info = Path("/proc/cpuinfo")
    names = [line.split(": ")[1] for line in info.read_text().splitlines() if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.processor()


def compare(ways: dict[str, Callable], shape: tuple[int, int], budget: float, clock: Callable) -> dict:
    """Median and least seconds of each way on one full batch of this shape, in 3 to 15 rounds within `budget` seconds.

    `difference` is the largest one from the dense logits; where that of `sparse` is not small, the program ends.
    """
    ids = torch.randint(1, 1000, shape)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    logits = {name: run(inputs) for name, run in ways.items()}
    differences = {name: float((value - logits["dense"]).abs().max()) for name, value in logits.items()}
    if not differences["sparse"] <= 1e-4:
        raise SystemExit(f"batch {shape[0]}, length {shape[1]}: the logits differ by {differences['sparse']:.1e}")
    rounds, end = [], time.perf_counter() + budget
    while len(rounds) < 3 or (len(rounds) < 15 and time.perf_counter() < end):
        rounds.append([])
        for run in ways.values():
            start = clock()
            run(inputs)
            rounds[-1].append(clock() - start)
    times = dict(zip(ways, zip(*rounds, strict=True), strict=True))
    return {
        "median": {name: median(column) for name, column in times.items()},
        "least": {name: min(column) for name, column in times.items()},
        "difference": differences,
        "rounds": len(rounds),
    }


def show(cell: dict) -> None:
    """Print the medians in ms, and how many times that of `sparse` each is."""
    ours = cell["median"]["sparse"]
    times = (f"{1e3 * value:8.1f} {value / ours:5.2f}x" for value in cell["median"].values())
    shape = f"{cell['density']:7.2f}  {cell['threads']:7}  {cell['batch']:5}  {cell['length']:6}"
    print(shape, *times, f" {cell['sparse_matrices']} of {cell['matrices']}", flush=True)


def measure(options: argparse.Namespace, density: float, with_engines: bool) -> list[dict]:
    """One cell for each number of threads, batch size and length."""
    clock, cells = time.process_time if options.cpu_time else time.perf_counter, []
    dense = pruned_bert(options.size, density)
    with TemporaryDirectory() as directory, torch.inference_mode():
        save_sparse(dense.state_dict(), dense.config.to_dict(), directory)
        sparse = load_sparse(directory)
        kinds = list(sparse.chosen.values())
        if with_engines:
            engines.export(dense, Path(directory))
        for threads in options.threads:
            torch.set_num_threads(threads)
            ways = {
                "sparse": lambda inputs: sparse(**inputs).logits,
                "dense": lambda inputs: dense(**inputs).logits,
                **(engines.load(Path(directory), threads) if with_engines else {}),
            }
            for batch, length in product(options.batch, options.length):
                cell = {"density": density, "threads": threads, "batch": batch, "length": length}
                cell |= {"sparse_matrices": kinds.count("sparse"), "matrices": len(kinds)}
                cells.append(cell | compare(ways, (batch, length), options.budget, clock))
                show(cells[-1])
    return cells


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--density", type=float, nargs="+", default=[0.5, 0.1, 0.03], help="fraction of weights kept")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--length", type=int, nargs="+", default=[16, 128, 384], help="tokens of each row")
    parser.add_argument("--budget", type=float, default=10.0, help="seconds for each cell, beyond 3 rounds")
    parser.add_argument("--cpu_time", action="store_true", help="count processor time, for a busy machine; one thread")
    parser.add_argument("--json", type=Path, help="write the cells to this file too")
    options = parser.parse_args(arguments)
    if options.cpu_time and options.threads != [1]:
        parser.error("--cpu_time: processor time is the wall's for --threads 1 alone")

    absent = engines.missing()
    if absent:
        print(f"ONNX Runtime and OpenVINO are skipped, for {', '.join(absent)} is not installed: {engines.INSTALL}")
    packages = ["torch", "transformers", *([] if absent else engines.PACKAGES)]
    machine = f"{cpu()}; {', '.join(f'{name} {version(name)}' for name in packages)}; BERT {options.size}"
    print(machine)
    names = ["sparse", "dense", *([] if absent else engines.ENGINES)]
    print("density  threads  batch  length", *(f"{name + ' ms':>15}" for name in names), " sparse matrices", flush=True)
    cells = [cell for density in options.density for cell in measure(options, density, not absent)]
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, "cells": cells}, indent=2) + "\n")


if __name__ == "__main__":
    main()
