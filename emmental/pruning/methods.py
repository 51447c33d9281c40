"""The table of pruning methods: what each one ranks or compares, and what its threshold means.

Movement pruning (arXiv 2005.07683) calls them hard (topK) and soft (sigmoied_threshold); CAP-m and CAP-soft
(arXiv 2112.07198) train with the same masks. Everything that depends on a method asks this table, which needs no
torch, so that flags can be checked against it in a moment.

To add a method, add a row to METHODS. If it ranks scores or weights or compares them with a threshold, that is all:
flags and their checks, masks, schedule, counting and folding read the row. One that ranks something else, as |w * s|,
needs a field here and a case in `MaskedLinear.ranking` (masked_linear.py), a binary mask of another kind a branch in
`binary_mask` (masks.py), and one that is not made once per step `smooth` and a case in `current_mask` of MaskedLinear.
tests/pruning/test_masks.py and tests/model/test_packing.py go over the rows, with a threshold for each.
"""

from dataclasses import dataclass

MIN_SHARE_KEPT = 0.005  # as released (D16): the threshold methods keep this share of a matrix, and one weight more


@dataclass(frozen=True)
class Method:
    """How one pruning method turns a matrix into a mask."""

    scored: bool = True  # learns a score per weight (else the weight's own magnitude counts)
    ranked: bool = False  # the threshold is the share of a matrix that is kept (else a value to exceed)
    sigmoid: bool = False  # the value to exceed is compared with sigmoid(score), not with the score
    smooth: bool = False  # the mask is a differentiable function of the score, with no threshold: a hard concrete gate

    @property
    def fraction(self) -> bool:
        """Whether its thresholds lie between 0 and 1."""
        return self.ranked or self.sigmoid

    @property
    def compared(self) -> bool:
        """Whether its threshold is a value that scores, or their sigmoids, have to exceed."""
        return self.scored and not self.ranked and not self.smooth


METHODS = {
    "topK": Method(ranked=True),
    "threshold": Method(),
    "sigmoied_threshold": Method(sigmoid=True),  # the released spelling, part of every published command
    "magnitude": Method(scored=False, ranked=True),
    "l0": Method(smooth=True),
}


def min_kept(numel: int) -> int:
    """How many weights of a matrix the threshold methods keep at least."""
    return int(MIN_SHARE_KEPT * numel) + 1


def highest_sparsity(sizes: list[int]) -> float:
    """The largest share that the threshold methods can prune of matrices with so many weights."""
    return 1 - sum(map(min_kept, sizes)) / sum(sizes)
