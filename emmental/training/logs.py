"""What a run logs: the means of the loss's parts, as TensorBoard scalars and as the lines of log.jsonl."""

import json
import math
import os
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.summary import image
from tensorboardX.utils import figure_to_image

from emmental.utils.errors import InputError
from emmental.utils.files import atomic_write, write_errors


class Losses:
    """The parts of the loss, step by step, since the last log line; read from the device only when asked for.

    Up to `tolerated` steps in a row may have a part that is NaN or infinite, and do not count: with float16 the scaler
    skips such a step and halves its scale.
    """

    def __init__(self, tolerated: int = 0):
        self.sums: dict[str, list] = {}  # of every part and of the total: the sum, and over how many steps
        self.fresh: list[dict[str, torch.Tensor]] = []
        self.tolerated, self.skipped = tolerated, 0  # the latter: steps in a row

    def add(self, parts: dict[str, torch.Tensor]) -> None:
        self.fresh.append(parts)

    def read(self, step: int) -> dict[str, list]:
        """Their sums, with one wait for the device; InputError where too many, up to `step`, are NaN or infinite."""
        fresh, self.fresh = self.fresh, []
        values = iter(torch.stack([x.float() for parts in fresh for x in parts.values()]).tolist() if fresh else ())
        for at, parts in enumerate(fresh, step - len(fresh) + 1):
            numbers = {name: next(values) for name in parts}
            spoilt = [name for name, value in numbers.items() if not math.isfinite(value)]
            self.skipped = self.skipped + 1 if spoilt else 0
            if self.skipped > self.tolerated:
                wrong = f"the loss's part '{spoilt[0]}' is {numbers[spoilt[0]]}"
                wrong += f", and {self.tolerated} steps before it were no better" if self.tolerated else ""
                raise InputError(f"step {at}: {wrong}; earlier checkpoints are kept")
            for name, value in {} if spoilt else {"total": sum(numbers.values()), **numbers}.items():
                total, count = self.sums.get(name, (0.0, 0))
                self.sums[name] = [total + value, count + 1]
        return self.sums

    def means(self, step: int) -> dict[str, float]:
        """Each part's mean over the steps that count, and that of the total; starts the next interval.

        A part that came in during the interval, as snapshots do, was 0 before: so the parts add up to the total.
        """
        _, steps = self.read(step).get("total", (0.0, 0))
        means = {f"loss/{name}": total / steps for name, (total, _) in self.sums.items()}
        self.sums = {}
        return means


class Log:
    """Scalars to TensorBoard and to log.jsonl in `folder`; without a folder nothing is logged.

    TensorBoard's events are written at once: SummaryWriter leaves them to a thread, which dies on a full disk, and the
    run then waits for it for ever.
    """

    def __init__(self, folder: Path | None, step: int = 0, logged: int = 0):
        """`step` and `logged`: where the run resumes, and after how many lines; later ones are dropped."""
        self.folder, self.logged = folder, logged
        if folder is None:
            return
        path = folder / "log.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        with atomic_write(path) as temporary:
            temporary.write_text("".join(lines[:logged]), encoding="utf-8")
        self.lines = path.open("a", encoding="utf-8")
        (folder / "tensorboard").mkdir(exist_ok=True)
        self.board = EventsWriter(str(folder / "tensorboard" / "events"), f".{os.getpid()}")
        if step:  # TensorBoard shows nothing that an interrupted run wrote beyond it
            self._event(step + 1, session_log=SessionLog(status=SessionLog.START))

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """One line of values at optimizer step `step`; names with a slash are grouped in TensorBoard."""
        if self.folder is None:
            return
        finite = {name: value if math.isfinite(value) else str(value) for name, value in values.items()}
        with write_errors(self.folder / "log.jsonl"):
            self.lines.write(json.dumps({"step": step, **finite}) + "\n")
            self.lines.flush()
        self.logged += 1
        content = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._event(step, summary=Summary(value=content))

    def figure(self, step: int, name: str, draw: Callable) -> None:
        """A matplotlib figure for TensorBoard, where there is matplotlib: `draw` makes it."""
        if self.folder is not None and find_spec("matplotlib") is not None:
            self._event(step, summary=image(name, figure_to_image(draw()), dataformats="CHW"))

    def _event(self, step: int, **content) -> None:
        with write_errors(self.folder / "tensorboard"):
            self.board.write_event(Event(wall_time=time.time(), step=step, **content))
            self.board.flush()

    def close(self) -> None:
        if self.folder is not None:
            self.lines.close()
            self.board.close()
