"""float16's scaler skips steps: Adam's count, not the steps', corrects epsilon, and a few bad losses end nothing."""

import math

import pytest
import torch
from torch import nn

from emmental.training.logs import Losses
from emmental.training.optimizer import MAX_SKIPPED, Optimizer
from emmental.utils.errors import InputError

PEAK, EPSILON, STEPS = 0.1, 1e-2, 40


def optimizer_of(model, scale_loss=True):
    rates = {"learning_rate": PEAK, "mask_scores_learning_rate": PEAK, "weight_decay": 0.0, "epsilon": EPSILON}
    lengths = {"warmup_steps": 0, "total_steps": STEPS, "max_grad_norm": 1e9}
    return Optimizer(model, **rates, **lengths, scale_loss=scale_loss)


def released_adam(weight, gradients):
    """transformers' former AdamW in float64; a gradient of None is a step that is skipped."""
    weight, mean, square, updates = weight.double(), 0.0, 0.0, 0
    for step, gradient in enumerate(gradients):
        if gradient is not None:
            updates += 1
            mean = 0.9 * mean + 0.1 * gradient.double()
            square = 0.999 * square + 0.001 * gradient.double() ** 2
            rate = PEAK * (STEPS - step) / STEPS * math.sqrt(1 - 0.999**updates) / (1 - 0.9**updates)
            weight = weight - rate * mean / (square.sqrt() + EPSILON)
    return weight


@pytest.mark.parametrize("skipped", [{0, 1, 2}, {5, 9}, set()])
@pytest.mark.parametrize("resumed", [False, True])
def test_epsilon_follows_adams_own_count(skipped, resumed):
    """A run that goes on from saved moments in step 7 knows the count as well."""
    torch.manual_seed(0)
    model = nn.Linear(4, 3, bias=False)
    gradients = [None if step in skipped else 0.01 * torch.randn(3, 4) for step in range(12)]
    start, optimizer = model.weight.detach().clone(), optimizer_of(model)
    for step, gradient in enumerate(gradients):
        if resumed and step == 7:
            moments, scale = optimizer.adamw.state_dict(), optimizer.scaler.state_dict()
            optimizer = optimizer_of(model)
            optimizer.adamw.load_state_dict(moments)
            optimizer.scaler.load_state_dict(scale)
        slope = torch.full((3, 4), torch.inf) if gradient is None else gradient
        optimizer.backward((model.weight * slope).sum())
        optimizer.step(step)
    torch.testing.assert_close(model.weight.double(), released_adam(start, gradients), rtol=1e-5, atol=1e-7)


def test_without_scaling_the_steps_are_counted():
    torch.manual_seed(0)
    model = nn.Linear(4, 3, bias=False)
    gradients = [0.01 * torch.randn(3, 4) for _ in range(5)]
    start, optimizer = model.weight.detach().clone(), optimizer_of(model, scale_loss=False)
    for step, gradient in enumerate(gradients):
        optimizer.backward((model.weight * gradient).sum())
        optimizer.step(step)
    torch.testing.assert_close(model.weight.double(), released_adam(start, gradients), rtol=1e-5, atol=1e-7)


def parts(value: float) -> dict[str, torch.Tensor]:
    return {"task": torch.tensor(1.0), "distillation": torch.tensor(value)}


def test_bad_losses_in_a_row_end_a_run_and_single_ones_do_not():
    losses = Losses(tolerated=2)
    for value in (3.0, math.inf, math.nan, 5.0, -math.inf, math.inf):
        losses.add(parts(value))
    assert losses.means(6) == {"loss/total": 5.0, "loss/task": 1.0, "loss/distillation": 4.0}
    losses.add(parts(math.nan))  # the third in a row: what was read before counts as well
    with pytest.raises(
        InputError, match="step 7: the loss's part 'distillation' is nan, and 2 steps before it were no better"
    ):
        losses.read(7)


def test_a_part_that_begins_in_an_interval_adds_up_with_the_others():
    losses = Losses()
    losses.add({"task": torch.tensor(1.0)})
    losses.add({"task": torch.tensor(2.0), "snapshots": torch.tensor(4.0)})
    assert losses.means(2) == {"loss/total": 3.5, "loss/task": 1.5, "loss/snapshots": 2.0}


def test_without_a_scaler_one_is_enough():
    losses = Losses()
    losses.add(parts(1.0))
    losses.add(parts(math.inf))
    with pytest.raises(InputError, match="step 2: the loss's part 'distillation' is inf; earlier checkpoints are kept"):
        losses.read(2)


def test_an_interval_of_skipped_steps_has_no_means():
    losses = Losses(MAX_SKIPPED)
    for _ in range(MAX_SKIPPED):
        losses.add(parts(math.inf))
    assert losses.means(MAX_SKIPPED) == {}
