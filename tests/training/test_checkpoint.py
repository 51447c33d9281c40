"""What is not finite is never saved, and only what is no longer needed is removed."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from emmental.training.checkpoint import TENSORS, TrainingState, check_finite, clear, remove_old, restore, save
from emmental.training.logs import Losses
from emmental.training.loop import Progress
from emmental.training.optimizer import Optimizer
from emmental.utils.errors import InputError


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_weight_that_is_not_finite_is_named(value):
    state = SimpleNamespace(model=nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3)), progress=Progress(step=7))
    check_finite(state)
    with torch.no_grad():
        state.model[1].bias[2] = value
    with pytest.raises(InputError, match=r"^step 7: 1 weights are NaN or infinite, the first 1\.bias;"):
        check_finite(state)


def test_a_resumed_run_does_not_need_its_checkpoints_file(tmp_path):
    """Its moments are copies: what a CPU has mapped would take up the disk for as long as the run goes on."""
    states = []
    for _ in range(2):
        model, rates = nn.Linear(3, 2), {"learning_rate": 0.1, "mask_scores_learning_rate": 0.1}
        rest = {"weight_decay": 0.0, "epsilon": 1e-8, "max_grad_norm": 1.0, "warmup_steps": 0, "total_steps": 9}
        optimizer = Optimizer(model, **rates, **rest)
        states.append(TrainingState(model, optimizer, None, Progress(), Losses(), {}, {}, torch.device("cpu")))
    first, second = states
    first.optimizer.backward(first.model(torch.ones(1, 3)).sum())
    first.optimizer.step(0)

    def save_model(folder):
        folder.mkdir()
        save_file(first.model.state_dict(), folder / "model.safetensors")

    save(tmp_path / "checkpoint-1", first, save_model)
    restore(tmp_path / "checkpoint-1", second)
    with open(tmp_path / "checkpoint-1" / TENSORS, "r+b") as file:
        file.write(bytes(file.seek(0, 2) - file.seek(0)))
    for one, other in zip(first.optimizer.adamw.state.values(), second.optimizer.adamw.state.values(), strict=True):
        assert torch.equal(one["exp_avg"], other["exp_avg"]) and one["exp_avg"].any()


def test_checkpoints_of_later_steps_are_not_counted(tmp_path):
    """A run that went back to step 3 has just saved 6 and keeps one; the old 9 does not take its place."""
    for step in (3, 6, 9):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "state.json").write_text(json.dumps({"step": step}))
    remove_old(tmp_path, 1, SimpleNamespace(progress=Progress(step=6), passed_over=set()))
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-6", "checkpoint-9"}


def test_overwriting_removes_a_runs_files_and_no_others(tmp_path):
    """Folders that only look like checkpoints are somebody's."""
    of_a_run = ["eval_results.txt", "predictions_.json", "nbest_predictions_.json", "null_odds_.json", "result.json"]
    for name in [*of_a_run, "README.md", "model.safetensors", "notes.txt"]:
        (tmp_path / name).touch()
    for name in ("checkpoint-2", "checkpoint-of-mine", "banks", "tensorboard"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-2" / "state.json").write_text("{}")
    clear(tmp_path, resumed=False)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-of-mine", "notes.txt"}
