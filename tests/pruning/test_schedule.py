"""The mask schedule: which masks and lambda a step has, as the released schedule and rank give them."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from emmental import MaskedLinear, schedule_threshold
from emmental.pruning.masked_linear import kept_weights
from emmental.pruning.schedule import LOWEST, MaskSchedule, global_cut
from emmental.pruning.target_sparsity import LambdaController

NUMBERS = {"total_steps": 40, "warmup_steps": 4, "initial_warmup": 1, "final_warmup": 2}


def two_matrices(method: str) -> nn.Sequential:
    model = nn.Sequential(MaskedLinear(20, 30, pruning_method=method), MaskedLinear(30, 10, pruning_method=method))
    chance = torch.Generator().manual_seed(0)
    for linear in model:
        nn.init.normal_(linear.mask_scores, generator=chance)
    return model


@pytest.mark.parametrize("first_step", [0, 1])
def test_steps_are_counted_from_the_first(first_step):
    model = two_matrices("topK")
    masks = MaskSchedule(**NUMBERS, initial_threshold=1, final_threshold=0.1, final_lambda=5, first_step=first_step)
    for step in range(40):
        threshold, regu_lambda = schedule_threshold(step + first_step, 40, 4, 1, 0.1, 1, 2, 5)
        assert masks.apply(model, step) == (threshold, regu_lambda)
        assert [kept_weights(linear) for linear in model] == [int(threshold * 600), int(threshold * 300)]


def test_the_global_cut_is_taken_afresh_at_its_steps_alone():
    model, cuts = two_matrices("threshold"), {}
    masks = MaskSchedule(**NUMBERS, initial_threshold=1, final_threshold=0.1, final_lambda=0, global_cut_every=6)
    for step in range(40):
        masks.set_masks(model, step - 1, new_cut=False)  # before an epoch; the cut stays
        assert masks.cut == cuts.get(step - 1, LOWEST)
        threshold, _ = masks.apply(model, step)
        cuts[step] = masks.cut
        scores = sorted(torch.cat([linear.mask_scores.flatten() for linear in model]).tolist())
        if threshold == 1:
            assert masks.cut == LOWEST and sum(kept_weights(linear) for linear in model) == 900
        elif step % 6 == 0 or cuts[step - 1] == LOWEST:
            assert masks.cut == scores[max(900 - (int(900 * threshold) + 1), 1) - 1]
        else:
            assert masks.cut == cuts[step - 1]
        with torch.no_grad():
            for linear in model:
                linear.mask_scores += 0.1
    assert len(set(cuts.values())) == 8


def test_the_first_global_cut_is_the_first_steps_own():
    """On SQuAD, where steps count from 1, no cut is due in the first one; banks filled before it must not matter."""
    model = two_matrices("threshold")
    numbers = NUMBERS | {"initial_warmup": 0, "initial_threshold": 0.8, "final_threshold": 0.1, "final_lambda": 0}
    masks = MaskSchedule(**numbers, first_step=1, global_cut_every=25)
    masks.set_masks(model, -1, new_cut=False)
    assert abs(sum(kept_weights(linear) for linear in model) - 0.8 * 900) <= 2
    threshold, _ = masks.apply(model, 0)
    assert threshold < 0.8 and masks.cut == global_cut(model, threshold)


def test_a_global_cut_waits_for_scores_that_differ():
    """Untrained scores are all 0: a cut of them would prune all that tie, and stay for 25 steps."""
    model = two_matrices("threshold")
    for linear in model:
        nn.init.zeros_(linear.mask_scores)
    masks = MaskSchedule(**NUMBERS, initial_threshold=0.9, final_threshold=0.1, final_lambda=0, global_cut_every=25)
    masks.load_state_dict({"cut": None, "steering": {}})  # as checkpoints of earlier commits have it
    for step in range(3):
        masks.apply(model, step)
        assert sum(kept_weights(linear) for linear in model) == 900
    with torch.no_grad():
        model[0].mask_scores += torch.rand(30, 20)
        model[1].mask_scores += torch.rand(10, 30)
    masks.apply(model, 3)
    assert sum(kept_weights(linear) for linear in model) == 811


def test_masks_before_an_epoch_leave_the_controller_as_it_was():
    model = two_matrices("sigmoied_threshold")
    controller = LambdaController(0.9, -2.2, start=4, end=32)
    numbers = {**NUMBERS, "initial_threshold": 0, "final_threshold": 0.1, "final_lambda": 10}
    masks = MaskSchedule(**numbers, controller=controller, scores_lr=lambda step: 0.05)
    for step in range(20):
        masks.apply(model, step)
    before = replace(masks.steering)
    _, regu_lambda = masks.set_masks(model, 19)
    assert masks.steering == before and before.travel >= 0
    assert regu_lambda == schedule_threshold(19, 40, 4, 0, 0.1, 1, 2, 10)[1]
    resumed = MaskSchedule(**numbers, controller=controller, scores_lr=lambda step: 0.05)
    resumed.load_state_dict(masks.state_dict() | {"step": 20})
    assert resumed.apply(model, 20) == masks.apply(model, 20)
