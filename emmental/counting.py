"""How sparse a model is, by the released definition and by the masked matrices alone."""

from dataclasses import dataclass

import torch
from torch import nn

from emmental.masked_linear import kept_weights, masked_linears


@dataclass(frozen=True)
class Count:
    """Weights kept, of how many: by masked matrix, and of everything else in the encoder (biases and LayerNorms)."""

    matrices: dict[str, tuple[int, int]]
    unmasked: int

    @property
    def remaining(self) -> float:
        """Percent of the weights of the masked matrices that remain."""
        kept, total = (sum(column) for column in zip(*self.matrices.values(), strict=True))
        return 100 * kept / total

    @property
    def remaining_released(self) -> float:
        """Percent as released: biases and LayerNorms of the encoder count as kept, and in the total."""
        kept, total = (sum(column) for column in zip(*self.matrices.values(), strict=True))
        return 100 * (kept + self.unmasked) / (total + self.unmasked)


def count(model: nn.Module) -> Count:
    """Counts a masked BERT's present masks."""
    linears = masked_linears(model.bert.encoder)
    matrices = {f"bert.encoder.{name}.weight": (kept_weights(x), x.weight.numel()) for name, x in linears.items()}
    encoder = dict(model.bert.encoder.named_parameters())
    unmasked = sum(p.numel() for name, p in encoder.items() if not name.endswith("mask_scores"))
    return Count(matrices, unmasked - sum(total for _, total in matrices.values()))


def remaining_weights(model: nn.Module) -> float:
    """Percent of the masked matrices' weights that the present masks keep."""
    with torch.no_grad():
        return count(model).remaining
