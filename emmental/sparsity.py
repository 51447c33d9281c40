"""How much is pruned, and when: the threshold schedule, the score penalties, and one cut for all matrices.

The schedule is the cubic one of arXiv 2005.07683, section 5, between two plateaus counted in warm-ups; the penalty
pushes the scores of soft movement pruning down with a weight lambda that follows the threshold.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from emmental.masked_linear import masked_linears
from emmental.masks import BETA, STRETCH
from emmental.methods import Method

LOWEST = -1e30  # below every score
SAMPLE = 1 << 20  # scores enough for a quantile
PROPORTIONAL, INTEGRAL = 60.0, 600.0  # gains of the steering
MOST = 12.0  # lambda is never steered further than e^12 from where it started


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

    The max(n - (int(n * threshold) + 1), 1)-th smallest of all n scores, as released; at threshold 1 a score below
    all others, so that nothing is pruned.
    """
    if threshold >= 1:
        return LOWEST
    scores = torch.cat([linear.mask_scores.flatten() for linear in masked_linears(model).values()]).cpu().numpy()
    place = max(scores.size - (int(scores.size * threshold) + 1), 1) - 1
    return float(np.partition(scores, place)[place])


def score_at(threshold: float, method: Method) -> float:
    """The score that a threshold cuts at."""
    return math.log(threshold / (1 - threshold)) if method.sigmoid else threshold


@torch.no_grad()
def calibrated_threshold(model: nn.Module, target_sparsity: float) -> float:
    """The threshold at which exactly a share 1 - `target_sparsity` of all scores remains, up to ties.

    The floor of the threshold methods may add to it in matrices that have almost nothing above.
    """
    linears = list(masked_linears(model).values())
    scores = torch.cat([linear.mask_scores.flatten() for linear in linears])
    kept = round(scores.numel() * (1 - target_sparsity))
    # The largest score that goes is the threshold, for the comparison is strict. Sigmoids are taken where masks are
    # made, in float32, so that they compare equal.
    values = (scores.sigmoid() if linears[0].method.sigmoid else scores).cpu().numpy()
    place = max(values.size - kept - 1, 0)
    return float(np.partition(values, place)[place])


@dataclass
class Steering:
    """Steers lambda so that soft pruning ends at a sparsity that was asked for.

    Soft movement pruning "cannot precisely determine the final sparsity ratio beforehand" (arXiv 2005.07683); lambda
    is tuned by hand. Here the share of scores below the final threshold is to follow the cubic schedule from 0 to
    `target`, and lambda is multiplied by exp(gain * (error + its integral)). The error is how far, in units of the
    score, the weight that should just be pruned is from the cut: unlike a count it tells the distance even while
    nothing is pruned. Gains are set by how far scores can travel in the time there is, so they hold for runs of any
    length.
    """

    target: float
    cut: float  # the final threshold as a score
    start: int  # the step at which the threshold begins to move
    end: int  # and the one at which it has stopped
    rate: float  # peak learning rate of the scores

    @torch.no_grad()
    def error(self, model: nn.Module, step: int) -> float:
        """Score of the weight at the rank where the schedule is, minus the cut; positive: push harder."""
        scores = [linear.mask_scores.flatten() for linear in masked_linears(model).values()]
        stride = max(1, sum(part.numel() for part in scores) // SAMPLE)
        sample = torch.cat([part[::stride] for part in scores]).cpu().numpy()
        passed = min(1.0, (step - self.start) / max(1, self.end - self.start))
        place = min(int(self.target * (1 - (1 - passed) ** 3) * sample.size), sample.size - 1)
        return float(np.partition(sample, place)[place]) - self.cut

    def factor(self, model: nn.Module, step: int, state: dict) -> float:
        """What lambda is multiplied by at `step`; `state` ({} at first) holds the integral and the present factor."""
        every = max(1, (self.end - self.start) // 500)
        if step > self.start and (step % every == 0 or not state):
            travel = self.rate * (self.end - self.start)
            error = max(-1.0, min(1.0, self.error(model, step)))
            integral = state.get("integral", 0.0) + INTEGRAL / travel * error * every / (self.end - self.start)
            state["integral"] = max(-MOST, min(MOST, integral))
            state["factor"] = math.exp(max(-MOST, min(MOST, state["integral"] + PROPORTIONAL / travel * error)))
        return state.get("factor", 1.0)
