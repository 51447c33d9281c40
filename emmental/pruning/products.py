"""All masked weights of an encoder by a few calls, where one call per matrix would launch hundreds of small kernels.

A device that computes a matrix faster than a kernel is launched would wait for the launches: in a step of BERT-base, 72
products and their 144 gradients, and under autocast as many casts again.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

from emmental.pruning.masked_linear import MaskedLinear, masked_linears
from emmental.utils import distributed


@contextmanager
def masked_products(encoder: nn.Module) -> Iterator[None]:
    """While entered on a device, the linears of `encoder` with a binary mask use masked weights made at once.

    A CPU makes each where it is used, when it is still in the cache. Several processes make those of a layer when its
    first one is used. Autograd goes backwards from what was made last, so a layer's gradients then travel while those
    of the layers below are computed.
    """
    # ModernBERT's encoder is the list of layers itself
    parts = getattr(encoder, "layer", encoder) if distributed.world_size() > 1 else [encoder]
    groups = [[x for x in masked_linears(part).values() if x.threshold is not None] for part in parts]
    linears = [linear for group in groups for linear in group]
    if not linears or linears[0].method.smooth or linears[0].weight.device.type == "cpu":
        yield
        return
    try:
        for group in groups:
            together = Together(group)
            for linear in group:
                linear.together = together
        yield
    finally:
        for linear in linears:
            linear.together = None


@dataclass(frozen=True)
class Together:
    """Linears, with one method in common, whose masked weights are made when the first of them is used."""

    linears: list[MaskedLinear]

    @cached_property
    def products(self) -> dict[MaskedLinear, tuple[torch.Tensor, torch.Tensor | None]]:
        """The masked weight and the bias of each, in autocast's type where that is on."""
        linears = self.linears
        scores = [x.mask_scores for x in linears] if linears[0].method.scored else []
        weights = MaskedProducts.apply([x.constant_mask() for x in linears], *[x.weight for x in linears], *scores)
        biases = [x.bias for x in linears]
        device = weights[0].device.type
        if torch.is_autocast_enabled(device):
            both = iter(Cast.apply(torch.get_autocast_dtype(device), *weights, *(x for x in biases if x is not None)))
            weights = [next(both) for _ in weights]
            biases = [None if x is None else next(both) for x in biases]
        return dict(zip(linears, zip(weights, biases, strict=True), strict=True))


class MaskedProducts(torch.autograd.Function):
    """`apply(masks, *weights, *scores)`: many masked weights by one call, their gradients by two.

    A mask's gradient goes to its scores as it is, as by StraightThrough; magnitude has no scores.
    """

    @staticmethod
    def forward(ctx, masks, *weights_and_scores):
        weights = weights_and_scores[: len(masks)]
        ctx.save_for_backward(*weights, *masks)
        return tuple(torch._foreach_mul(weights, masks))

    @staticmethod
    def backward(ctx, *gradients):
        middle, factors, (_, *wanted) = len(gradients), ctx.saved_tensors, ctx.needs_input_grad
        weights, masks, scored = factors[:middle], factors[middle:], wanted[middle:]
        to_weights = torch._foreach_mul(gradients, masks) if any(wanted[:middle]) else [None] * middle
        to_scores = torch._foreach_mul(gradients, weights) if any(scored) else [None] * len(scored)
        return None, *to_weights, *to_scores


class Cast(torch.autograd.Function):
    """`apply(dtype, *tensors)`: many float32 tensors in `dtype` by one call, and their gradients back by one."""

    @staticmethod
    def forward(ctx, dtype, *tensors):
        return tuple(cast(tensors, dtype))

    @staticmethod
    def backward(ctx, *gradients):
        return None, *cast(gradients, torch.float32)


def cast(tensors: Sequence[torch.Tensor], dtype: torch.dtype) -> list[torch.Tensor]:
    made = [torch.empty_like(x, dtype=dtype) for x in tensors]
    torch._foreach_copy_(made, tensors)
    return made
