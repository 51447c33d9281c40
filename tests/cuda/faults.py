"""Changes to inject into a run on the pretend device, each by a function called in the run's own process.

But for the first they are faults: what works on a CPU alone, waits for a device, or computes wrong.
"""

import torch

from emmental.contrast import bank, loss
from emmental.pruning import masks, products
from emmental.training import checkpoint, loop, memory


def two_columns_fit() -> None:
    memory.MemoryPlan.on_device = 2


def labels_on_the_host() -> None:
    loop.rows_to_device = lambda table, index, device: table[index]


def bank_index_on_the_host() -> None:
    bank.to_device = lambda x, device: x


def identity_on_the_host() -> None:
    eye = torch.eye
    torch.eye = lambda *shape, dtype, device: eye(*shape, dtype=dtype)


def moments_on_the_host() -> None:
    restore = checkpoint.restore

    def restored(folder, state) -> None:
        restore(folder, state)
        for moments in state.optimizer.adamw.state.values():
            moments.update({name: value.cpu() for name, value in moments.items()})

    checkpoint.restore = restored


def norm_is_read() -> None:
    clip = torch.nn.utils.clip_grad_norm_

    def read(*args) -> torch.Tensor:
        norm = clip(*args)
        norm.item()
        return norm

    torch.nn.utils.clip_grad_norm_ = read


def loss_is_indexed_by_a_mask() -> None:
    positive_loss = loss.positive_loss

    def indexed(log_q, positive, normalization) -> torch.Tensor:
        return positive_loss(log_q, positive, normalization) + 0 * log_q[positive].sum()

    loss.positive_loss = indexed


def copies_from_pageable_memory() -> None:
    loop.rows_to_device = lambda table, index, device: table[index].to(device, non_blocking=True)


def last_of_ties_wins() -> None:
    top_mask = masks.top_mask
    masks.top_mask = lambda values, kept: top_mask(values.flip(-1), kept).flip(-1)


def gradients_swapped() -> None:
    backward = products.MaskedProducts.backward

    def swapped(ctx, *gradients):
        masks, *given = backward(ctx, *gradients)
        middle = len(given) // 2
        return masks, *given[middle:], *given[:middle]

    products.MaskedProducts.backward = staticmethod(swapped)
