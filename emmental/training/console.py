"""What a person at the terminal sees of a run, and how they stop it."""

import os
import signal
import sys
import time
from contextlib import contextmanager
from pathlib import Path

from emmental.data.batches import Plan
from emmental.utils import distributed
from emmental.utils.errors import may_go_unread, print_once
from emmental.utils.progress import progress


@contextmanager
def bars(plan: Plan, done: int):
    """Progress of epochs and steps; yields a function of a finished step and of the values shown with it."""
    quiet = distributed.rank() > 0
    per_epoch, epochs = plan.steps_per_epoch, -(-plan.total_steps // plan.steps_per_epoch)
    lines = not sys.stderr.isatty()  # steps are printed as lines then; epochs need none of their own
    with (
        progress(epochs, "epochs", "epoch", initial=done // per_epoch, quiet=quiet or lines) as outer,
        progress(plan.total_steps, "steps", "step", initial=done, quiet=quiet) as inner,
    ):

        def advance(step: int, values: dict[str, str]) -> None:
            if values:
                inner.set_postfix(values)
            inner.update()
            if step % per_epoch == 0 or step == plan.total_steps:
                outer.update()

        yield advance


ECHO = 5  # seconds in which a second signal may be the first one's, to all processes and once more from torchrun


class Stop:
    """While entered, remembers SIGTERM or SIGINT until the step is done; `received` is the signal's number, or 0."""

    def __init__(self):
        self.received, self.since = 0, 0.0

    def __enter__(self):
        numbers = (signal.SIGTERM, signal.SIGINT)
        self.before = {number: signal.signal(number, self._receive) for number in numbers}
        return self

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _) -> None:
        if not self.received:
            self.received, self.since = number, time.monotonic()
            name = signal.Signals(number).name
            later = f", {ECHO} seconds later," if "LOCAL_RANK" in os.environ else ""
            with may_go_unread(sys.stdout):
                print_once(f"\n{name}: finishing the step, then saving; a second one{later} stops at once")
        elif "LOCAL_RANK" not in os.environ or time.monotonic() - self.since > ECHO:
            signal.signal(number, self.before[number])
            signal.raise_signal(number)

    def leave(self, number: int, folder: Path) -> None:
        with may_go_unread(sys.stdout):
            print_once(f"stopped by {signal.Signals(number).name}; go on with --resume_from_checkpoint {folder}")
        sys.exit(128 + number)
