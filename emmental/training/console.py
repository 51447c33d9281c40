"""What a person at the terminal sees of a run, and how they stop it."""

import signal
import sys
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from emmental.data.batches import Plan
from emmental.utils import distributed
from emmental.utils.errors import print_once


@contextmanager
def bars(plan: Plan, done: int):
    """Progress bars of epochs and steps; yields a function of a finished step and of the values shown at the bar."""
    quiet = distributed.rank() > 0
    per_epoch, epochs = plan.steps_per_epoch, -(-plan.total_steps // plan.steps_per_epoch)
    with (
        tqdm(total=epochs, initial=done // per_epoch, desc="epochs", unit="epoch", disable=quiet) as outer,
        tqdm(total=plan.total_steps, initial=done, desc="steps", unit="step", disable=quiet) as inner,
    ):

        def advance(step: int, values: dict[str, str]) -> None:
            inner.update()
            if values:
                inner.set_postfix(values)
            if step % per_epoch == 0 or step == plan.total_steps:
                outer.update()

        yield advance


class Stop:
    """While entered, remembers SIGTERM or SIGINT until the step is done; `received` is the signal's number, or 0."""

    def __init__(self):
        self.received = 0

    def __enter__(self):
        numbers = (signal.SIGTERM, signal.SIGINT)
        self.before = {number: signal.signal(number, self._receive) for number in numbers}
        return self

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _) -> None:
        self.received = number
        signal.signal(number, self.before[number])  # a second one ends at once
        print_once(f"\n{signal.Signals(number).name}: finishing the step, then saving; a second one stops at once")

    def leave(self, number: int, folder: Path) -> None:
        if distributed.rank() == 0:
            print(f"stopped by {signal.Signals(number).name}; go on with --resume_from_checkpoint {folder}")
        sys.exit(128 + number)
