"""Steering lambda to a sparsity that was asked for: calibration, its controller, and what it refuses."""

import pytest
import torch
from torch import nn

from emmental import MaskedLinear, set_threshold
from emmental.errors import InputError
from emmental.masked_linear import kept_weights
from emmental.methods import METHODS
from emmental.sparsity import Steering, calibrated_threshold, score_at


def two_matrices(method="sigmoied_threshold"):
    model = nn.Sequential(MaskedLinear(60, 40, pruning_method=method), MaskedLinear(30, 50, pruning_method=method))
    torch.manual_seed(0)
    for linear in model:
        nn.init.normal_(linear.mask_scores)
    return model


@pytest.mark.parametrize("method", ["sigmoied_threshold", "threshold"])
@pytest.mark.parametrize("target", [0.5, 0.8, 0.9, 0.95, 0.97])
def test_the_calibrated_threshold_keeps_exactly_what_was_asked(method, target):
    model = two_matrices(method)
    set_threshold(model, calibrated_threshold(model, target))
    assert sum(kept_weights(linear) for linear in model) == round(3900 * (1 - target))


def test_the_score_of_a_threshold_is_where_its_sigmoid_is():
    score = score_at(0.1, METHODS["sigmoied_threshold"])
    assert torch.tensor(score).sigmoid().item() == pytest.approx(0.1)
    assert score_at(-3.0, METHODS["threshold"]) == -3.0


def simulated(start_lambda, target=0.9, steps=3000, balance=300.0):
    """What remains when each score falls with lambda and is held by a pull of its own: a model without a network."""
    torch.manual_seed(1)
    model = two_matrices()
    pulls = [torch.rand(linear.mask_scores.shape) ** 2 for linear in model]
    for linear in model:
        nn.init.zeros_(linear.mask_scores)
    steering, state = Steering(target, score_at(0.1, METHODS["sigmoied_threshold"]), 300, steps - 500), {}
    for step in range(steps):
        rate = 1e-2 * (1 - step / steps)
        ramp = min(1.0, max(0.0, (step - 300) / (steps - 800)))
        push = start_lambda * (1 - (1 - ramp) ** 3) * steering.factor(model, step, rate, state) / balance
        with torch.no_grad():
            for linear, pull in zip(model, pulls, strict=True):
                slope = linear.mask_scores.sigmoid() * (1 - linear.mask_scores.sigmoid())
                force = pull * (-linear.mask_scores).clamp(max=3) / 3 - 4 * push * slope
                linear.mask_scores += rate * force.clamp(-1, 1)
    set_threshold(model, 0.1)
    return sum(kept_weights(linear) for linear in model) / 3900


@pytest.mark.parametrize("start_lambda", [10.0, 100.0, 1000.0])
def test_it_does_not_matter_where_lambda_starts(start_lambda):
    assert simulated(start_lambda) == pytest.approx(0.1, abs=0.02)


def test_the_state_is_all_that_the_next_step_needs():
    model, steering = two_matrices(), Steering(0.9, -2.2, 0, 100)
    state, factors = {}, []
    for step in range(6):
        factors.append(steering.factor(model, step, 1e-2, state))
        if step == 3:
            kept = dict(state)
    assert [steering.factor(model, step, 1e-2, kept) for step in (4, 5)] == factors[4:]
    assert len(set(factors)) > 1


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("--pruning_method topK", "topK"),
        ("--pruning_method magnitude --regularization null --final_lambda 0", "magnitude"),
        ("--target_sparsity 1", "--target_sparsity 1.0"),
        ("--target_sparsity 0", "--target_sparsity 0.0"),
        ("--target_sparsity nan", "--target_sparsity nan"),
        ("--regularization null --final_lambda 0", "--regularization"),
    ],
)
def test_targets_that_cannot_be_met_are_refused(tmp_path, flags, named):
    from emmental.arguments import GlueArguments, parse

    base = "--task_name qqp --model_name_or_path x --do_train --pruning_method sigmoied_threshold --final_threshold 0.1"
    base += f" --target_sparsity 0.9 --regularization l1 --final_lambda 100 --output_dir {tmp_path / 'out'}"
    with pytest.raises(InputError, match=named):
        parse(GlueArguments, [*base.split(), *flags.split()])
