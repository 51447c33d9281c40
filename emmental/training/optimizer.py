"""AdamW as released (D11) for weights and scores: its groups, learning rates, epsilon, clipping and loss scale.

Movement pruning trains weights and mask scores side by side, each with a peak learning rate of its own
(arXiv 2005.07683, section 5); both follow one warm-up and one linear decay.
"""

import math
from collections.abc import Callable

import torch
from torch import nn

from emmental.utils.transfers import start_to_host

BETAS = (0.9, 0.999)
MAX_SKIPPED = 20  # steps in a row that float16 may skip: its scale, 2^16 at first, has then come down to 2^-4


def lr_factor(step: int, warmup_steps: int, total_steps: int) -> float:
    """The factor on every learning rate at optimizer step `step` from 0: linear up, then linear down to 0.

    as released: the first step of a warm-up has learning rate 0 (D12).
    """
    if step < warmup_steps:
        return step / warmup_steps
    return max(0.0, (total_steps - step) / max(1, total_steps - warmup_steps))


class Optimizer:
    """AdamW over a model's trainable parameters: scores, weights with decay, biases and LayerNorm weights without.

    Learning rates are the peaks. `epsilon` and decay act where the released code has them; gradients of weights and
    scores are clipped jointly to `max_grad_norm` (D12). `scale_loss` is for float16.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        learning_rate: float,
        mask_scores_learning_rate: float,
        weight_decay: float,
        epsilon: float,
        max_grad_norm: float,
        warmup_steps: int,
        total_steps: int,
        scale_loss: bool = False,
    ):
        self.epsilon, self.max_grad_norm = epsilon, max_grad_norm
        self.warmup_steps, self.total_steps = warmup_steps, total_steps
        self.peaks = {"weights": learning_rate, "mask_scores": mask_scores_learning_rate}
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        groups = {"mask_scores": [], "weights": [], "undecayed": []}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                undecayed = parameter.dim() == 1  # biases, and LayerNorms whatever a family calls them
                kind = "mask_scores" if name.endswith("mask_scores") else "undecayed" if undecayed else "weights"
                groups[kind].append(parameter)
        # Decay is ours to apply, under a name that torch does not know.
        self.adamw = torch.optim.AdamW(
            [
                {"params": groups["mask_scores"], "rate": "mask_scores", "decay": 0.0},
                {"params": groups["weights"], "rate": "weights", "decay": weight_decay},
                {"params": groups["undecayed"], "rate": "weights", "decay": 0.0},
            ],
            betas=BETAS,
            weight_decay=0.0,
            fused=True,
        )
        device = next(model.parameters()).device
        self.scaler = torch.amp.GradScaler(device.type, enabled=scale_loss)
        # with float16, Adam's count on its way to the host
        self.counted: Callable[[], list[torch.Tensor]] | None = None

    def learning_rates(self, step: int) -> dict[str, float]:
        """The learning rates of weights and scores at optimizer step `step` from 0."""
        factor = lr_factor(step, self.warmup_steps, self.total_steps)
        return {name: factor * peak for name, peak in self.peaks.items()}

    def updates(self, step: int) -> int:
        """How often Adam has moved weights before optimizer step `step`: with float16 the scaler skips some steps."""
        if not self.scaler.is_enabled():
            return step
        if self.counted:  # copied at the end of the step before, which is done while this one's work is queued
            return int(self.counted()[0])
        steps = [state["step"] for state in self.adamw.state.values()]
        return int(torch.stack(steps).max()) if steps else 0

    def backward(self, loss: torch.Tensor) -> None:
        """Adds the gradients of `loss`, scaled with float16."""
        self.scaler.scale(loss).backward()

    def step(self, step: int) -> torch.Tensor:
        """Clips the gradients, makes optimizer step `step` from 0, and drops them; returns their norm, a scalar.

        as released: epsilon is outside the bias correction, as in transformers' former AdamW (D11), which torch's gives
        when its own is divided by sqrt(1 - beta2^t), and decay acts on the updated weights (with float16 also in steps
        that the scaler skips; t does not count those).
        """
        learning_rates, updates = self.learning_rates(step), self.updates(step)
        self.scaler.unscale_(self.adamw)
        grad_norm = nn.utils.clip_grad_norm_(self.trained, self.max_grad_norm)
        for group in self.adamw.param_groups:
            group["lr"] = learning_rates[group["rate"]]
            group["eps"] = self.epsilon / math.sqrt(1 - BETAS[1] ** (updates + 1))
        self.scaler.step(self.adamw)
        if self.scaler.is_enabled():
            self.counted = start_to_host([next(iter(self.adamw.state.values()))["step"]])
        for group in self.adamw.param_groups:
            if group["decay"]:
                torch._foreach_mul_([p.data for p in group["params"]], 1 - group["lr"] * group["decay"])
        self.scaler.update()
        self.adamw.zero_grad(set_to_none=True)
        return grad_norm
