"""One run per folder: the second is refused in one line that names the first, and a lock ends with its process."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from tiny import HARD, ROOT, TRAIN, result, run_script, start_script, succeed

from emmental.utils.errors import InputError
from emmental.utils.lock import lock_folder

AUTO = ["--resume_from_checkpoint", "auto"]


@pytest.fixture(scope="module")
def command(world):
    return [*world.command("qqp"), *TRAIN, *HARD, "--max_steps", 8]


@contextmanager
def stopped(command, folder, function="Optimizer.step", nth=6):
    """A run that is stopped in the `nth` call of a function; it goes on in the end, and must then succeed."""
    first = start_script(*command, "--output_dir", folder, before=("hit", signal.SIGSTOP, function, nth))
    for _ in range(600):
        if Path(f"/proc/{first.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T":
            break
        time.sleep(0.1)
    try:
        yield first.pid
    finally:
        os.kill(first.pid, signal.SIGCONT)
        answer = first.wait()
    assert answer.code == 0, answer.err


def refused(command, folder, pid, *flags):
    before = {path: path.lstat().st_mtime_ns for path in folder.rglob("*")}
    answer = run_script(*command, "--output_dir", folder, *flags)
    assert answer.code == 2 and len(answer.err.splitlines()) == 1, answer.err
    day = time.strftime("%Y-%m-%d")
    told = f"--output_dir {folder}: in use by process {pid} on {socket.gethostname()} since {day} "
    assert told in answer.err and "one run per folder" in answer.err
    assert {path: path.lstat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_second_run_is_refused_and_the_first_does_not_notice(world, command, tmp_path):
    """Training anew, going on, and evaluation into the folder of a running training; reading from it is free."""
    alone, folder = tmp_path / "alone", tmp_path / "run"
    succeed(*command, "--output_dir", alone)
    with stopped(command, folder) as pid:
        for flags in (AUTO, ["--overwrite_output_dir"], ["--resume_from_checkpoint", folder / "checkpoint-3"]):
            refused(command, folder, pid, *flags)
        evaluation = [*world.command("qqp", alone), "--do_eval"]
        refused(evaluation, folder, pid)
        checkpoint = [*world.command("qqp", folder / "checkpoint-3"), "--do_eval", "--output_dir", tmp_path / "read"]
        succeed(*checkpoint)
    assert (alone / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert result(alone) == result(folder)
    assert {path.name for path in alone.iterdir()} == {path.name for path in folder.iterdir()}


def test_a_training_into_the_folder_of_a_running_evaluation_is_refused(world, command, tmp_path):
    trained, folder = tmp_path / "trained", tmp_path / "evaluation"
    succeed(*command, "--output_dir", trained)
    flags = [*world.command("qqp", trained), "--do_eval"]
    with stopped(flags, folder, "predict", 1) as pid:
        refused(command, folder, pid, *AUTO)
    assert {path.name for path in folder.iterdir()} == {"result.json", "eval_results.txt"}


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_lock_ends_with_its_process(command, tmp_path, number):
    """However it ends; what it leaves makes no empty folder a used one."""
    folder = tmp_path / "run"
    run_script(*command, "--output_dir", folder, before=("hit", number, "load_student", 1))
    assert not folder.exists() or {path.name for path in folder.iterdir()} == {".lock"}
    succeed(*command, "--output_dir", folder)  # as without auto
    run_script(*command, "--output_dir", folder, "--overwrite_output_dir", before=("hit", number, "Optimizer.step", 4))
    succeed(*command, "--output_dir", folder, *AUTO)
    assert not (folder / ".lock").exists()


HOLD = """
import sys, time
from pathlib import Path
from emmental.utils.lock import lock_folder
lock_folder(Path(sys.argv[1]))
print("held", flush=True)
{rest}
"""


def test_many_at_once_leave_one(tmp_path):
    """Of eight processes that start together one has the folder, and the others name it; it leaves nothing in there."""
    folder = tmp_path / "a" / "b"
    settings = {"cwd": ROOT, "text": True, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    program = [sys.executable, "-c", HOLD.format(rest="sys.stdin.read()"), folder]
    holders = [subprocess.Popen(program, stdin=subprocess.PIPE, **settings) for _ in range(8)]
    losers = [x for x in holders if x.stdout.readline() != "held\n"]  # an empty line is that of one that ended
    assert len(losers) == 7
    (winner,) = {*holders} - {*losers}
    for loser in losers:
        assert f"in use by process {winner.pid} on" in loser.communicate()[1]
    winner.communicate("")
    assert not any(path.is_file() for path in tmp_path.rglob("*"))  # a loser may have made the folder: that stays


def test_a_folder_made_for_nothing_is_gone(tmp_path):
    subprocess.run([sys.executable, "-c", HOLD.format(rest=""), tmp_path / "a" / "b"], cwd=ROOT, check=True)
    assert not any(tmp_path.iterdir())


def test_a_child_does_not_outlive_the_lock(tmp_path):
    """A process that is started by the holder, and goes on, holds nothing."""
    rest = "import subprocess; subprocess.Popen(['sleep', '60'], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)"
    for _ in range(2):
        ran = subprocess.run(
            [sys.executable, "-c", HOLD.format(rest=rest), tmp_path], cwd=ROOT, capture_output=True, text=True
        )
        assert ran.stdout == "held\n", ran.stderr


LEAVE = """
import os, threading
from emmental.utils import group
def end(code, end=os._exit):
    print("a file" if (Path(sys.argv[1]) / ".lock").exists() else "none", flush=True)
    end(code)
os._exit = end
threading.Thread(target=group.leave_at_once, args=(3,)).start()
time.sleep(60)
"""


def test_a_process_that_another_thread_ends_holds_the_lock_to_its_end(tmp_path):
    """The main thread may be writing until then; what is left locks nothing."""
    for rest, said, code in ((LEAVE, "held\na file\n", 3), ("", "held\n", 0)):
        command = [sys.executable, "-c", HOLD.format(rest=rest), tmp_path]
        ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert (ran.stdout, ran.returncode) == (said, code), ran.stderr


def test_a_process_may_lock_twice(tmp_path):
    """As one does that runs two scripts, one after the other; a child that it forks may not."""
    rest = "other = Path(sys.argv[1]) / '..' / Path(sys.argv[1]).name\n"
    rest += "lock_folder(other)\n"
    rest += "import os\nif not os.fork():\n    lock_folder(other)\n    print('twice')\nos.wait()"
    program = HOLD.format(rest=rest)
    ran = subprocess.run([sys.executable, "-c", program, tmp_path], cwd=ROOT, capture_output=True, text=True)
    assert ran.stdout == "held\n" and "in use by process" in ran.stderr


def test_a_folder_that_cannot_be_locked_is_used_all_the_same(command, tmp_path):
    shutil.rmtree(tmp_path)
    ran = run_script(*command, "--output_dir", tmp_path, before=("no_locks",))
    assert ran.code == 0 and f"--output_dir {tmp_path}: cannot be locked (No locks available)" in ran.out


def test_a_folder_that_cannot_be_made_is_refused():
    """Also where the kernel says that a folder above it is missing, as it does once another process removed it."""
    with pytest.raises(InputError, match="--output_dir /proc/none: No such file or directory"):
        lock_folder(Path("/proc/none"))
