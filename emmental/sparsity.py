"""How much is pruned, and when: the threshold schedule, the score penalties, and one cut for all matrices.

The schedule is the cubic one of arXiv 2005.07683, section 5, between two plateaus counted in warm-ups; the penalty
pushes the scores of soft movement pruning down with a weight lambda that follows the threshold.
"""

import math

import numpy as np
import torch
from torch import nn

from emmental.masked_linear import masked_linears
from emmental.masks import BETA, STRETCH


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
    """The threshold and lambda of optimizer step `step`.

    `initial_threshold` for the first initial_warmup * warmup_steps steps, `final_threshold` for about the last
    final_warmup * warmup_steps, a cubic in between (arXiv 2005.07683, section 5). as released: without a final
    plateau the last training step does not quite reach the final threshold, at which evaluation is done (quirk 21).
    """
    start, end = initial_warmup * warmup_steps, total_step - final_warmup * warmup_steps
    if step <= start:
        threshold = initial_threshold
    elif step > end:
        threshold = final_threshold
    else:
        remaining = 1 - (step - start) / (end - start)
        threshold = final_threshold + (initial_threshold - final_threshold) * remaining**3
    return threshold, final_lambda * threshold / final_threshold if final_lambda else 0.0


PENALTIES = {
    # mean sigmoid: arXiv 2005.07683, section 4
    "l1": lambda scores: scores.sigmoid().mean(),
    # the chance that a hard concrete gate is not zero: arXiv 1712.01312, equation 12
    "l0": lambda scores: (scores - BETA * math.log(-STRETCH[0] / STRETCH[1])).sigmoid().mean(),
}


def regularization(model: nn.Module, mode: str) -> torch.Tensor:
    """The penalty on a model's scores, a scalar: the mean over matrices of `mode`'s mean over scores.

    As released every matrix weighs the same, whatever its size. `mode` is a key of PENALTIES, else KeyError.
    """
    penalty = PENALTIES[mode]
    return torch.stack([penalty(linear.mask_scores) for linear in masked_linears(model).values()]).mean()


@torch.no_grad()
def global_cut(model: nn.Module, threshold: float) -> float:
    """One cut for all matrices: the score above which a fraction `threshold` of all scores lies.

    The max(n - (int(n * threshold) + 1), 1)-th smallest of all n scores, as released; -inf, so that nothing is
    pruned, while the threshold is 1.
    """
    if threshold >= 1:
        return -math.inf
    scores = torch.cat([linear.mask_scores.flatten() for linear in masked_linears(model).values()]).cpu().numpy()
    place = max(scores.size - (int(scores.size * threshold) + 1), 1) - 1
    return float(np.partition(scores, place)[place])
