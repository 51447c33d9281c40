"""The mask schedule: threshold and lambda of every step, the penalties on scores, and one cut for all matrices.

The schedule is the cubic one of arXiv 2005.07683, section 5, between two plateaus counted in warm-ups; the penalty
pushes the scores of soft movement pruning down with a weight lambda that follows the threshold.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import torch
from torch import nn

from emmental.pruning.masked_linear import equal_sized, masked_linears, set_threshold, stack_rows
from emmental.pruning.masks import BETA, STRETCH, kth_largest
from emmental.pruning.target_sparsity import LambdaController, Steering, calibrated_threshold

LOWEST = -1e30  # below every score: a cut that prunes nothing


@dataclass
class MaskSchedule:
    """Which masks a model has at each optimizer step, and lambda, the weight of the penalty on its scores.

    Steps are the optimizer's, from 0; the schedule counts them from `first_step`. The other numbers are those of
    schedule_threshold. `apply` is for a step of training; the other methods make masks without steering, for encoding,
    saving and evaluation. `global_cut_every` is None for one cut per matrix, else the steps between two global cuts. A
    `controller` scales lambda; `scores_lr(step)` tells it the scores' learning rate. `cut` and `steering` change from
    step to step; checkpoints hold them.
    """

    total_steps: int
    warmup_steps: int
    initial_threshold: float
    final_threshold: float
    initial_warmup: int
    final_warmup: int
    final_lambda: float
    first_step: int = 0
    global_cut_every: int | None = None
    controller: LambdaController | None = None
    scores_lr: Callable[[int], float] | None = None
    cut: float = LOWEST
    steering: Steering = field(default_factory=Steering)

    def apply(self, model: nn.Module, step: int) -> tuple[float, float]:
        """Makes the masks of optimizer step `step`; returns its threshold and lambda."""
        threshold, regu_lambda = self.set_masks(model, step)
        if self.controller:
            schedule_step = step + self.first_step
            regu_lambda *= self.controller.factor(model, schedule_step, self.scores_lr(step), self.steering)
        return threshold, regu_lambda

    def set_masks(self, model: nn.Module, step: int, *, new_cut: bool = True) -> tuple[float, float]:
        """The masks alone, without steering; returns the threshold, and lambda before steering.

        Without `new_cut` a global cut stays where it is, as between two of its steps; where there is none yet, one is
        taken for these masks alone.
        """
        schedule_step = step + self.first_step
        threshold, regu_lambda = schedule_threshold(
            schedule_step,
            self.total_steps,
            self.warmup_steps,
            initial_threshold=self.initial_threshold,
            final_threshold=self.final_threshold,
            initial_warmup=self.initial_warmup,
            final_warmup=self.final_warmup,
            final_lambda=self.final_lambda,
        )
        if self.global_cut_every:
            cut, due = self.cut, new_cut and schedule_step % self.global_cut_every == 0
            if threshold < 1 and (cut == LOWEST or due):
                cut = global_cut(model, threshold)
            if new_cut:
                self.cut = cut
            set_threshold(model, cut)
        else:
            set_threshold(model, threshold)
        return threshold, regu_lambda

    def set_final_masks(self, model: nn.Module) -> None:
        """Makes the masks that a model in training is saved with, and by default evaluated."""
        target = self.controller and self.controller.target
        self.set_masks_at(model, calibrated_threshold(model, target) if target else self.final_threshold)

    def set_masks_at(self, model: nn.Module, threshold: float) -> None:
        """Makes the masks at a threshold of the schedule from the present scores; the config keeps what was cut at."""
        if self.global_cut_every:
            threshold = global_cut(model, threshold)
        set_threshold(model, threshold)

    def state_dict(self) -> dict:
        return {"cut": self.cut, "steering": asdict(self.steering)}

    def load_state_dict(self, state: dict) -> None:
        self.cut = LOWEST if state["cut"] is None else state["cut"]  # None: in checkpoints of earlier commits
        self.steering = Steering(**state["steering"])


def moving_steps(total_step: int, warmup_steps: int, initial_warmup: int, final_warmup: int) -> tuple[int, int]:
    """Between which steps the threshold moves: after the first plateau, before the last."""
    return initial_warmup * warmup_steps, total_step - final_warmup * warmup_steps


def schedule_threshold(
    step: int,
    total_step: int,
    warmup_steps: int,
    initial_threshold: float,
    final_threshold: float,
    initial_warmup: int,
    final_warmup: int,
    final_lambda: float,
) -> tuple[float, float]:
    """The threshold and lambda of optimizer step `step`; lambda is what the penalty on the scores is multiplied by.

    `initial_threshold` up to and including step initial_warmup * warmup_steps, `final_threshold` from step total_step -
    final_warmup * warmup_steps on, a cubic in between (arXiv 2005.07683, section 5). as released: where steps count
    from 0 and there is no final plateau, the last one does not quite reach the final threshold (D9).
    lambda = final_lambda * threshold / final_threshold (D17): it follows the threshold.
    """
    start, end = moving_steps(total_step, warmup_steps, initial_warmup, final_warmup)
    if step <= start:
        threshold = initial_threshold
    elif step > end:
        threshold = final_threshold
    else:
        remaining = 1 - (step - start) / (end - start)
        threshold = final_threshold + (initial_threshold - final_threshold) * remaining**3
    return threshold, final_lambda * threshold / final_threshold if final_lambda else 0.0


PENALTIES = {  # --regularization -> the penalties on matrices of scores, (matrices, numel) -> (matrices,)
    # mean sigmoid: arXiv 2005.07683, section 4
    "l1": lambda scores: scores.sigmoid().mean(-1),
    # for the method of that name: the chance that its gate is not zero, arXiv 1712.01312, equation 12
    "l0": lambda scores: (scores - BETA * math.log(-STRETCH[0] / STRETCH[1])).sigmoid().mean(-1),
}


def regularization(model: nn.Module, mode: str) -> torch.Tensor:
    """The penalty on a model's scores, a scalar: the mean over matrices of `mode`'s mean over scores.

    As released (D17) every matrix weighs the same, whatever its size. `mode` is a key of PENALTIES, else KeyError.
    """
    groups = equal_sized(list(masked_linears(model).values()))
    rows = (stack_rows([linear.mask_scores for linear in group]) for group in groups)
    return torch.cat([PENALTIES[mode](scores) for scores in rows]).mean()


@torch.no_grad()
def global_cut(model: nn.Module, threshold: float) -> float:
    """One cut for all matrices: the score above which a fraction `threshold` of all scores lies.

    The max(n - (int(n * threshold) + 1), 1)-th smallest of all n scores, as released (D15); LOWEST at threshold 1 and
    while all scores are alike, as untrained ones are, so that nothing is pruned (D29).
    """
    if threshold >= 1:
        return LOWEST
    scores = torch.cat([linear.mask_scores.flatten() for linear in masked_linears(model).values()])
    lowest, highest = scores.aminmax()
    if lowest == highest:
        return LOWEST
    return kth_largest(scores, min(int(len(scores) * threshold) + 2, len(scores)))  # as counted from the largest
