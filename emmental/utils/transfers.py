"""Copies between host and device for which neither waits.

From pageable memory, CUDA copies only once all that was queued before has run, and the host waits for it. From pinned
memory the copy is queued like a kernel; torch reuses a pinned buffer only when the copies from it are done.
"""

from collections.abc import Callable, Sequence

import torch

PINNED = torch.backends.cuda.is_built()  # whether this torch can pin memory


def to_device(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`x` on `device`."""
    if PINNED and device.type == "cuda" and x.device.type == "cpu":
        x = x.pin_memory()
    return x.to(device, non_blocking=True)


def rows_to_device(table: torch.Tensor, index: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The rows `index` (batch,) of `table` (examples, ...), both in host memory: (batch, ...) on `device`."""
    rows = torch.empty(len(index), *table.shape[1:], dtype=table.dtype, pin_memory=PINNED and device.type == "cuda")
    return torch.index_select(table, 0, index, out=rows).to(device, non_blocking=True)


def start_to_host(tensors: Sequence[torch.Tensor]) -> Callable[[], list[torch.Tensor]]:
    """Starts copying `tensors` of one device; returns a function that waits for these copies alone and returns them."""
    if not PINNED or tensors[0].device.type == "cpu":
        return lambda: [x.to("cpu") for x in tensors]
    copies = [torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x, non_blocking=True) for x in tensors]
    copied = torch.cuda.Event()
    copied.record()

    def wait() -> list[torch.Tensor]:
        copied.synchronize()
        return copies

    return wait
