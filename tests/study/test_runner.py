"""The runner: who runs a cell, on which GPU, for whom it waits, and how it stops."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from emmental.study import results
from emmental.study.cells import Cell, Places
from emmental.study.runner import Runner, acquire, last_line, run_cells, same, visible_gpus
from emmental.utils.errors import InputError

ROOT = Path(__file__).parents[2]


def cell(name: str, code: str = "true", needs: str = "") -> Cell:
    return Cell(name, ("sh", "-c", code), {}, "", {"task": "qqp", "kind": "pruned"}, needs)


@pytest.fixture
def runner(tmp_path):
    return lambda *cells: Runner([*cells], Places(tmp_path, "", ""), tmp_path / "x.jsonl", 2)


def test_a_run_of_another_command_is_refused_by_the_first_word_that_differs(tmp_path):
    cell = Cell("c", ("bash", "run.sh", "--bf16"), {"SEED": "1"}, "", {})
    assert not same(tmp_path, cell)
    (tmp_path / "command").write_text(cell.command)
    assert same(tmp_path, cell)
    for other, words in (("env SEED=2 bash run.sh --bf16", "SEED=2 there, SEED=1"), ("env SEED=1 bash run.sh", "not")):
        (tmp_path / "command").write_text(other)
        with pytest.raises(InputError, match=words):
            same(tmp_path, cell)


def test_a_lock_ends_with_its_process(tmp_path):
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"from emmental.study.runner import *; l = acquire(Path({str(tmp_path / 'l')!r})); "
            "print('held', flush=True); time.sleep(600)",
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout.readline() == "held\n"
    assert acquire(tmp_path / "l") is None
    holder.kill()
    holder.communicate()
    assert acquire(tmp_path / "l") is not None


@pytest.mark.parametrize(
    "given, expected", [(None, ["0", "1", "2"]), ("2,3", ["2", "3"]), ("GPU-a", ["GPU-a"]), ("", []), ("-1", [])]
)
def test_gpus_are_those_that_the_user_lends(monkeypatch, given, expected):
    monkeypatch.setattr(results, "gpus", lambda: ["H100"] * 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if given is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    assert visible_gpus() == expected
    monkeypatch.setattr(results, "gpus", list)
    assert visible_gpus() == []


@pytest.mark.parametrize(
    "answer, names", [("echo H100; echo H200", ["H100", "H200"]), ("echo 'No devices'; exit 6", [])]
)
def test_gpus_are_what_nvidia_smi_lists_where_it_succeeds(monkeypatch, tmp_path, answer, names):
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{answer}\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert results.gpus() == names


def test_an_error_of_the_runner_ends_it(monkeypatch, tmp_path):
    """A full disk, say: the other cells are not begun, and the error is shown."""

    def full(*_):
        raise OSError("no space")

    monkeypatch.setattr(results, "append", full)
    monkeypatch.setattr(results, "result_line", lambda *_: {})
    monkeypatch.setattr("signal.signal", lambda *_: None)
    cells = [Cell(name, ("false",), {}, "", {}) for name in "ab"]
    with pytest.raises(OSError, match="no space"):
        run_cells(cells, Places(tmp_path, "", ""), tmp_path / "x.jsonl", 1)
    assert (tmp_path / "cells" / "a" / "log").exists() and not (tmp_path / "cells" / "b" / "log").exists()


def test_the_last_line_of_a_log(tmp_path):
    (tmp_path / "log").write_text("first\n 10 %\r 20 %\nerror: no\n\n")
    assert last_line(tmp_path / "log") == "error: no"


@pytest.mark.parametrize("place, gpu", [(0, "3"), (1, "GPU-a"), (2, "3")])
def test_cells_at_a_time_have_a_gpu_each(runner, place, gpu):
    running, one = runner(), cell("one", 'echo "gpu=$CUDA_VISIBLE_DEVICES"')
    running.gpus = ["3", "GPU-a"]
    folder = running.folder(one)
    folder.mkdir(parents=True)
    with (folder / "lock").open("a") as lock:
        assert running.execute(one, lock, place) == 0
    assert (folder / "log").read_text().endswith(f"gpu={gpu}\n")


def test_a_teacher_that_fails_fails_its_students(runner, tmp_path):
    running = runner(cell("student", needs="teacher"))
    running.failed["teacher"] = "out of memory"
    assert running.take() is None and not running.waiting()
    (line,) = results.read(tmp_path / "x.jsonl")
    assert (line["cell"], line["status"], line["error"]) == ("student", "failed", "teacher failed")


def test_a_thread_waits_for_a_teacher_in_training(runner, monkeypatch):
    """Else it would end, and the students have a thread less."""
    running, waits = runner(cell("student", needs="teacher")), []
    running.taken.add("teacher")

    def sleep(_):
        waits.append(1)
        running.stopped = len(waits) == 3

    monkeypatch.setattr("emmental.study.runner.time", SimpleNamespace(sleep=sleep))
    running.take_all(0)
    assert len(waits) == 3


def test_a_stopped_runner_ends_its_command_and_records_nothing(monkeypatch, tmp_path):
    handlers, log = {}, tmp_path / "cells" / "a" / "log"
    monkeypatch.setattr("signal.signal", lambda number, handler: handlers.update({number: handler}))

    def stop():
        for _ in range(600):
            if log.exists() and log.read_text().endswith("begun\n"):
                break
            time.sleep(0.05)
        handlers[signal.SIGTERM](signal.SIGTERM, None)

    threading.Thread(target=stop, daemon=True).start()
    cells = [cell("a", "trap 'echo ended; exit 1' TERM; echo begun; sleep 60 & wait"), cell("b")]
    with pytest.raises(SystemExit) as end:
        run_cells(cells, Places(tmp_path, "", ""), tmp_path / "x.jsonl", 1)
    assert end.value.code == 130 and log.read_text().endswith("begun\nended\n")
    assert results.read(tmp_path / "x.jsonl") == [] and not (tmp_path / "cells" / "b" / "log").exists()
