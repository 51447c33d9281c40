"""What both scripts share: the precision that flags ask for, and what is noticed between log lines."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from emmental import experiment
from emmental.data.batches import Plan
from emmental.training.logs import Log, Losses
from emmental.training.loop import Progress, StepResult
from emmental.utils.errors import InputError


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("tf32", [False, True])
def test_precision_is_that_of_the_flags(monkeypatch, tmp_path, bf16, tf32):
    asked = []
    monkeypatch.setattr(experiment, "lock_folder", lambda *_: None)
    monkeypatch.setattr(torch, "set_float32_matmul_precision", asked.append)
    args = SimpleNamespace(no_cuda=True, output_dir=str(tmp_path), fp16=False, bf16=bf16, tf32=tf32)
    monkeypatch.setattr(torch, "set_flush_denormal", lambda _: None)
    assert experiment.prepare(args).dtype == (torch.bfloat16 if bf16 else None)
    assert asked == ["high" if tf32 else "highest"]


def test_numbers_too_small_to_compute_with_fast_are_zero(monkeypatch, tmp_path):
    """Else Adam's moments of pruned weights end below 1e-38 for good: 0.9 times 4 of the smallest steps is 4 again."""
    monkeypatch.setattr(experiment, "lock_folder", lambda *_: None)
    moments = torch.full((8,), 1e-44)  # few, so that other threads, which started before, take no part
    assert (moments * 0.9).any()
    experiment.prepare(SimpleNamespace(no_cuda=True, output_dir=str(tmp_path), fp16=False, bf16=False, tf32=False))
    try:
        assert not (moments * 0.9).any()
    finally:
        torch.set_flush_denormal(False)


def test_a_nan_is_noticed_within_a_hundred_steps_however_rarely_one_logs(tmp_path):
    args = SimpleNamespace(output_dir=str(tmp_path), logging_steps=0, save_steps=0)
    state = SimpleNamespace(progress=Progress(), losses=Losses(), model=nn.Linear(1, 1))
    seen = []

    def steps():
        for step in range(1, 1001):
            seen.append(step)
            yield StepResult(step, 1.0, 0.0, {}, torch.tensor(0.0), {"task": torch.tensor(float("nan"))})

    with pytest.raises(InputError, match="step 1: the loss's part 'task' is nan"):
        experiment.log_and_save_steps(args, steps(), state, Plan(8000, 8, 1, 1, 0), None, None, Log(None))
    assert len(seen) == 100
