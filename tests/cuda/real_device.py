"""The same watch on a real GPU, where torch raises if a step waits. We had no GPU: this has never run."""

import atexit
import json
from pathlib import Path

import torch
from watch import watch_step


def start(report: str, fault: str | None = None, may_wait: bool = False) -> None:
    """As pretend_device.start; `may_wait`: a step may wait for the device."""
    launches = []

    def end() -> None:
        torch.cuda.set_sync_debug_mode("default")
        launches.append(1)

    watch_step(lambda: torch.cuda.set_sync_debug_mode("default" if may_wait else "error"), end)
    atexit.register(lambda: Path(report).write_text(json.dumps({"inside": {}, "launches": launches})))
