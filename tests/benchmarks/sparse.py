"""Time `load_sparse` against transformers' dense model on this CPU: a program, not a test.

    python -m tests.benchmarks.sparse --batch 1 --length 128 --threads 1 --density 0.1 0.03 --json speed.json

The weights are random, and so is what is pruned, which is the worst case: pruning by training empties whole rows. Each
cell first checks that both give the same logits, then runs them in turn and compares the medians.
"""

import argparse
import json
import platform
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
import transformers
from transformers import BertConfig, BertForSequenceClassification

from emmental.export.sparse_bert import load_sparse
from emmental.export.sparse_format import save_sparse

SIZES = {
    "base": {},
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


def seconds(model: torch.nn.Module, inputs: dict) -> float:
    start = time.perf_counter()
    model(**inputs)
    return time.perf_counter() - start


def compare(dense, sparse, batch: int, length: int, budget: float) -> dict:
    """Median seconds of both on one full batch, in at least 3 and at most 15 rounds within `budget` seconds."""
    ids = torch.randint(1, dense.config.vocab_size, (batch, length))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    difference = float((dense(**inputs).logits - sparse(**inputs).logits).abs().max())
    if not difference <= 1e-4:
        raise SystemExit(f"batch {batch}, length {length}: the logits differ by {difference:.1e}")
    times, end = [], time.perf_counter() + budget
    while len(times) < 3 or (len(times) < 15 and time.perf_counter() < end):
        times.append((seconds(dense, inputs), seconds(sparse, inputs)))
    slow, fast = (median(column) for column in zip(*times, strict=True))
    return {"dense": slow, "sparse": fast, "speedup": slow / fast, "rounds": len(times), "difference": difference}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--density", type=float, nargs="+", default=[0.5, 0.1, 0.03], help="fraction of weights kept")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--length", type=int, nargs="+", default=[16, 128, 384], help="tokens of each row")
    parser.add_argument("--budget", type=float, default=10.0, help="seconds for each cell, beyond 3 rounds")
    parser.add_argument("--json", type=Path, help="write the cells to this file too")
    options = parser.parse_args()

    machine = (
        f"{cpu()}; torch {torch.__version__}, transformers {transformers.__version__}; BERT {options.size}, float32"
    )
    print(machine)
    print("density  threads  batch  length   dense ms  sparse ms  speedup  sparse matrices")
    cells = []
    for density in options.density:
        dense = pruned_bert(options.size, density)
        with TemporaryDirectory() as directory, torch.inference_mode():
            save_sparse(dense.state_dict(), dense.config.to_dict(), directory)
            sparse = load_sparse(directory)
            kinds = list(sparse.chosen.values())
            for threads in options.threads:
                torch.set_num_threads(threads)
                for batch in options.batch:
                    for length in options.length:
                        cell = {"density": density, "threads": threads, "batch": batch, "length": length}
                        cell |= compare(dense, sparse, batch, length, options.budget)
                        cells.append(cell | {"sparse_matrices": kinds.count("sparse"), "matrices": len(kinds)})
                        print(
                            f"{density:7.2f}  {threads:7}  {batch:5}  {length:6}  {1e3 * cell['dense']:9.1f}"
                            f"  {1e3 * cell['sparse']:9.1f}  {cell['speedup']:6.2f}x"
                            f"  {kinds.count('sparse')} of {len(kinds)}",
                            flush=True,
                        )
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, "cells": cells}, indent=2) + "\n")


if __name__ == "__main__":
    main()
