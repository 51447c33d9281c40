"""The plan of a run: how many optimizer steps, and which examples meet in each.

A pure function of a few integers, so that a resumed run, or one on another number of processes, sees the same
batches. No torch here: a plan whose warm-ups outlast the run is refused before anything is loaded.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from emmental.utils.errors import InputError


@lru_cache(maxsize=2)
def epoch_order(examples: int, seed: int, epoch: int) -> np.ndarray:
    """The order in which an epoch visits the examples, (examples,)."""
    return np.random.default_rng((seed, epoch)).permutation(examples)


@dataclass(frozen=True)
class Plan:
    """`batch_size` counts the examples of a global batch, over all processes."""

    examples: int
    batch_size: int
    accumulation: int
    epochs: float
    seed: int
    max_steps: int = -1

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps; leftover batches of an epoch make a smaller last step of their own."""
        return math.ceil(math.ceil(self.examples / self.batch_size) / self.accumulation)

    @property
    def total_steps(self) -> int:
        steps = round(self.steps_per_epoch * self.epochs, 6)  # 100 * 1.15 is 114.99999999999999
        return self.max_steps if self.max_steps > 0 else max(1, int(steps))

    def micro_batches(self, step: int) -> list[np.ndarray]:
        """The examples of optimizer step `step` from 0: up to `accumulation` batches, each (batch,)."""
        epoch, place = divmod(step, self.steps_per_epoch)
        size = self.batch_size * self.accumulation
        chunk = epoch_order(self.examples, self.seed, epoch)[place * size : (place + 1) * size]
        return [chunk[start : start + self.batch_size] for start in range(0, len(chunk), self.batch_size)]

    def warmup_steps(self, steps: int, epochs: float) -> int:
        return round(epochs * self.steps_per_epoch) if epochs else steps

    def check_warmup(self, warmup_steps: int, initial_warmup: int, final_warmup: int) -> None:
        """Refuses warm-ups that leave no step in which to prune (D50: one jump, or none at all)."""
        needed = (initial_warmup + final_warmup) * warmup_steps
        if warmup_steps and needed >= self.total_steps:
            raise InputError(
                f"the warm-ups outlast the run: (--initial_warmup {initial_warmup} + --final_warmup {final_warmup}) * "
                f"{warmup_steps} warm-up steps = {needed}, and the run has {self.total_steps} optimizer steps "
                f"of {self.batch_size * self.accumulation} examples"
            )
