"""One pass over a set in which order does not matter: filling a bank, the teacher's logits, evaluation.

Examples of like length go together, the longest first, so that little is padded and an out-of-memory error
shows in the first batch. Each result lands at its example's own index, whichever process computed it.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch.nn.functional import normalize, pad

from emmental.data.examples import Examples
from emmental.model.masked_classes import PADDING_LOGIT
from emmental.model.masked_model import MaskedModel
from emmental.utils import distributed
from emmental.utils.precision import Precision
from emmental.utils.progress import progress
from emmental.utils.transfers import start_to_host

# Tokens in a batch: enough to keep a GPU busy, with 0.8 GB of activations at BERT-base size; a CPU wants them cached.
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
def map_examples(
    compute: Callable[[dict[str, torch.Tensor]], tuple[torch.Tensor, ...]],
    examples: Examples,
    *,
    device: torch.device,
    title: str,
) -> list[torch.Tensor]:
    """Runs `compute` on padded inputs; returns its results, each (batch, ...) -> (examples, ...), on the CPU.

    Every row of a result must have the same shape in every batch.
    """
    batches = list(batches_by_length(examples.padded_lengths, TOKENS[device.type]))
    batches = batches[distributed.rank() :: distributed.world_size()]
    results: list[torch.Tensor] = []

    def collect(index: np.ndarray, computed: Callable[[], list[torch.Tensor]]) -> None:
        for number, rows in enumerate(computed()):
            if number == len(results):
                results.append(torch.zeros(len(examples), *rows.shape[1:], dtype=rows.dtype))
            if batches:
                results[number][torch.from_numpy(index)] = rows
        bar.update(len(index) * distributed.world_size())

    pending = None
    with progress(len(examples), title, "ex", leave=False, quiet=distributed.rank() > 0) as bar:
        # a process without a batch of its own runs one example, to know the shapes of what the others send it
        for index in batches or [np.array([0])]:
            computed = start_to_host(compute(examples.inputs(index)))
            if pending:
                collect(*pending)  # only now, with the next batch queued, is a device waited for
            pending = index, computed
        collect(*pending)
    return [distributed.all_sum(rows, device) for rows in results]


def predict(
    model: MaskedModel, examples: Examples, precision: Precision, title: str, *, with_representation: bool = False
) -> list[torch.Tensor]:
    """A model's logits of a set, each (examples, classes), and last, if asked for, representations as banks hold them.

    In eval mode, in float32 and on the CPU. Spans are as wide as the longest padded window.
    """
    widest = int(examples.padded_lengths.max())

    def compute(inputs):
        with precision.autocast():
            outputs = model(**inputs, with_representation=with_representation)
        spans = len(outputs.classifications) > 1
        missing = widest - inputs["input_ids"].shape[1] if spans else 0
        logits = [pad(x.float(), (0, missing), value=PADDING_LOGIT) for x in outputs.classifications]
        return (*logits, normalize(outputs.representation.float(), dim=-1)) if with_representation else tuple(logits)

    model.eval()
    return map_examples(compute, examples, device=precision.device, title=title)
