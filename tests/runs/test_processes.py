"""Several processes on gloo give the numbers of one; one that fails takes the others with it."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file
from tiny import HARD, ROOT, SOFT, TRAIN, log, result, start_script, succeed
from torch.distributed import DistBackendError

from emmental.utils import distributed
from emmental.utils.errors import GRACE, InputError, report

CONFIGURATIONS = {  # 26 rows in batches of 8: the last batch of an epoch has two, fewer than four processes
    "qqp, topK": ("qqp", [*HARD, "--weight_decay", 0.1]),
    "qqp, soft, two batches a step": ("qqp", [*SOFT, "--gradient_accumulation_steps", 2, "--alignrep", "mean-pooling"]),
    "questions, soft": ("squad1", SOFT),
    "questions, topK": ("squad1", [*HARD, "--pad_to_max_length"]),
}


def start(command, count, folder, before=None):
    """Starts `count` processes on one global batch of 8; all but the first may write nothing: no file may grow."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environ = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    flags = [*command, "--per_gpu_train_batch_size", 8 // count, "--output_dir", folder]
    return [
        start_script(
            *flags,
            environ=environ | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            before=(before or {}).get(rank, ("limit_file_size", 0) if rank else ()),
        )
        for rank in range(count)
    ]


def run(command, count, folder, before=None):
    return [process.wait() for process in start(command, count, folder, before)]


def test_processes_draw_dropout_of_their_own(world, tmp_path):
    """Padded to one length: texts of other lengths would make their states differ in any case."""
    command = [*world.command("qqp"), *TRAIN, "--model_type", "bert", "--max_steps", 4, "--pad_to_max_length"]
    assert [answer.code for answer in run(command, 2, tmp_path)] == [0, 0]
    state = load_file(tmp_path / "checkpoint-3" / "training_state.safetensors")
    assert not torch.equal(state["random/cpu/0"], state["random/cpu/1"])


@pytest.fixture(scope="module")
def alone(world):
    """A function: the folder of a command's run in one process without torchrun."""
    made = {}

    def run_alone(command):
        if str(command) not in made:
            made[str(command)] = world.folder / f"alone-{len(made)}"
            succeed(*command, "--output_dir", made[str(command)])
        return made[str(command)]

    return run_alone


def still(world, task, flags):
    """A command without dropout; the teacher's is off in any case."""
    return [*world.command(task, world.still_model), *TRAIN, *world.cap(task), *flags]


def check_same(folder, expected):
    lines, others = log(folder), log(expected)
    assert len(lines) == len(others)
    for line, other in zip(lines, others, strict=True):
        assert line == pytest.approx(other, rel=1e-5, abs=1e-5)
    assert result(folder) == pytest.approx(result(expected), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize(
    "name, count",
    [
        *[("qqp, topK", 1), ("qqp, topK", 4), *((name, 2) for name in CONFIGURATIONS)],
        *(pytest.param(name, 4, marks=pytest.mark.slow) for name in CONFIGURATIONS if name != "qqp, topK"),
    ],
)
def test_losses_equal_single_process(world, alone, tmp_path, name, count):
    command = still(world, *CONFIGURATIONS[name])
    expected = alone(command)
    answers = run(command, count, tmp_path)
    assert [answer.code for answer in answers] == [0] * count, answers[-1].err
    assert all(answer.out == "" for answer in answers[1:])
    check_same(tmp_path, expected)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in expected.iterdir()}


@pytest.mark.parametrize("before, after", [(1, 2), (2, 1), pytest.param(4, 2, marks=pytest.mark.slow)])
def test_resume_with_another_number_of_processes_gives_the_same(world, alone, tmp_path, before, after):
    """A signal to one process stops them all at the same step."""
    command = still(world, "qqp", HARD)
    expected = alone(command)
    stopped = run(command, before, tmp_path, {before - 1: ("hit", signal.SIGTERM, "Optimizer.step", 6)})
    assert [answer.code for answer in stopped] == [143] * before
    assert "checkpoint-6" in stopped[0].out
    went_on = run([*command, "--resume_from_checkpoint", "auto"], after, tmp_path)
    assert [answer.code for answer in went_on] == [0] * after, went_on[-1].err
    check_same(tmp_path, expected)


def test_two_processes_resume_bit_for_bit_with_dropout(world, tmp_path):
    """Each of two processes goes on from its own random state."""
    command = [*world.command("qqp"), *TRAIN, *world.cap("qqp"), *SOFT, "--snapshot_mode", "eval"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert [answer.code for answer in run(command, 2, whole)] == [0, 0]
    stop = ("hit", signal.SIGINT, "Optimizer.step", 5)
    assert [answer.code for answer in run(command, 2, parts, {0: stop})] == [130, 130]
    assert [a.code for a in run([*command, "--resume_from_checkpoint", "auto"], 2, parts)] == [0, 0]
    assert (whole / "model.safetensors").read_bytes() == (parts / "model.safetensors").read_bytes()
    assert result(whole) == result(parts) and log(whole) == log(parts)


def test_evaluation_with_more_processes_than_batches_gives_the_same(world, alone, tmp_path):
    """More processes than batches: the dev set is one batch, which one process evaluates."""
    trained = alone(still(world, "qqp", HARD))
    command = [*world.command("qqp", trained), "--do_eval"]
    assert [answer.code for answer in run(command, 4, tmp_path)] == [0] * 4
    assert result(tmp_path) == pytest.approx(result(trained), rel=1e-5)


def test_a_process_that_dies_ends_the_others(world, tmp_path):
    """Without torchrun's help, by the closed connection."""
    begun = time.monotonic()
    command = still(world, "qqp", HARD)
    answers = run(command, 2, tmp_path, {1: ("hit", signal.SIGKILL, "Optimizer.step", 4)})
    assert answers[1].code == -signal.SIGKILL and answers[0].code not in (0, -signal.SIGKILL)
    assert time.monotonic() - begun < 60
    assert (tmp_path / "checkpoint-3").exists() and not (tmp_path / "result.json").exists()
    went_on = run([*command, "--resume_from_checkpoint", "auto"], 2, tmp_path)
    assert [answer.code for answer in went_on] == [0, 0]


def test_nothing_is_left_at_the_end(world, tmp_path):
    """Every process has left its group, and has nothing to say on standard error but its progress."""
    before = {rank: ("watch_group", str(tmp_path / str(rank))) for rank in (0, 1)}
    answers = run(still(world, "qqp", HARD), 2, tmp_path / "run", before)
    assert [answer.code for answer in answers] == [0, 0]
    assert [(tmp_path / str(rank)).read_text() for rank in (0, 1)] == ["False", "False"]
    assert answers[0].err.startswith("steps: 12/12") and len(answers[0].err.splitlines()) == 1
    assert answers[1].err == ""


@pytest.mark.parametrize("function", ["Optimizer.step", "_Gather.backward"])
def test_an_error_of_one_process_ends_the_others(world, tmp_path, function):
    """That one says what its error is, the other in one line why it ends."""
    begun = time.monotonic()
    answers = run(still(world, "qqp", HARD), 2, tmp_path, {1: ("fail", function, 4)})
    assert [answer.code for answer in answers] == [1, 1] and time.monotonic() - begun < 30
    assert "Traceback" in answers[1].err and answers[1].err.endswith("ValueError: broken on purpose\n")
    (line,) = answers[0].err.splitlines()
    start, reason = line.split(" (")
    assert start == (
        "masked_run_glue.py: error: [process 0] another process has ended or cannot be reached, and so this one ends"
    )
    assert "onnection" in reason


FAILS, KILLED = ("fail", "Optimizer.step", 4), ("hit", signal.SIGKILL, "Optimizer.step", 4)


@pytest.mark.slow
@pytest.mark.parametrize("end", [FAILS, KILLED], ids=["fails", "killed"])
def test_processes_that_wait_for_a_gpu_end_with_another(world, tmp_path, end):
    """Where no call to gloo tells a host, since it is blocked, as by an NCCL kernel; the news goes round."""
    begun, blocked = time.monotonic(), ("block", "Optimizer.step", 4)
    answers = run(still(world, "qqp", HARD), 4, tmp_path, {0: blocked, 1: end, 2: blocked, 3: blocked})
    assert [answers[rank].code for rank in (0, 2, 3)] == [1, 1, 1] and time.monotonic() - begun < 60
    for rank, left in ((2, 1), (3, 2), (0, 3)):
        assert f"error: [process {rank}] process {left} has ended before its time" in answers[rank].err


@pytest.mark.slow
def test_an_error_does_not_hang_at_the_end(world, tmp_path):
    """An exit handler that waits for ever, as one may for another process, is cut short."""
    begun = time.monotonic()
    answers = run(still(world, "qqp", HARD), 2, tmp_path, {1: ("fail", "Optimizer.step", 4, True)})
    assert answers[1].code == -signal.SIGALRM and "broken on purpose" in answers[1].err
    assert answers[0].code == 1 and time.monotonic() - begun < 30


@pytest.mark.slow
def test_a_process_that_dies_at_its_goodbye_ends_the_others(world, tmp_path):
    """In one line, though the run is finished."""
    answers = run(still(world, "qqp", HARD), 2, tmp_path, {1: ("hit", signal.SIGKILL, "Watch.say_goodbye", 1)})
    assert answers[0].code == 1
    assert "Traceback" not in answers[0].err and "ended" in answers[0].err.splitlines()[-1]


@pytest.mark.parametrize(
    "text, lost",
    [("Connection reset by peer", True), ("Duplicate GPU detected", False), ("the server has failed to listen", False)],
)
def test_only_a_lost_connection_is_called_one(capsys, text, lost):
    """What else torch's errors say is about this process, and comes with its traceback."""
    assert report(DistBackendError(text)) == 1
    said = capsys.readouterr().err
    assert ("another process has ended" in said) == lost and ("DistBackendError" in said) != lost


@pytest.mark.parametrize("rank, loaded, waits", [("0", False, False), ("3", False, True), ("3", True, False)])
def test_a_wrong_flag_is_left_to_process_0(monkeypatch, capsys, rank, loaded, waits):
    waited = []
    monkeypatch.setattr(time, "sleep", lambda seconds: waited.append((seconds, capsys.readouterr().err)))
    monkeypatch.setenv("LOCAL_RANK", rank)
    if not loaded:
        monkeypatch.delitem(sys.modules, "torch")
    assert report(InputError("--x: no")) == 2
    assert waited == [(GRACE, "")] * waits and capsys.readouterr().err.count("--x: no") == 1


def test_torchrun_answers_a_wrong_flag_once():
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    ran = subprocess.run([*launch, ROOT / "masked_run_glue.py", "--wrong"], capture_output=True, text=True, timeout=100)
    assert ran.returncode != 0 and ran.stderr.count("error: [process") == ran.stderr.count("[process 0]") == 1


def test_a_folder_that_processes_do_not_share_is_refused(world, tmp_path):
    """As on two nodes, each of which has an output_dir of its own."""
    command, folders = (
        [*still(world, "qqp", HARD), "--resume_from_checkpoint", "auto"],
        [tmp_path / "a", tmp_path / "b"],
    )
    for folder in folders:
        folder.mkdir()
    own = {rank: ("os.chdir", str(folder)) for rank, folder in enumerate(folders)}
    run(command, 2, folders[0] / "run", {0: ("hit", signal.SIGTERM, "Optimizer.step", 6)})
    answers = run(command, 2, "run", own)
    assert [answer.code for answer in answers] == [1, 2]
    wrong = "--output_dir run: process 1 does not find checkpoint-6, from which process 0 goes on; all nodes have to"
    assert wrong in answers[1].err and "another process has ended" in answers[0].err


def test_several_processes_have_one_lock(world, alone, tmp_path):
    """The first holds it; a second run is refused by one line, and all its processes end. A finished run ends all."""
    command, folder = still(world, "qqp", HARD), tmp_path / "run"
    first = start(command, 2, folder, {0: ("hit", signal.SIGSTOP, "Optimizer.step", 5)})
    while not (folder / "checkpoint-3").exists():
        time.sleep(0.1)
    begun = time.monotonic()
    answers = run([*command, "--resume_from_checkpoint", "auto"], 2, folder)
    assert [answer.code for answer in answers] == [2, 2] and time.monotonic() - begun < 60
    told, *others = [line for answer in answers for line in (answer.out + answer.err).splitlines()]
    assert f"error: [process 0] --output_dir {folder}: in use by process {first[0].pid} on" in told and not others
    time.sleep(1)  # it has come to its fifth step meanwhile
    os.kill(first[0].pid, signal.SIGCONT)
    assert [process.wait().code for process in first] == [0, 0]
    check_same(folder, alone(command))
    before = {path: path.lstat().st_mtime_ns for path in (folder, *folder.rglob("*"))}
    answers = run([*command, "--resume_from_checkpoint", "auto"], 2, folder)
    assert [answer.code for answer in answers] == [0, 0] and answers[1].out == "" and not answers[0].err
    assert "this run is finished" in answers[0].out and len(answers[0].out.splitlines()) == 1
    assert {path: path.lstat().st_mtime_ns for path in (folder, *folder.rglob("*"))} == before


def test_checkpoints_that_cannot_be_used_end_all(world, tmp_path):
    command, folder = still(world, "qqp", HARD), tmp_path / "run"
    run(command, 2, folder, {0: ("hit", signal.SIGKILL, "Optimizer.step", 8)})
    shutil.rmtree(folder / "banks")
    answers = run([*command, "--resume_from_checkpoint", "auto"], 2, folder, {1: ()})
    assert [answer.code for answer in answers] == [2, 2]
    assert all("has no complete checkpoint; checkpoint-6" in answer.err for answer in answers)


def test_a_full_disk_ends_all_processes(world, tmp_path):
    answers = run(still(world, "qqp", HARD), 2, tmp_path, {0: ("limit_file_size", 200_000)})
    assert answers[0].code == 2 and "error: [process 0]" in answers[0].err and "could not be written" in answers[0].err
    assert answers[1].code != 0 and not list(tmp_path.glob("checkpoint-*"))


@pytest.mark.slow
def test_torchrun_gives_the_same_and_names_the_failing_process(world, alone, tmp_path):
    """The real launcher: the same numbers, and the message of the process whose data are missing, within seconds."""
    command = still(world, "qqp", HARD)
    script, *flags = map(str, [*command, "--per_gpu_train_batch_size", 4, "--output_dir"])
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    settings = {"cwd": ROOT, "capture_output": True, "text": True, "timeout": 300}
    expected = alone(command)
    ran = subprocess.run([*launch, script, *flags, tmp_path / "out"], **settings)
    assert ran.returncode == 0, ran.stderr
    check_same(tmp_path / "out", expected)

    # the second process finds no data: its folder is named by its rank
    wrapper, data = tmp_path / "by_rank.py", tmp_path / "data-0"
    shutil.copytree(world.data("qqp"), data)
    wrapper.write_text(
        "import os, runpy, sys\n"
        "sys.argv = [word.replace('RANK', os.environ['RANK']) for word in sys.argv[1:]]\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    flags += [str(tmp_path / "never"), "--data_dir", str(tmp_path / "data-RANK")]
    begun = time.monotonic()
    failed = subprocess.run([*launch, wrapper, ROOT / script, *flags], **settings)
    assert failed.returncode != 0 and not (tmp_path / "never").exists()
    assert f"error: [process 1] {tmp_path / 'data-1'}" in failed.stderr
    assert time.monotonic() - begun < 60


@pytest.mark.parametrize(
    ("visible", "driver", "sign"),
    [
        (None, True, "/dev/nvidiactl is there"),
        ("4", False, "CUDA_VISIBLE_DEVICES=4"),
        (None, False, ""),
        ("", True, ""),
        ("-1", True, ""),
        ("NoDevFiles", False, ""),  # Slurm's, of a job without GPUs
    ],
)
def test_a_gpu_that_cannot_be_used_is_no_reason_to_take_the_cpu(monkeypatch, visible, driver, sign):
    """A driver that is too old for torch, or a number that no GPU has: a run would take weeks."""
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(distributed.os.path, "exists", lambda path: driver and path == "/dev/nvidiactl")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    if sign:
        with pytest.raises(InputError, match=f"no GPU can be used, though {sign}; .* --no_cuda, or GPU=-1"):
            distributed.start(no_cuda=False)
    else:
        assert distributed.start(no_cuda=False).type == "cpu"
    assert distributed.start(no_cuda=True).type == "cpu"
