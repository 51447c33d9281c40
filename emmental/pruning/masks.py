"""From scores to 0/1 masks, and the straight-through gradient.

A mask keeps the weights whose score is among the largest (topK, magnitude) or exceeds a value (threshold,
sigmoied_threshold); l0's mask is smooth (Louizos et al., arXiv 1712.01312). The gradient of a binary mask is passed
on to the scores unchanged, so that a score falls while its weight moves towards zero (arXiv 2005.07683, section 3).
"""

import numpy as np
import torch

from emmental.pruning.methods import METHODS, Method, min_kept

STRETCH = (-0.1, 1.1)  # the interval (gamma, zeta) of l0's hard concrete distribution
BETA = 2 / 3  # its temperature
SATURATED = 0.999  # beyond, sigmoids of scores that differ are the same float32


def top_mask(values: torch.Tensor, kept: int) -> torch.Tensor:
    """The mask of the `kept` largest of each row of `values` (matrices, numel), as 0 and 1 of the same shape and type.

    Exact: among values that tie at the cut the lowest flat index wins, so counts are right and runs repeat.
    """
    numel = values.shape[-1]
    if not 0 < kept < numel:
        return torch.full_like(values, kept >= numel)
    if values.device.type == "cpu":
        mask = torch.empty(values.shape)
        for row, kept_row in zip(values.float().numpy(), mask.numpy(), strict=True):
            _top_row(row, kept, kept_row)
        return mask.to(values.dtype)
    cut = _row_cuts(values, kept)
    above, tied = values > cut, values == cut
    missing = kept - above.sum(-1, keepdim=True)
    counted = tied.flatten().cumsum(0, dtype=torch.int32).view_as(tied)  # in one scan: few long rows are slow to scan
    place = counted - counted[:, :1] + tied[:, :1]  # from 1, among the row's ties
    return (above | (tied & (place <= missing))).to(values.dtype)


def _top_row(row: np.ndarray, kept: int, mask: np.ndarray) -> None:
    cut = np.partition(row, row.size - kept)[row.size - kept]  # selection, not a sort: linear in the matrix's size
    np.greater_equal(row, cut, out=mask)
    surplus = np.count_nonzero(mask) - kept
    if surplus > 0:
        mask[np.flatnonzero(row == cut)[-surplus:]] = 0


def _row_cuts(values: torch.Tensor, kept: int) -> torch.Tensor:
    """The `kept`-th largest of each row, (matrices, 1), without waiting for the device.

    Of the kept and the rest, topk selects whichever are fewer: that is less to write.
    """
    rest = values.shape[-1] - kept
    if kept <= rest:
        return values.topk(kept, sorted=False).values.amin(-1, keepdim=True)
    return values.topk(rest + 1, largest=False, sorted=False).values.amax(-1, keepdim=True)


def kth_largest(values: torch.Tensor, k: int) -> float:
    """The `k`-th largest of `values` (numel,), exactly."""
    if values.device.type == "cpu":
        return float(np.partition(values.numpy(), len(values) - k)[len(values) - k])
    return _bisect(values, k).item()


def _bisect(values: torch.Tensor, k: int) -> torch.Tensor:
    """The `k`-th largest of `values` (numel,), a scalar, found bit by bit.

    For one long row, which topk would sort: 85 million scores take it 2 GB of memory. A float's bits, read as an
    integer, order as the floats do once the negative ones are turned around; so 32 counts pin the value down exactly.
    """
    bits = values.float().view(torch.int32)
    keys = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    low = torch.full_like(keys[0], torch.iinfo(torch.int32).min)
    for bit in range(31, -1, -1):
        raised = torch.zeros_like(low) if bit == 31 else low + (1 << bit)
        low = torch.where((keys >= raised).sum() >= k, raised, low)
    return torch.where(low < 0, low ^ 0x7FFFFFFF, low).view(torch.float32).to(values.dtype)


def threshold_input(scores: torch.Tensor, threshold: float, sigmoid: bool) -> torch.Tensor:
    """What a threshold is compared with: the scores, or their sigmoids, as fine as the threshold needs them."""
    if not sigmoid:
        return scores
    return (scores.double() if threshold > SATURATED else scores).sigmoid()


def above_mask(scores: torch.Tensor, threshold: float, sigmoid: bool) -> torch.Tensor:
    """The mask of the scores (matrices, numel) strictly above `threshold`, but of at least the min_kept largest."""
    mask = threshold_input(scores, threshold, sigmoid) > threshold
    minimum = min_kept(scores.shape[-1])
    # On a device the largest are always added, since to read the count would be to wait for it; where the threshold
    # alone keeps enough, they are among those kept.
    if scores.device.type != "cpu" or int(mask.sum(-1).min()) < minimum:
        mask |= top_mask(scores, minimum) > 0
    return mask


def binary_mask(method: Method, values: torch.Tensor, threshold: float) -> torch.Tensor:
    """The masks of a batch of matrices of one shape, `values` (matrices, *shape), as floats of 0 and 1.

    `values` are the scores, or the weights for a method without scores; `threshold` is the fraction kept for a ranked
    method (exactly int(threshold * numel) weights), a value to exceed for the others.
    """
    flat = (values if method.scored else values.abs()).detach().flatten(1)
    if method.ranked:
        mask = top_mask(flat, int(threshold * flat.shape[-1]))
    else:
        mask = above_mask(flat, threshold, method.sigmoid)
    return mask.view_as(values).to(values.dtype)


def hard_concrete(scores: torch.Tensor, sample: bool = False) -> torch.Tensor:
    """l0's mask in [0, 1], of the shape of `scores`: drawn while training, its noiseless form otherwise."""
    if sample:
        u = torch.rand_like(scores).clamp(1e-4, 1 - 1e-4)
        gate = ((u / (1 - u)).log() + scores).div(BETA).sigmoid()
    else:
        gate = scores.sigmoid()
    return (gate * (STRETCH[1] - STRETCH[0]) + STRETCH[0]).clamp(0, 1)


class StraightThrough(torch.autograd.Function):
    """Forward: the ready mask. Backward: its gradient goes to the scores as it is."""

    @staticmethod
    def forward(ctx, scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return mask.view_as(mask)  # not the tensor that was passed in, which is kept from step to step

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


class TopKBinarizer:
    """`apply(scores, threshold)`: keeps the largest int(threshold * numel) scores of a matrix."""

    @staticmethod
    def apply(scores: torch.Tensor, threshold: float) -> torch.Tensor:
        return _straight_through("topK", scores, threshold)


class ThresholdBinarizer:
    """`apply(scores, threshold, sigmoid)`: keeps the scores, or their sigmoids, above a threshold."""

    @staticmethod
    def apply(scores: torch.Tensor, threshold: float, sigmoid: bool) -> torch.Tensor:
        return _straight_through("sigmoied_threshold" if sigmoid else "threshold", scores, threshold)


class MagnitudeBinarizer:
    """`apply(weight, threshold)`: keeps the int(threshold * numel) weights of the largest magnitude.

    Its mask is a constant: no gradient passes through it to the weight.
    """

    @staticmethod
    def apply(weight: torch.Tensor, threshold: float) -> torch.Tensor:
        return _mask("magnitude", weight, threshold)


def _straight_through(name: str, scores: torch.Tensor, threshold: float) -> torch.Tensor:
    return StraightThrough.apply(scores, _mask(name, scores, threshold))


def _mask(name: str, values: torch.Tensor, threshold: float) -> torch.Tensor:
    return binary_mask(METHODS[name], values[None], float(threshold))[0]
