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
        self.begun = self.printed = time.monotonic()
        self.values: dict[str, str] = {}

    def update(self, count: int = 1) -> None:
        self.done += count
        if time.monotonic() - self.printed >= INTERVAL:
            self.tell()

    def set_postfix(self, values: dict[str, str]) -> None:
        self.values = values

    def tell(self) -> None:
        self.printed = time.monotonic()
        rate = (self.done - self.initial) / max(self.printed - self.begun, 1e-9)
        left = tqdm.format_interval((self.total - self.done) / rate) if rate else "?"
        values = "".join(f", {name} {value}" for name, value in self.values.items())
        line = f"{self.title}: {self.done}/{self.total}, {rate:.3g}/s, {left} left{values}"
        with may_go_unread(sys.stderr):
            print(line, file=sys.stderr, flush=True)

    def __enter__(self):
        return self

    def __exit__(self, error: type | None, *_):
        if self.leave and error is None:
            self.tell()


def progress(total: int, desc: str, unit: str, *, initial: int = 0, leave: bool = True, quiet: bool = False):
    """A context: tqdm's bar at a terminal, else Lines; neither where `quiet`."""
    if quiet or sys.stderr.isatty():
        return tqdm(total=total, desc=desc, unit=unit, initial=initial, leave=leave, disable=quiet)
    return Lines(total, desc, initial, leave)
