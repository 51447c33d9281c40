"""The device of a process, its rank, its share of a batch, and the whole batch from all shares.

Started by torchrun, each process has its own device and computes its share of every global batch. Losses are those of
the global batch on every process, with gradients through its own share only, so that they do not depend on how
many processes there are.
"""

import os
import re
import sys
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist

from emmental.utils import group
from emmental.utils.errors import InputError

Decision = TypeVar("Decision")


def start(no_cuda: bool) -> torch.device:
    """Joins the process group if torchrun started this process; returns the device to work on.

    InputError where there are GPUs and none can be used: a CPU would take weeks.
    """
    cuda = torch.cuda.is_available() and not no_cuda
    if not (cuda or no_cuda) and torch.backends.cuda.is_built() and (sign := sign_of_gpus()):
        built = f"torch {torch.__version__} is built for CUDA {torch.version.cuda}, nvidia-smi says what the driver has"
        raise InputError(
            f"no GPU can be used, though {sign}; {built}; --no_cuda, or GPU=-1 for a script, takes the CPU"
        )
    if "LOCAL_RANK" in os.environ:
        local = int(os.environ["LOCAL_RANK"])
        if cuda and local >= torch.cuda.device_count():
            raise InputError(f"process {local + 1} has no GPU of its own: {torch.cuda.device_count()} are visible")
        if cuda:
            torch.cuda.set_device(local)
        # what processes agree on in every step travels beside the GPU's queue, not through it
        group.join("cpu:gloo,cuda:nccl" if cuda else "gloo")
        return torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda and torch.cuda.device_count() > 1:
        count = torch.cuda.device_count()
        print(f"{count} GPUs are visible, one is used; for all: torchrun --nproc_per_node {count}, or NPROC={count}")
    return torch.device("cuda" if cuda else "cpu")


def sign_of_gpus() -> str:
    """What says that this machine has GPUs that are meant to be used, "" where nothing does."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible:
        return f"CUDA_VISIBLE_DEVICES={visible}" if re.match(r"\d|GPU-|MIG-", visible) else ""
    return "/dev/nvidiactl is there" if visible is None and os.path.exists("/dev/nvidiactl") else ""


def describe(device: torch.device) -> str:
    """For a person: on what a run works."""
    name = f"{device}, {torch.cuda.get_device_name(device)}" if torch.version.cuda and device.type == "cuda" else device
    many = f", {world_size()} processes" if world_size() > 1 else ""
    return f"device: {name}{many}; torch {torch.__version__}"


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def from_main(decide: Callable[[], Decision]) -> Decision:
    """What process 0 decides, on every process. Where it raises InputError all end, and it alone says why."""
    if world_size() == 1:
        return decide()
    decided = [None, False]
    try:
        if rank() == 0:
            decided = [decide(), True]
    finally:
        dist.broadcast_object_list(decided, src=0, device=torch.device("cpu"))
    if not decided[1]:
        sys.exit(2)
    return decided[0]


def wait() -> None:
    """Returns when every process has come this far."""
    if world_size() > 1:
        dist.barrier()


def share(index: np.ndarray) -> np.ndarray:
    """This process's part of a global batch (batch,); its first example again where there are too few for all."""
    mine = np.array_split(index, world_size())[rank()]
    return mine if len(mine) else index[:1]


def gather_batch(rows: torch.Tensor, batch: int) -> torch.Tensor:
    """Every process's rows of a global batch of `batch` examples, in the batch's order: (share, ...) -> (batch, ...).

    The gradient reaches this process's own rows, times the number of processes, since DistributedDataParallel then
    takes the mean over processes of what is a sum over rows.
    """
    return rows if world_size() == 1 else _Gather.apply(rows, batch)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows, batch):
        sizes = [len(part) for part in np.array_split(np.empty(batch), world_size())]
        ctx.start, ctx.size, ctx.shape = sum(sizes[: rank()]), sizes[rank()], rows.shape
        padded = rows.new_zeros(max(sizes), *rows.shape[1:])
        padded[: ctx.size] = rows[: ctx.size]
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx, gradient):
        mine = gradient.new_zeros(ctx.shape)
        mine[: ctx.size] = gradient[ctx.start : ctx.start + ctx.size] * world_size()
        return mine, None


def all_sum(rows: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The sum over processes of `rows` (examples, ...), a large host tensor, in place and piece by piece."""
    if world_size() > 1:
        for piece in rows.split(65536):
            moved = piece.to(device)
            dist.all_reduce(moved)
            piece.copy_(moved)
    return rows


def all_gather(state: torch.Tensor, device: torch.device) -> list[torch.Tensor]:
    """Every process's small tensor of one shape, in the order of ranks, on the CPU."""
    if world_size() == 1:
        return [state.cpu()]
    states = [torch.empty_like(state, device=device) for _ in range(world_size())]
    dist.all_gather(states, state.to(device))
    return [state.cpu() for state in states]


def all_max(value: int) -> int:
    """The largest of the processes' values, so that all do the same; no GPU is waited for."""
    if world_size() == 1:
        return value
    return max(int(x) for x in all_gather(torch.tensor([value]), torch.device("cpu")))
