"""The scripts on a CUDA device: nothing mixes, the step does not wait, and the numbers are the CPU's.

On a real GPU where there is one, otherwise on a pretend one, which also counts kernel launches, and in which faults are
injected that have to be found.
"""

import json
import shutil
import socket
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import HARD, HEAVY, SOFT, TRAIN, World, launcher, log, make_model

from emmental.model.families import FAMILIES

REAL = torch.backends.cuda.is_built()
DEVICE = "real_device" if REAL else "pretend_device"
pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() if REAL else not shutil.which("g++"), reason="needs a GPU, or g++ and a CPU's torch"
)
pretended = pytest.mark.skipif(REAL, reason="needs the pretend device, which is for a torch without CUDA")

L0 = ["--pruning_method", "l0", "--initial_threshold", 1, "--final_threshold", 1, "--mask_scale", 2.197]
GLOBAL = ["--pruning_method", "threshold", "--final_threshold", 0.1, "--global_topk"]
SOFT = [*SOFT, "--mask_scores_learning_rate", 1]  # enough to prune some
CASES = {  # task, whether contrasted and distilled, flags
    "topK": ("qqp", True, [*HARD, "--cl_supervised_loss_weight", 10]),
    "soft": ("qqp", True, [*SOFT, "--alignrep", "mean-pooling"]),
    "steered": ("qqp", True, [*SOFT, "--target_sparsity", 0.5]),
    "questions, soft": ("squad1", True, SOFT),
    "questions, topK": ("squad1", True, [*HARD, "--pad_to_max_length"]),
    "accumulated": ("qqp", True, [*HARD, "--gradient_accumulation_steps", 2, "--bank_dtype", "float16"]),
    "magnitude": ("qqp", True, ["--pruning_method", "magnitude", "--final_threshold", 0.1]),
    "global": ("qqp", True, [*GLOBAL, "--global_topk_frequency_compute", 2]),
    "l0": ("qqp", False, [*L0, "--regularization", "l0", "--final_lambda", 10]),
    "regression": ("sts-b", False, HARD),
}
HALF = {  # what a CPU computes otherwise, or not at all
    "bfloat16": ("qqp", True, [*HARD, "--bf16"]),
    "bfloat16, questions": ("squad1", True, [*HARD, "--bf16", "--pad_to_max_length"]),
    "float16": ("qqp", True, [*HARD, "--fp16"]),
}
# What a step may wait for: a look at the scores, for one cut of all or for lambda, and, with all of its own work queued
# already, the end of the step before, of which float16 has to know whether it was skipped.
MAY_WAIT = {
    "global": ["global_cut", "kth_largest"],
    "steered": ["LambdaController.measure"],
    "float16": ["start_to_host.<locals>.wait", "Optimizer.updates"],
    "two processes": ["batch_loss"],  # DistributedDataParallel orders its buckets, once
}
# The softmax over keys, or over positions, cancels these: their gradient is rounding, of which Adam makes whole steps.
UNDETERMINED = ("key.bias", "qa_outputs.bias")


def fast_first(*names: str) -> list:
    first, *others = names
    return [first, *(pytest.param(name, marks=pytest.mark.slow) for name in others)]


def command(world: World, name: str) -> list:
    task, contrasted, flags = (CASES | HALF)[name]
    return [*world.command(task, world.still_model), *TRAIN, *(world.cap(task) if contrasted else []), *flags]


def start(folder: Path, *flags, name: str = "", fault: str | None = None, report: Path | None = None, environ=None):
    report = report or folder.with_suffix(".json")
    before = (f"{DEVICE}.start", str(report), fault, name in MAY_WAIT)
    return launcher(DEVICE, *HEAVY).start(*flags, "--output_dir", folder, before=before, environ=environ)


def on_device(folder: Path, *flags, **settings) -> dict:
    """Runs a script that must succeed; returns what it did, see pretend_device.Record."""
    answer = start(folder, *flags, **settings).wait()
    assert answer.code == 0, answer.err[-3000:]
    return json.loads(folder.with_suffix(".json").read_text())


def check_waits(record: dict, may_wait: Sequence[str] = ()) -> None:
    assert record["launches"], "no step was watched"
    waits = {place: count for place, count in record["inside"].items() if place.rpartition(" in ")[2] not in may_wait}
    assert not waits, f"the step waits: {waits}"


def check_same(folder: Path, expected: Path) -> None:
    """Every line of the log, to 1e-5 on the pretend device, and the model's tensors.

    Two things look worse than they are: where two scores at the cut differ by no more than rounding, a device may keep
    the one and a CPU the other, which another seed ends; and steering takes lambda to 1e5, where rounding alone moves
    the penalty by 2e-3 or more, 3e-6 of its value.
    """
    lines, others = log(folder), log(expected)
    assert len(lines) == len(others) > 0
    for line, other in zip(lines, others, strict=True):
        close = 1e-2 if REAL else 1e-5
        assert line == pytest.approx(other, rel=close, abs=close), "another number"
    tensors, others = (load_file(path / "model.safetensors") for path in (folder, expected))
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        if not name.endswith(UNDETERMINED) and not REAL:
            torch.testing.assert_close(tensor, others[name], rtol=1e-4, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.fixture(scope="module")
def on_cpu(world):
    """A function: the folder of a command's run on the CPU."""
    made = {}

    def run(*flags) -> Path:
        if (key := str(flags)) not in made:
            made[key] = world.folder / f"on-cpu-{len(made)}"
            answer = launcher(DEVICE, *HEAVY).start(*flags, "--no_cuda", "--output_dir", made[key]).wait()
            assert answer.code == 0, answer.err[-3000:]
        return made[key]

    return run


@pytest.mark.parametrize("name", fast_first(*CASES))
def test_numbers_are_the_cpus_and_the_step_does_not_wait(world, on_cpu, tmp_path, name):
    flags = command(world, name)
    record = on_device(tmp_path / "out", *flags, name=name)
    check_waits(record, MAY_WAIT.get(name, ()))
    check_same(tmp_path / "out", on_cpu(*flags))


@pytest.mark.slow
@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "bert"])
def test_every_family_has_the_cpus_numbers_and_does_not_wait(on_cpu, tmp_path, family):
    flags = command(World(tmp_path / "world", family), "topK")
    check_waits(on_device(tmp_path / "out", *flags))
    check_same(tmp_path / "out", on_cpu(*flags))


@pretended
def test_banks_in_host_memory_give_the_same_without_a_wait(world, on_cpu, tmp_path):
    flags = command(world, "topK")
    check_waits(on_device(tmp_path / "out", *flags, fault="two_columns_fit"))
    check_same(tmp_path / "out", on_cpu(*flags))


@pytest.mark.parametrize("name", fast_first(*HALF))
def test_half_precision_runs_and_the_step_does_not_wait(world, tmp_path, name):
    check_waits(on_device(tmp_path / "out", *command(world, name), name=name), MAY_WAIT.get(name, ()))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["topK", "float16"])
def test_a_resumed_run_ends_the_same(world, tmp_path, name):
    flags = [*command(world, name), "--resume_from_checkpoint", "auto"]
    on_device(tmp_path / "whole", *flags, name=name)
    stop_early(tmp_path / "whole", tmp_path / "resumed")
    check_waits(on_device(tmp_path / "resumed", *flags, name=name), MAY_WAIT.get(name, ()))
    check_same(tmp_path / "resumed", tmp_path / "whole")


def stop_early(finished: Path, folder: Path) -> None:
    """Copies a finished run as if it had been killed after its first checkpoint."""
    shutil.copytree(finished, folder)
    _, *later = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    for path in later:
        shutil.rmtree(path)
    (folder / "model.safetensors").unlink()


@pytest.mark.skipif(REAL and torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_processes_give_the_numbers_of_one(world, on_cpu, tmp_path):
    """By NCCL on two real GPUs; pretended as on two nodes with a GPU each: every process calls its own cuda:0."""
    flags = command(world, "topK")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        environ = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1]), "WORLD_SIZE": "2"}
    reports = [tmp_path / f"{rank}.json" for rank in range(2)]
    processes = [
        start(
            *(tmp_path / "out", *flags, "--per_gpu_train_batch_size", 4),
            name="two processes",
            report=report,
            environ=environ | {"RANK": str(rank), "LOCAL_RANK": str(rank) if REAL else "0"},
        )
        for rank, report in enumerate(reports)
    ]
    for answer in [process.wait() for process in processes]:
        assert answer.code == 0, answer.err[-3000:]
    check_same(tmp_path / "out", on_cpu(*flags))
    for record in (json.loads(report.read_text()) for report in reports):
        check_waits(record, MAY_WAIT["two processes"])
        assert sum(record["inside"].values()) <= 4


FAULTS = {  # name -> what tells
    "labels_on_the_host": "same device",
    "bank_index_on_the_host": "same device",
    "identity_on_the_host": "same device",
    "norm_is_read": "the step waits: .*_local_scalar_dense",
    "loss_is_indexed_by_a_mask": "the step waits: .*nonzero",
    "copies_from_pageable_memory": "the step waits: .*pageable",
    "last_of_ties_wins": "another number",
    "gradients_swapped": "another number",
}


@pretended
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(world, on_cpu, tmp_path, fault):
    # from the first step on, half of the scores are pruned, and all of them tie
    flags = [*command(world, "topK"), "--initial_threshold", 0.5, "--max_steps", 3, "--save_steps", 0]
    expected = on_cpu(*flags)
    with pytest.raises(AssertionError, match=FAULTS[fault]):
        check_waits(on_device(tmp_path / "out", *flags, fault=fault))
        check_same(tmp_path / "out", expected)


@pretended
def test_moments_that_stay_on_the_host_are_found(world, tmp_path):
    flags = [*command(world, "topK"), "--max_steps", 5, "--resume_from_checkpoint", "auto"]
    on_device(tmp_path / "whole", *flags)
    stop_early(tmp_path / "whole", tmp_path / "resumed")
    with pytest.raises(AssertionError, match="same device"):
        on_device(tmp_path / "resumed", *flags, fault="moments_on_the_host")


@pretended
@pytest.mark.slow
@pytest.mark.parametrize("name, most", [("topK", 1500), ("soft", 1600), ("bfloat16", 1950)])
def test_a_step_of_twelve_layers_launches_few_kernels(world, tmp_path, name, most):
    """Views and allocations left out; at 7cf022a it was over 2,100, 2,500 and 2,600."""
    model = make_model(tmp_path / "model", num_hidden_layers=12)
    record = on_device(tmp_path / "out", *command(world, name), "--model_name_or_path", model)
    _, *later = record["launches"]  # the first one makes the moments
    print(later)
    assert max(later) <= most
