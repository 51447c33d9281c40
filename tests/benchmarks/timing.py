"""Milliseconds and megabytes of a call, whole and by part, several ways by turns."""

import ctypes
import math
import time
from collections import defaultdict
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from unittest.mock import patch

import torch

PEAK = "peak MB"  # of memory, beyond what is held between steps or passes


class Clock:
    """Milliseconds by part; what runs inside another part counts for itself alone."""

    def __init__(self, device: torch.device):
        self.device, self.parts, self.inner = device, defaultdict(float), []

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return 1e3 * time.perf_counter()

    def time(self, function, *args) -> float:
        start = self.now()
        function(*args)
        return self.now() - start

    def wrap(self, part: str, function):
        def timed(*args, **kwargs):
            self.inner.append(0.0)
            start = self.now()
            result = function(*args, **kwargs)
            took = self.now() - start
            self.parts[part] += took - self.inner.pop()
            if self.inner:
                self.inner[-1] += took
            return result

        return timed


def compare(ways: dict, call, rounds: int, warm: int, device: torch.device) -> dict:
    """Median milliseconds of `call(way, round)`, the ways by turns: whole, in further rounds by part; peak memory."""
    whole, parts = defaultdict(list), defaultdict(lambda: defaultdict(list))
    for number in range(-warm, 2 * rounds):
        for name, way in ways.items():
            clock = Clock(device)
            with ExitStack() as stack:
                for owner, attribute, part in way.parts if number >= rounds else ():
                    timed = clock.wrap(part, getattr(owner, attribute))
                    stack.enter_context(patch.object(owner, attribute, timed))
                clock.wrap("rest", call)(way, number + warm)
            for part, took in clock.parts.items() if number >= rounds else ():
                parts[name][part].append(took)
            if 0 <= number < rounds:
                whole[name].append(clock.parts["rest"])
    result: dict = {name: {"total": median(whole[name])} for name in ways}
    for name, way in ways.items():
        result[name] |= {part: median(took) for part, took in parts[name].items()}
        result[name][PEAK] = peak(partial(call, way, 2 * rounds + warm), device)
    return result | {"ratio": result["released"]["total"] / result["project"]["total"]}


def peak(function, device: torch.device) -> float:
    """The most megabytes that `function` needs at a time beyond what was held before."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        function()
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6

    def resident(field: str) -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1.024e-3 for line in lines if line.startswith(field))

    ctypes.CDLL("libc.so.6").malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, the highest resident size
        before = resident("VmRSS")
        function()
        return resident("VmHWM") - before
    except (OSError, StopIteration):  # a kernel that does not keep it
        return math.nan
