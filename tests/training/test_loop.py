"""The training loop's own pieces: the length of a run, and the start of several processes on torch old and new."""

import pytest
from torch import nn

from emmental.data.batches import Plan
from emmental.training.loop import data_parallel


@pytest.mark.parametrize(
    "examples, epochs, steps",
    [(3200, 1.15, 115), (1600, 0.58, 29), (3200, 1.149, 114), (3200, 0.001, 1), (3201, 2, 202)],
)
def test_a_fraction_of_an_epoch_is_cut_to_whole_steps(examples, epochs, steps):
    """In exact arithmetic: 100 * 1.15 is a hair under 115 in floating point."""
    assert Plan(examples, 32, 1, epochs, 0).total_steps == steps


def old(module, broadcast_buffers=True):
    return broadcast_buffers


def new(module, broadcast_buffers=None, forward_sync_buffers=None):
    assert broadcast_buffers is None
    return forward_sync_buffers


@pytest.mark.parametrize("parallel", [old, new])
def test_buffers_are_not_sent_by_any_torch(monkeypatch, parallel):
    """Before torch 2.13 DistributedDataParallel has broadcast_buffers alone, from then on it warns of it."""
    monkeypatch.setattr(nn.parallel, "DistributedDataParallel", parallel)
    assert data_parallel(nn.Linear(1, 1)) is False
