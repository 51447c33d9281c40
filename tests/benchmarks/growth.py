"""How cost grows with examples and snapshots, and the floor under a step: what the machine needs at least."""

from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch

from emmental.contrast.bank import Bank
from tests.benchmarks.case import Case, generated, unit_rows
from tests.benchmarks.timing import PEAK, Clock, peak

QQP = 363_846  # training examples
COUNTS = (10_000, 50_000, QQP)  # examples for --growth
MEASURED = 50_000  # above it the released way is extrapolated
WAYS = "released", "project"


class Stub:
    """A model whose forward costs nothing."""

    def __init__(self, hidden: int, device: torch.device):
        self.rows = unit_rows(4096, hidden, 0).to(device)

    def train(self, mode: bool = True) -> None:
        pass

    def encode(self, input_ids, **_) -> torch.Tensor:
        return self.rows[: len(input_ids)]


def bookkeeping(way, case: Case, count: int, gigabytes: float) -> dict[int, dict[str, float]]:
    """What `count` examples cost one way apart from any forward, by the number of snapshots.

    `step`: ms of a step's contrastive part; `column`: seconds to add a snapshot; `encoding`: seconds of a pass. A bank
    of more than `gigabytes` is left out.
    """
    hidden, last, clock = case.student.config.hidden_size, len(case.columns["snapshots"]), Clock(case.device)
    examples, column = generated(count, case.args.max_seq_length), unit_rows(count, hidden, 1)
    anchors = torch.randn(case.plan.batch_size, hidden, device=case.device, requires_grad=True)
    encoding = clock.time(way.encode, examples, Stub(hidden, case.device)) / 1e3
    found, single, snapshots = {}, way.grow(None, column), None

    def step(number: int) -> None:
        banks = [single, single, snapshots]
        way.contrastive(anchors, banks, np.arange(len(anchors)), examples.labels[0], number).backward()

    for number in range(1, last + 1):
        if 4e-9 * count * hidden * number > gigabytes:
            break
        new, start = column.clone(), clock.now()
        snapshots = way.grow(snapshots, new)
        added = (clock.now() - start) / 1e3
        if number in (1, 3, last):
            taken = median([clock.time(step, i) for i in range(7)][2:])
            found[number] = {"step": taken, "column": added, "encoding": encoding}
    return found


def extrapolated(measured: dict[int, dict], count: int) -> dict[int, dict[str, float]]:
    """The released way's bookkeeping for `count` examples, from that of the two largest sets measured.

    The gather costs the same, a column grows linearly, a pass with a linear and a quadratic part.
    """
    (n, fewer), (m, more) = sorted(measured.items())[-2:]
    found = {}
    for number, cell in more.items():
        p, q = fewer[number]["encoding"], cell["encoding"]
        encoding = count * (p / n + (q / m - p / n) / (m - n) * (count - n))
        found[number] = cell | {"column": cell["column"] * count / m, "encoding": encoding}
    return found


def growth(ways: dict, case: Case, gigabytes: float) -> list[dict]:
    """Both ways' bookkeeping by examples and snapshots, the released way's extrapolated above MEASURED examples."""
    cells, measured = [], {}
    for count in COUNTS:
        if count <= MEASURED:
            measured[count] = released = bookkeeping(ways["released"], case, count, gigabytes)
        else:
            released = extrapolated(measured, count)
        project = bookkeeping(ways["project"], case, count, gigabytes)
        for number in project.keys() & released.keys():
            cell = {"examples": count, "snapshots": number, "extrapolated": count > MEASURED}
            cells.append(cell | {"released": released[number], "project": project[number]})
    return sorted(cells, key=lambda cell: (cell["examples"], cell["snapshots"]))


def last_epoch(step: dict, encode: dict, cell: dict, batch: int) -> dict:
    """Hours of a run's last epoch by part, for both ways; `cell` is the growth's."""
    hours: dict = {}
    for name in WAYS:
        steps = -(-cell["examples"] // batch)
        parts = {part: ms * steps / 3.6e6 for part, ms in step[name].items() if part not in ("total", PEAK)}
        parts["contrastive"] = cell[name]["step"] * steps / 3.6e6
        # the project makes its masks once in a pass, whatever the number of examples
        forward = encode[name]["student forward"] + (encode[name]["masks"] if name == "released" else 0)
        parts["encoding, forward"] = forward * cell["examples"] / 1e3 / 3.6e6
        parts["encoding, bookkeeping"] = (cell[name]["encoding"] + cell[name]["column"]) / 3.6e3
        hours[name] = {"total": sum(parts.values())} | parts
    return hours | {"ratio": hours["released"]["total"] / hours["project"]["total"]}


def bank_memory(folder: Path, count: int = 20_000, hidden: int = 768, columns: int = 10) -> dict:
    """Megabytes of a bank in host memory, and the peak beyond them while one more column of float32 is added."""
    found, host = {}, torch.device("cpu")
    for name in ("released, float32", "project, float32", "project, float16"):
        column, dtype = unit_rows(count, hidden, 0), getattr(torch, name.split()[1])
        if name.startswith("released"):
            bank = column[:, None].repeat(1, columns, 1)
            add = partial(torch.cat, [bank, column[:, None]], dim=1)
        else:
            bank = Bank(folder, host, dtype)
            for _ in range(columns):
                bank.add("", column.clone(), write=False)
            add = partial(bank.add, "column.safetensors", column, write=True)
        size = dtype.itemsize * hidden
        stored, at_qqp = size * count * columns / 1e6, size * QQP * (columns + 1) / 1e9
        found[name] = {"MB": stored, "adding MB": peak(add, host), "11 of QQP GB": at_qqp}
    return found


def machine_rates(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """The machine's matrix rate in operations a second, and its copy bandwidth in bytes read and written a second."""
    clock, size = Clock(device), 8192 if device.type == "cuda" else 2048
    square, block = torch.randn(size, size, device=device, dtype=dtype), torch.zeros(1 << 26, device=device)
    product, copied = torch.empty_like(square), torch.empty_like(block)
    multiply = min(clock.time(lambda: torch.mm(square, square, out=product)) for _ in range(7))
    copy = min(clock.time(copied.copy_, block) for _ in range(7))
    return 2e3 * size**3 / multiply, 2e3 * 4 * len(block) / copy


def floor(case: Case, rate: float, bandwidth: float) -> dict[str, float]:
    """Milliseconds that the parts of a step need at least: arithmetic at `rate` and compulsory bytes at `bandwidth`.

    Bytes are those of float32 tensors that pass through memory once: scores, masks, weights, gradients and moments;
    activations, written by the forward and read by the backward; bank rows.
    """
    config, batch, snapshots = case.student.config, case.plan.batch_size, len(case.columns["snapshots"])
    lengths = [case.examples.lengths[case.plan.micro_batches(case.first_step + i)[0]] for i in range(20)]
    tokens, squares = np.mean([x.sum() for x in lengths]), np.mean([(x**2).sum() for x in lengths])
    hidden, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    weights = layers * (4 * hidden**2 + 2 * hidden * inner)
    # of the last layer only the first token's output is asked for: all tokens' keys and values, the rest for one
    unneeded = (2 * hidden**2 + 2 * hidden * inner) * (tokens - batch)
    forward = 2 * (weights * tokens - unneeded) + 4 * hidden * ((layers - 1) * squares + tokens)
    backward = 2 * forward - 6 * hidden**2 * tokens  # embeddings are frozen: no gradient below the first layer
    activations = 4 * tokens * layers * (8 * hidden + 2 * inner)
    keys = 3 * case.args.extra_examples + batch * (2 + snapshots)
    work = {  # operations, bytes
        "masks": (0, 8 * weights),
        "student forward": (forward, 12 * weights + activations),
        "backward": (backward, 20 * weights + activations),
        "contrastive": (6 * batch * keys * hidden, 8 * keys * hidden),
        "clip, optimizer": (0, 2 * weights * (4 + 28)),
    }
    return {part: float(1e3 * (operations / rate + size / bandwidth)) for part, (operations, size) in work.items()}
