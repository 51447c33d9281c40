"""Several nodes: two torchrun launchers on this machine give the numbers of one process, resume, and end together."""

import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
from test_processes import check_same, still
from tiny import HARD, ROOT, log, result, succeed

pytestmark = pytest.mark.slow

# the script as torchrun runs it, in the second process with what may befall it
WRAPPER = f"""
import os, runpy, sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
import tiny
fault, sys.argv = sys.argv[1], sys.argv[2:]
if fault and os.environ["RANK"] == "1":
    exec(fault)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def two_nodes(tmp_path):
    """A function: how two launchers with a process each end, as (status, standard output, standard error)."""
    wrapper = tmp_path / "wrapper.py"
    wrapper.write_text(WRAPPER)

    def run(command, folder, fault="", rendezvous="static"):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        script, *flags = map(str, [*command, "--per_gpu_train_batch_size", 4, "--output_dir", folder])
        meeting = {
            "static": ["--master_addr", "127.0.0.1", "--master_port", port],
            "c10d": ["--rdzv_backend", "c10d", "--rdzv_endpoint", f"127.0.0.1:{port}", "--rdzv_id", "here"],
        }[rendezvous]
        nodes = []
        for node in (0, 1):
            launch = [sys.executable, "-m", "torch.distributed.run", "--nnodes", 2, "--node_rank", node, *meeting]
            words = [*launch, "--nproc_per_node", 1, wrapper, fault, ROOT / script, *flags]
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            nodes.append(subprocess.Popen([str(word) for word in words], cwd=ROOT, **pipes))
        answers = [node.communicate(timeout=200) for node in nodes]
        return [(node.returncode, *answer) for node, answer in zip(nodes, answers, strict=True)]

    return run


@pytest.mark.parametrize("rendezvous", ["static", "c10d"])
def test_two_nodes_give_the_numbers_of_one_process(world, two_nodes, tmp_path, rendezvous):
    command = still(world, "qqp", HARD)
    succeed(*command, "--output_dir", tmp_path / "alone")
    answers = two_nodes(command, tmp_path / "run", rendezvous=rendezvous)
    assert [code for code, _, _ in answers] == [0, 0], answers[1][2]
    check_same(tmp_path / "run", tmp_path / "alone")
    assert sum("results in" in out for _, out, _ in answers) == 1  # c10d chooses which node is the first
    assert not any("arning" in err for _, _, err in answers)


def test_two_nodes_resume_bit_for_bit_after_a_kill(world, two_nodes, tmp_path):
    """With dropout; the kill of one process ends both launchers."""
    command = [*still(world, "qqp", HARD), "--model_name_or_path", world.model]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert [code for code, _, _ in two_nodes(command, whole)] == [0, 0]
    begun = time.monotonic()
    answers = two_nodes(command, parts, f"tiny.hit({int(signal.SIGKILL)}, 'Optimizer.step', 8)")
    assert [code for code, _, _ in answers] == [1, 1] and time.monotonic() - begun < 90
    assert (parts / "checkpoint-6").exists() and not (parts / "result.json").exists()
    went_on = two_nodes([*command, "--resume_from_checkpoint", "auto"], parts)
    assert [code for code, _, _ in went_on] == [0, 0], went_on[1][2]
    assert (whole / "model.safetensors").read_bytes() == (parts / "model.safetensors").read_bytes()
    assert result(whole) == result(parts) and log(whole) == log(parts)


@pytest.mark.parametrize("rendezvous", ["static", "c10d"])
def test_an_error_on_one_node_ends_the_other(world, two_nodes, tmp_path, rendezvous):
    begun = time.monotonic()
    answers = two_nodes(still(world, "qqp", HARD), tmp_path / "run", "tiny.fail('Optimizer.step', 4)", rendezvous)
    assert [code for code, _, _ in answers] == [1, 1] and time.monotonic() - begun < 60
    told = "".join(err for _, _, err in answers)
    assert "ValueError: broken on purpose" in told
    assert "error: [process 0] another process has ended or cannot be reached, and so this one ends" in told
    shutil.rmtree(tmp_path / "run")
