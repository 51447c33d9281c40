"""The table of pruning methods: what each one ranks or compares, and what its threshold means.

Movement pruning (arXiv 2005.07683) calls them hard (topK) and soft (sigmoied_threshold); CAP-m and CAP-soft
(arXiv 2112.07198) train with the same masks. Everything that depends on a method asks this table, which needs no
torch, so that flags can be checked against it in a moment.
"""

from dataclasses import dataclass

MIN_SHARE_KEPT = 0.005  # as released: the threshold methods keep at least this share of a matrix, and one weight more


@dataclass(frozen=True)
class Method:
    """How one pruning method turns a matrix into a mask."""

    scored: bool = True  # learns a score per weight (else the weight's own magnitude counts)
    ranked: bool = False  # the threshold is the fraction kept (else it is a value to exceed)
    sigmoid: bool = False  # the threshold is compared with sigmoid(score)
    smooth: bool = False  # the mask is a differentiable function of the score, with no threshold

    @property
    def fraction(self) -> bool:
        """Whether its thresholds lie between 0 and 1."""
        return self.ranked or self.sigmoid


METHODS = {
    "topK": Method(ranked=True),
    "threshold": Method(),
    "sigmoied_threshold": Method(sigmoid=True),  # the released spelling, part of every published command
    "magnitude": Method(scored=False, ranked=True),
    "l0": Method(smooth=True),
}
