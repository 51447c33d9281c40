"""Progress on standard error: a bar at a terminal; elsewhere, as in a job's log, a plain line now and then."""

import sys
import time

from tqdm import tqdm

from emmental.utils.errors import may_go_unread

INTERVAL = 30.0  # seconds between two plain lines


class Lines:
    """What of `total` is done, how fast, the time left and the values last given, as one line every INTERVAL seconds.

    Has those of tqdm's methods that are used here; `leave` tells of the end as well.
    """

    def __init__(self, total: int, desc: str, initial: int, leave: bool):
        self.total, self.title, self.leave = total, desc, leave
        self.done = self.initial = initial
        self.begun: float | None = None
        self.printed, self.told = time.monotonic(), None
        self.values: dict[str, str] = {}

    def update(self, count: int = 1) -> None:
        self.done += count
        if self.begun is None:  # what is done first waits for what has no progress of its own
            self.begun, self.initial = time.monotonic(), self.done
        if time.monotonic() - self.printed >= INTERVAL:
            self.tell()

    def set_postfix(self, values: dict[str, str]) -> None:
        self.values = values

    def tell(self) -> None:
        self.printed, self.told = time.monotonic(), self.done
        line = f"{self.title}: {self.done}/{self.total}"
        if self.done > self.initial:
            rate = (self.done - self.initial) / max(self.printed - self.begun, 1e-9)
            line += f", {rate:.3g}/s, {tqdm.format_interval((self.total - self.done) / rate)} left"
        line += "".join(f", {name} {value}" for name, value in self.values.items())
        with may_go_unread(sys.stderr):
            print(line, file=sys.stderr, flush=True)

    def __enter__(self):
        return self

    def __exit__(self, error: type | None, *_):
        if self.leave and error is None and self.told != self.done:
            self.tell()


def progress(total: int, desc: str, unit: str, *, initial: int = 0, leave: bool = True, quiet: bool = False):
    """A context: tqdm's bar at a terminal, else Lines; neither where `quiet`."""
    if quiet or sys.stderr.isatty():
        return tqdm(total=total, desc=desc, unit=unit, initial=initial, leave=leave, disable=quiet)
    return Lines(total, desc, initial, leave)
