"""One pass over a set in which order does not matter: filling a bank, the teacher's logits, evaluation.

Examples of like length go together, the longest first, so that little is padded and memory that does not suffice
shows at once. Each result lands at its example's own index, whichever process computed it.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from tqdm import tqdm

from emmental.data.examples import Examples
from emmental.utils import distributed

# Tokens in a batch: enough to keep a GPU busy, 0.3 GB of activations at BERT-base size; a CPU likes them in its cache.
TOKENS = {"cuda": 16384, "cpu": 2048}


def batches_by_length(lengths: np.ndarray, tokens: int) -> Iterator[np.ndarray]:
    """Cuts the examples into batches of about `tokens` tokens, padding counted; the longest come first."""
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        count = max(1, tokens // int(lengths[order[start]]))
        yield order[start : start + count]
        start += count


@torch.no_grad()
def sweep(
    compute: Callable[[dict[str, torch.Tensor]], tuple[torch.Tensor, ...]],
    examples: Examples,
    *,
    device: torch.device,
    title: str,
    length: int | None = None,
    quiet: bool = False,
) -> list[torch.Tensor]:
    """Runs `compute` on padded inputs; returns its results, each (batch, ...) -> (examples, ...), on the CPU.

    `length` pads every batch to it. Every row of a result must have the same shape in every batch.
    """
    lengths = examples.lengths if length is None else np.full(len(examples), length)
    batches = list(batches_by_length(lengths, TOKENS[device.type]))[distributed.rank() :: distributed.world()]
    results: list[torch.Tensor] = []
    bar = tqdm(total=len(examples), desc=title, unit="ex", leave=False, disable=quiet or distributed.rank() > 0)

    def collect(index: np.ndarray, computed: tuple[torch.Tensor, ...]) -> None:
        for number, rows in enumerate(computed):
            if number == len(results):
                results.append(torch.zeros(len(examples), *rows.shape[1:], dtype=rows.dtype))
            if batches:
                results[number][torch.from_numpy(index)] = rows.to("cpu")
        bar.update(len(index) * distributed.world())

    before = None
    for index in batches or [np.array([0])]:
        computed = compute(examples.inputs(index, length))
        if before:
            collect(*before)  # only now, with the next batch at work, is a device waited for
        before = index, computed
    collect(*before)
    bar.close()
    return [distributed.total(rows, device) for rows in results]
