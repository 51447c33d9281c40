"""Joining the other processes of a run, noticing when one of them has ended, and leaving them.

What ends all when one fails: that process exits at once, without NCCL's or torch's tidying up, which may wait for the
others, and its connections close. Each process watches its left neighbour over a gloo connection of its own on which
nothing comes but a goodbye; where it closes without one, this process ends as well within PATIENCE seconds, also while
a GPU waits in an NCCL kernel for ever. So the news goes round, over any number of nodes, whichever rendezvous started
them, and each torchrun ends with its processes. What closes no connection, a machine without power, ends by the
timeout of torch's collectives, 30 minutes; so does waiting for a process that never joined.
"""

import atexit
import os
import signal
import sys
import threading
from contextlib import suppress
from datetime import timedelta

import torch
import torch.distributed as dist

from emmental.utils.errors import AT_END, print_error, report

PATIENCE = 5  # seconds in which a process may still say itself why it ends
CLOSING = 10  # seconds that exit handlers may take; then the kernel ends the process


class Watch(threading.Thread):
    """Waits for the goodbye of the left neighbour, and ends this process where that one ends without."""

    def __init__(self):
        super().__init__(daemon=True)
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.group = dist.new_group(backend="gloo")  # of its own: other traffic would wait behind this
        self.failed = threading.Event()

    def run(self) -> None:
        left = (self.rank - 1) % self.size
        try:
            dist.irecv(torch.zeros(1), group=self.group, group_src=left).wait(timedelta(days=365))
        except RuntimeError:
            if not self.failed.wait(PATIENCE):
                print_error(f"process {left} has ended before its time, and so this one ends")
                leave_at_once(1)

    def say_goodbye(self) -> None:
        """Returns when the left neighbour has said it too."""
        dist.send(torch.zeros(1), group=self.group, group_dst=(self.rank + 1) % self.size)
        self.join()


def join(backend: str) -> None:
    """Joins the process group; the script's `run` leaves it, however it ends."""
    dist.init_process_group(backend)
    watch = Watch() if dist.get_world_size() > 1 else None
    if watch:
        watch.start()

    def leave(code: int) -> None:
        try:
            if watch and not code:
                watch.say_goodbye()
        except RuntimeError as error:  # its neighbour is gone
            code = report(error)
        if code:
            if watch:
                watch.failed.set()
            leave_at_once(code)
        dist.destroy_process_group()

    AT_END.append(leave)


def leave_at_once(code: int) -> None:
    """Ends this process after its exit handlers; no destructor runs, so that none waits for another process."""
    signal.alarm(CLOSING)
    atexit._run_exitfuncs()
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
