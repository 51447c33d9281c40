"""Estimates a run's memory on its device before anything is allocated, and puts as many banks there as then fit.

A bank's column has the size of the training set: 1.04 GiB of QQP's, one for each epoch but the first and two more.
Gradients and moments, which do not exist yet, are counted; a run that resumes counts the same, and so does not end out
of memory where the first one did not. What a run writes to its disk is estimated as well.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from emmental.data.batches import Plan, epoch_order
from emmental.data.examples import Examples
from emmental.model.inference import TOKENS
from emmental.model.masked_model import MaskedModel
from emmental.pruning.masked_linear import masked_linears
from emmental.utils import distributed

GIB = 1 << 30
# What is not estimated one by one: the rows drawn from banks, libraries' workspaces, gaps between allocations; and
# NCCL's buffers, which are outside torch's memory (a guess).
MARGIN, NCCL = GIB, GIB // 2


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes: `free` on the device when the model is on it (None: a CPU), `parts` of training by name; bank columns."""

    device: torch.device
    free: int | None
    parts: dict[str, int]
    columns: int
    column_bytes: int

    @property
    def training(self) -> int:
        return sum(self.parts.values())

    @property
    def on_device(self) -> int:
        """How many columns fit on the device beside training; 0 on a CPU, where host and device are one."""
        if self.free is None or not self.column_bytes:
            return 0
        return max(0, min(self.columns, (self.free - self.training) // self.column_bytes))

    def lines(self) -> list[str]:
        """For a person: what lies where, and a warning where training alone may not fit."""
        parts = ", ".join(f"{name} {size / GIB:.1f}" for name, size in self.parts.items())
        lines = [f"memory: training takes about {self.training / GIB:.1f} GiB beside the model ({parts})"]
        if self.free is not None:
            lines[0] += f"; {self.free / GIB:.1f} GiB are free on {self.device}"
        if self.columns:
            places = f"{self.on_device} on {self.device}, {self.columns - self.on_device} in host memory"
            places = f"{self.columns} in memory" if self.free is None else places
            lines.append(f"memory: bank columns of {self.column_bytes / GIB:.2f} GiB each: {places}")
        if self.free is not None and self.free < self.training:
            lines.append("memory: this may not fit; a smaller --per_gpu_train_batch_size takes less")
        return lines


def plan_memory(
    model: MaskedModel,
    examples: Examples,
    plan: Plan,
    banks: tuple[str, ...],
    bank_dtype: torch.dtype,
    device: torch.device,
) -> MemoryPlan:
    """The plan of a run whose model is on `device`, and nothing else yet; `banks` are those to contrast with."""
    trained = sum(x.numel() * x.element_size() for x in model.parameters() if x.requires_grad)
    masked = sum(x.weight.numel() * x.weight.element_size() for x in masked_linears(model).values())
    copies = 3 if distributed.world_size() == 1 else 4  # gradients and two moments; among processes, their exchange
    epochs = -(-plan.total_steps // plan.steps_per_epoch)
    return MemoryPlan(
        device,
        torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None,
        {
            "gradients and moments": copies * trained,
            "masks and masked weights": 3 * masked,  # with the gradients of the latter
            "activations": activation_bytes(model, *largest_batch(examples, plan, epochs)),
            "other": MARGIN + (NCCL if distributed.world_size() > 1 else 0),
        },
        columns=sum(epochs - 1 if name == "snapshots" else 1 for name in banks),
        column_bytes=len(examples) * model.config.hidden_size * bank_dtype.itemsize,
    )


def disk_lines(folder: Path, model: MaskedModel, steps: int, banks: int, save_steps: int, limit: int) -> list[str]:
    """A warning where a run of so many `steps` from its start writes more to `folder` than the disk has room for.

    That is `banks`, in bytes, the model, and a checkpoint (model and two moments) every `save_steps`, of which `limit`
    stay (0: all).
    """
    parameters = list(model.parameters())
    of_model = sum(x.numel() * x.element_size() for x in parameters)
    moments = 2 * sum(x.numel() * x.element_size() for x in parameters if x.requires_grad)
    count = steps // save_steps if save_steps else 0
    count = min(count, limit + 1) if limit else count  # an old one goes when the new one is there
    needed = banks + of_model + count * (of_model + moments)
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if needed <= (free := shutil.disk_usage(there).free):
        return []
    parts = (
        f"banks {banks / GIB:.2f}, {count} checkpoints of {(of_model + moments) / GIB:.2f}, model {of_model / GIB:.2f}"
    )
    return [f"warning: {folder} may not hold this run: {needed / GIB:.2f} GiB ({parts}), {free / GIB:.2f} are free"]


def largest_batch(examples: Examples, plan: Plan, epochs: int) -> tuple[int, int]:
    """The most tokens of a batch on one device, over all epochs, without padding and with it."""
    share, real = -(-plan.batch_size // distributed.world_size()), 0
    for epoch in range(epochs):
        lengths = examples.padded_lengths[epoch_order(len(examples), plan.seed, epoch)]
        batches = np.append(lengths, np.zeros(-len(lengths) % share, dtype=lengths.dtype)).reshape(-1, share)
        real = max(real, int(batches.sum(1).max()))
    return real, share * int(examples.padded_lengths.max())


def activation_bytes(model: MaskedModel, real: int, padded: int) -> int:
    """What the encoder keeps of a batch for its gradients, or holds at a time in an encoding pass, if that is more.

    `real` and `padded` are tokens of a batch. In float32, by layer and token: nine vectors of hidden and two of
    intermediate size, what dropout dropped of two of them, a byte each, and, for every padded token, attention's query,
    key, value and result.
    """
    config = model.config.to_dict()
    hidden, inner, layers = (
        model.family.size(config, name) for name in ("hidden_size", "intermediate_size", "num_hidden_layers")
    )
    kept = layers * (real * (4 * (9 * hidden + 2 * inner) + 2 * hidden) + padded * 4 * 4 * hidden)
    return max(kept, TOKENS["cuda"] * 4 * (8 * hidden + 2 * inner))
