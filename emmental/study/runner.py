"""Runs the cells of a grid that have no finished line yet, several at a time, and goes on where a killed one was.

A cell belongs to the runner that holds the lock of its folder. The command inherits that lock, so that it ends when
the last of runner and command has ended, however they ended, and no second one starts beside an orphan.
"""

import fcntl
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from itertools import zip_longest
from pathlib import Path
from typing import IO

from emmental.study import results
from emmental.study.cells import Cell, Places, run_folder
from emmental.utils.errors import InputError
from emmental.utils.provenance import commit

WAIT = 1.0  # seconds between two looks for a cell to take
REPORT = 60.0  # seconds between two lines of progress while nothing ends


class Runner:
    """The state that the threads of a runner share."""

    def __init__(self, cells: list[Cell], places: Places, path: Path, jobs: int):
        self.cells, self.places, self.path, self.jobs = cells, places, path, jobs
        self.guard = threading.RLock()
        self.running: dict[str, tuple[subprocess.Popen, float]] = {}  # and since when, in seconds
        self.taken: set[str] = set()
        self.failed: dict[str, str] = {}
        self.stopped = False
        self.error: BaseException | None = None  # of a thread of ours, which ends the runner
        self.gpus = visible_gpus()

    def finished(self) -> dict[str, dict]:
        """The finished lines by cell, those of other runners included."""
        lines = results.latest(results.read(self.path))
        return {name: line for name, line in lines.items() if line["status"] == "finished"}

    def take(self) -> tuple[Cell, IO] | None:
        """The next cell that can be run, with its lock; those come first whose command has ended without a line."""
        with self.guard:
            finished = self.finished()
            for cell in sorted(self.cells, key=lambda cell: not self.left(cell)):
                if lock := self.claim(cell, finished):
                    self.taken.add(cell.name)
                    return cell, lock
        return None

    def claim(self, cell: Cell, finished: dict[str, dict]) -> IO | None:
        """The lock of a cell that is missing, whose teacher is there and that nobody else runs."""
        if cell.name in finished or cell.name in self.taken or cell.name in self.failed:
            return None
        if cell.needs in self.failed:
            self.fail(cell, f"{cell.needs} failed")
            return None
        if cell.needs and cell.needs not in finished:
            return None
        lock = acquire(self.folder(cell) / "lock")
        if lock and cell.name in self.finished():  # another runner ended it since
            lock.close()
            return None
        return lock

    def waiting(self) -> bool:
        """Whether a cell may become free: one whose teacher is not finished yet, here or with another runner."""
        with self.guard:
            finished = self.finished()
            gone = finished.keys() | self.taken | self.failed.keys()
            return any(cell.needs and cell.needs not in finished for cell in self.cells if cell.name not in gone)

    def left(self, cell: Cell) -> bool:
        """Whether a command has ended without its line, as one does whose runner was killed; such come first."""
        return Path(run_folder(self.places, cell.name), "result.json").exists()

    def folder(self, cell: Cell) -> Path:
        return self.places.output / "cells" / cell.name

    def work(self, place: int) -> None:
        """One thread: takes cells until none is left to take; an error of our own, as of a full disk, ends them all."""
        try:
            self.take_all(place)
        except BaseException as error:
            self.error = error
            self.stop()

    def take_all(self, place: int) -> None:
        """Runs cells until none is left to take; `place` says which GPU is this thread's own."""
        while not self.stopped:
            if taken := self.take():
                cell, lock = taken
                with lock:
                    self.run(cell, lock, place)
            elif self.waiting():
                time.sleep(WAIT)
            else:
                return

    def run(self, cell: Cell, lock: IO, place: int) -> None:
        """Runs a cell's command to its end and adds its line."""
        folder, run = self.folder(cell), Path(run_folder(self.places, cell.name))
        if not self.left(cell) and not any(run.glob("checkpoint-*")):
            shutil.rmtree(run, ignore_errors=True)  # of a run that was killed before its first checkpoint
        status = 0 if same(folder, cell) and self.left(cell) else self.execute(cell, lock, place)
        if self.stopped and status:
            return
        if status:
            self.fail(cell, last_line(folder / "log") or f"exit status {status}")
            return
        teacher = self.finished()[cell.needs]["metrics"] if cell.needs else {}
        results.append(self.path, results.result_line(cell, self.places, teacher, "finished"))
        for rest in (*run.glob("checkpoint-*"), run / "banks"):
            shutil.rmtree(rest, ignore_errors=True)  # what only an unfinished run needs
        self.say(f"finished: {cell.name}")

    def execute(self, cell: Cell, lock: IO, place: int) -> int:
        """The exit status of a cell's command, whose output goes to the cell's log."""
        folder = self.folder(cell)
        (folder / "command").write_text(cell.command + "\n", encoding="utf-8")
        (folder / "commit").write_text(commit() + "\n", encoding="utf-8")
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        own = {"CUDA_VISIBLE_DEVICES": self.gpus[place % len(self.gpus)]} if self.gpus else {"OMP_NUM_THREADS": "1"}
        environment = os.environ | own | {"PATH": path} | cell.environment
        with (folder / "log").open("a", encoding="utf-8") as log:
            log.write(f"\n== {time.strftime('%FT%TZ', time.gmtime())} {cell.command}\n")
            log.flush()
            with self.guard:
                if self.stopped:
                    return 1
                process = subprocess.Popen(
                    cell.argv,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    pass_fds=[lock.fileno()],
                    start_new_session=True,  # Ctrl-C is passed on by stop(), once
                )
                self.running[cell.name] = process, time.time()
            self.say(f"started: {cell.name}")
            status = process.wait()
            with self.guard:
                del self.running[cell.name]
        return status

    def fail(self, cell: Cell, error: str) -> None:
        """Adds the line of a cell that failed; the others go on."""
        with self.guard:
            self.failed[cell.name] = error
        results.append(self.path, results.result_line(cell, self.places, {}, "failed", error))
        self.say(f"FAILED: {cell.name}: {error} (all of it: {self.folder(cell) / 'log'})")

    def say(self, event: str = "") -> None:
        """One line: the event, how many cells are done, running and left, and about how long they will take."""
        with self.guard:
            finished, running = self.finished(), len(self.running)
            names = {cell.name for cell in self.cells}
            done, left = len(names & finished.keys()), names - finished.keys() - self.failed.keys()
            elapsed = {name: time.time() - since for name, (_, since) in self.running.items()}
            rest = results.time_left([cell for cell in self.cells if cell.name in left], finished, elapsed, self.jobs)
            line = f"{done} of {len(names)} cells done, {len(self.failed)} failed, {running} running"
            if rest:
                line += f", about {rest / 3600:.1f} h left" if rest > 5400 else f", about {rest / 60:.0f} min left"
            print(f"{time.strftime('%T')} {event + '; ' if event else ''}{line}", flush=True)

    def stop(self, *_) -> None:
        """Ends the running commands; a training run saves a checkpoint first, from which the next runner goes on."""
        with self.guard:
            self.stopped = True
            for process, _ in self.running.values():
                with suppress(ProcessLookupError):  # it has ended, and its thread is about to see that
                    os.killpg(process.pid, signal.SIGTERM)


def visible_gpus() -> list[str]:
    """The GPUs to run on, as CUDA_VISIBLE_DEVICES names them: those that it lists, else all of the machine."""
    every = [str(number) for number in range(len(results.gpus()))]
    given = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(every)) if every else ""
    return [name.strip() for name in given.split(",") if name.strip() not in ("", "-1")]


def acquire(path: Path) -> IO | None:
    """A lock that ends with the processes that hold it; None where another runner has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file


def same(folder: Path, cell: Cell) -> bool:
    """Whether the folder's run is that of the cell's command; InputError where it is another's."""
    try:
        command = (folder / "command").read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return False
    if command != cell.command:
        words = zip_longest(shlex.split(command), shlex.split(cell.command), fillvalue="nothing")
        was, now = next(pair for pair in words if pair[0] != pair[1])
        what = f"holds a run of another command ({was} there, {now} now)"
        raise InputError(f"{folder}: {what}; give another --output_dir, or remove it")
    return True


def last_line(log: Path) -> str:
    """The last line of a log that is not empty, a progress bar's last state counting as one."""
    lines = log.read_text(errors="replace").replace("\r", "\n").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def run_cells(cells: list[Cell], places: Places, path: Path, jobs: int) -> int:
    """Runs what is missing, `jobs` cells at a time; returns how many failed. Ctrl-C and SIGTERM stop it in order."""
    runner = Runner(cells, places, path, jobs)
    for cell in cells:
        same(runner.folder(cell), cell)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, runner.stop)
    runner.say()
    threads = [threading.Thread(target=runner.work, args=(place,), daemon=True) for place in range(jobs)]
    for thread in threads:
        thread.start()
    reported = time.time()
    while any(thread.is_alive() for thread in threads):
        time.sleep(0.2)
        if time.time() - reported > REPORT:
            reported = time.time()
            runner.say()
    if runner.error:
        raise runner.error
    if runner.stopped:
        print("stopped; the same command goes on from here", flush=True)
        sys.exit(130)
    others = len({cell.name for cell in cells} - runner.finished().keys() - runner.failed.keys())
    if others:
        print(f"{others} cells are left to other runners on this folder", flush=True)
    return len(runner.failed)
