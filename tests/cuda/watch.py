"""Where the boxed step of train() begins and ends, whatever lines it is on."""

from collections.abc import Callable
from functools import wraps


def watch_step(begin: Callable[[], None], end: Callable[[], None]) -> None:
    """Has `begin` called before the first call of a step and `end` after its last, in this process."""
    from emmental.pruning.schedule import MaskSchedule
    from emmental.training.optimizer import Optimizer

    first, last = MaskSchedule.apply, Optimizer.step

    @wraps(first)
    def apply(*args):
        begin()
        return first(*args)

    @wraps(last)
    def step(*args):
        try:
            return last(*args)
        finally:
            end()

    MaskSchedule.apply, Optimizer.step = apply, step
