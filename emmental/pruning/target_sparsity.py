"""Soft pruning to a sparsity that was asked for: steering lambda on the way, calibrating the threshold at the end."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from emmental.pruning.masked_linear import masked_linears
from emmental.pruning.masks import SATURATED, threshold_input, top_mask
from emmental.pruning.methods import Method, min_kept
from emmental.utils.errors import InputError

SAMPLE = 1 << 18  # scores enough for a quantile

# A proportional-integral controller of log(lambda). Its clock is `travel`, the sum of the scores' learning rates.
PROPORTIONAL, INTEGRAL = 10.0, 10.0  # gains, per unit of score, and per unit of score and of travel
BRAKING_GAIN = 3.0  # on errors that ask for a smaller lambda
LOOKAHEAD = 0.4  # travel by which the error is extrapolated
MAX_ERROR = 0.5  # a distance beyond is clamped to this
MAX_INTEGRAL = 12.0  # the integral changes lambda by e^12 at most
UPDATE_INTERVAL = 0.1  # travel between two updates


def score_at(threshold: float, method: Method) -> float:
    """The score at a threshold: the inverse of the sigmoid, where the method has one."""
    return math.log(threshold / (1 - threshold)) if method.sigmoid else threshold


@torch.no_grad()
def calibrated_threshold(model: nn.Module, target_sparsity: float) -> float:
    """The threshold at which exactly a share 1 - `target_sparsity` of all scores remains, up to ties.

    Scores from about 37 on tie, their sigmoids being 1; where only those are to remain, all of them do. InputError
    where there is none: the target is beyond methods.highest_sparsity, or scores are NaN.
    """
    linears = masked_linears(model).values()
    sigmoid = any(linear.method.sigmoid for linear in linears)
    threshold = 0.0
    for _ in range(2):  # the second time, if need be, in the precision that the first one asks for
        values = []
        for linear in linears:
            scores = linear.mask_scores.flatten()
            row = threshold_input(scores, threshold, sigmoid)  # as where masks are made, so that they compare equal
            kept_anyway = top_mask(scores[None], min_kept(row.numel()))[0] > 0  # so it comes first
            values.append(row.masked_fill(kept_anyway, math.inf).cpu().numpy())
        values = np.concatenate(values)
        kept = round(values.size * (1 - target_sparsity))
        place = max(values.size - kept - 1, 0)  # the largest that goes is the threshold, for the comparison is strict
        threshold = float(np.partition(values, place)[place])
        if not sigmoid or threshold <= SATURATED:
            break
    if not math.isfinite(threshold):
        raise InputError(f"--target_sparsity {target_sparsity}: no threshold reaches it (it would be {threshold})")
    return min(threshold, math.nextafter(1.0, 0.0)) if sigmoid else threshold  # no sigmoid exceeds 1


def clamp(value: float, low: float, high: float) -> float:
    return max(low, min(high, value))


@dataclass
class Steering:
    """What a LambdaController knows from step to step; checkpoints hold it."""

    travel: float = 0.0  # since the last update
    last: float | None = None  # the score at the target's rank, at that update
    integral: float = 0.0
    factor: float = 1.0


@dataclass(frozen=True)
class LambdaController:
    """Steers lambda so that soft pruning ends at a sparsity that was asked for.

    Soft movement pruning "cannot precisely determine the final sparsity ratio beforehand" (arXiv 2112.07198); lambda is
    tuned by hand. Here the share of scores below the final threshold is to follow the cubic schedule from 0 to
    `target`, and lambda is multiplied by e^u, u = PROPORTIONAL * error + its integral. The error is a sum of two: how
    far the score at the scheduled rank is from the cut, extrapolated by LOOKAHEAD and clamped, which counts while
    nothing is pruned yet, and log(share above the cut / scheduled share), which counts once much is. Time is measured
    in travel, the sum of the scores' learning rates, which is about the distance that Adam can move a score; so the
    gains hold for runs of any length.
    """

    target: float
    cut: float  # the final threshold as a score
    start: int  # the step at which the threshold begins to move
    end: int  # and the one at which it has stopped

    def goal(self, step: int) -> float:
        """The share of scores that should be below the cut at `step`."""
        passed = min(1.0, (step - self.start) / max(1, self.end - self.start))
        return self.target * (1 - (1 - passed) ** 3)

    def factor(self, model: nn.Module, step: int, learning_rate: float, state: Steering) -> float:
        """What lambda is multiplied by at `step`, with the scores' present learning rate.

        `state` is that of the step before, and becomes this one's; a device is waited for at updates only.
        """
        if step > self.start:
            state.travel += learning_rate
        first = state.last is None and state.travel > 0
        if state.travel < UPDATE_INTERVAL and not first:
            return state.factor
        goal = self.goal(step)
        present, at_target, remaining = self.measure(model, goal)
        speed = 0.0 if first else (at_target - state.last) / state.travel  # -1: as fast as Adam moves
        distance = present - self.cut + LOOKAHEAD * speed
        error = clamp(distance, -MAX_ERROR, MAX_ERROR) + math.log(remaining / (1 - goal))
        # What falls as fast as it can is not pushed harder; what has fallen too far does not come back by itself.
        error *= clamp(1 + speed, 0.0, 1.0) if error > 0 else BRAKING_GAIN
        state.integral = clamp(state.integral + INTEGRAL * error * state.travel, -MAX_INTEGRAL, MAX_INTEGRAL)
        state.factor = math.exp(state.integral + PROPORTIONAL * error)
        state.last, state.travel = at_target, 0.0
        return state.factor

    @torch.no_grad()
    def measure(self, model: nn.Module, goal: float) -> tuple[float, float, float]:
        """The scores below which shares `goal` and `target` of all scores lie, and the share above the cut.

        From a sample in large models.
        """
        scores = [linear.mask_scores.flatten() for linear in masked_linears(model).values()]
        stride = sum(part.numel() for part in scores) // SAMPLE | 1  # odd: no multiple of a head's size
        sample = torch.cat([part[::stride] for part in scores]).cpu().numpy()
        places = [min(int(share * sample.size), sample.size - 1) for share in (goal, self.target)]
        present, at_target = np.partition(sample, sorted(set(places)))[places].tolist()
        return present, at_target, max(np.count_nonzero(sample > self.cut), 1) / sample.size
