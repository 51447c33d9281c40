"""The plan of a run: its length, and which examples meet in a step."""

import numpy as np
import pytest

from emmental.data.batches import Plan


@pytest.mark.parametrize(
    "examples, epochs, steps",
    [(3200, 1.15, 115), (1600, 0.58, 29), (3200, 1.149, 114), (3200, 0.001, 1), (3201, 2, 202)],
)
def test_a_fraction_of_an_epoch_is_cut_to_whole_steps(examples, epochs, steps):
    """In exact arithmetic: 100 * 1.15 is a hair under 115 in floating point."""
    assert Plan(examples, 32, 1, epochs, 0).total_steps == steps


def test_a_warm_up_in_epochs_is_rounded():
    plan = Plan(3200, 32, 1, 3, 0)
    assert [plan.warmup_steps(7, epochs) for epochs in (0, 0.29, 0.996, 2)] == [7, 29, 100, 200]


def test_an_epoch_visits_every_example_once_in_an_order_of_its_own():
    plan = Plan(examples=26, batch_size=8, accumulation=3, epochs=3, seed=5)
    assert [len(batch) for batch in plan.micro_batches(0)] == [8, 8, 8] and len(plan.micro_batches(1)) == 1
    epochs = [
        np.concatenate([batch for step in (0, 1) for batch in plan.micro_batches(2 * epoch + step)]).tolist()
        for epoch in range(3)
    ]
    assert all(sorted(order) == list(range(26)) for order in epochs)
    assert len({tuple(order) for order in epochs}) == 3


def test_another_seed_is_another_order():
    first, second = (Plan(26, 26, 1, 1, seed).micro_batches(0)[0].tolist() for seed in (1, 2))
    assert sorted(first) == sorted(second) and first != second
