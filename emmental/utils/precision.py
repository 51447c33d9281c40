"""On which device, and in which precision, models compute."""

from contextlib import nullcontext
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Precision:
    """float32 on `device`, or autocast to `dtype`; with float16 the optimizer also scales the loss."""

    device: torch.device
    dtype: torch.dtype | None = None

    def autocast(self):
        return torch.autocast(self.device.type, self.dtype) if self.dtype else nullcontext()
