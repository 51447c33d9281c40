"""Dropout whose random bits are cheap on a CPU.

torch draws a float for every element there, which takes longer than the matrix product that the element comes from;
here 16 bits decide, so a rate is rounded to a multiple of 2^-16 (0.1 becomes 0.100006) and the scale is that rate's.
"""

import torch
from torch import nn
from torch.nn import functional as F

LEVELS = 1 << 16
LOWEST = torch.iinfo(torch.int64).min


def dropout(x: torch.Tensor, p: float) -> torch.Tensor:
    """`x` with each element dropped with probability `p`, the others scaled to keep the mean."""
    dropped = round(p * LEVELS)
    if x.device.type != "cpu" or not 0 < dropped < LEVELS:
        return F.dropout(x, p)
    words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(LOWEST, None)
    kept = torch.empty(x.numel(), dtype=x.dtype)
    torch.ge(words.view(torch.int16)[: x.numel()], dropped - LEVELS // 2, out=kept)
    return x * kept.mul_(LEVELS / (LEVELS - dropped)).view(x.shape)


class Dropout(nn.Dropout):
    """nn.Dropout by `dropout`; with packing off, as released (D39), by torch's own."""

    packing = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return dropout(x, self.p) if self.training and self.p and self.packing else super().forward(x)


def swap_dropout(model: nn.Module) -> None:
    """Puts `Dropout` in the place of every nn.Dropout."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Dropout:
                setattr(parent, name, Dropout(child.p))
