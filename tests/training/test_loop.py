"""The training loop's own pieces: accumulated batches, and the start of several processes on torch old and new."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from emmental.data.batches import Plan
from emmental.data.examples import Examples
from emmental.training import loop
from emmental.training.loop import Progress, data_parallel, train
from emmental.training.objective import Objective
from emmental.training.optimizer import Optimizer
from emmental.utils.precision import Precision


class Model(nn.Module):
    """Sums a text's embeddings; without dropout."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.embedding, self.score = nn.Embedding(50, 8), nn.Linear(8, 3)

    def forward(self, input_ids, attention_mask, token_type_ids, with_representation=True):
        return SimpleNamespace(classifications=(self.score(self.embedding(input_ids).sum(1)),), representation=None)


def steps_of(plan: Plan) -> list:
    """Of a dense model on 16 texts of 3 tokens, by the task's loss alone."""
    model, ids = Model(), np.random.default_rng(0).integers(1, 50, 48)
    labels = torch.arange(16) % 3
    examples = Examples(ids, np.zeros_like(ids), np.arange(0, 51, 3), (labels,))
    optimizer = Optimizer(
        model, learning_rate=0.1, mask_scores_learning_rate=0, weight_decay=0, epsilon=1e-8, max_grad_norm=0.5,
        warmup_steps=0, total_steps=plan.total_steps,
    )  # fmt: skip
    objective = Objective(1, 0, 2, 1, 0, 0, "released", None, 0)
    cpu = Precision(torch.device("cpu"))
    return list(train(model, examples, {}, None, plan, None, objective, optimizer, Progress(), cpu))


def test_accumulated_batches_are_one_of_their_size():
    """Their losses and gradients are means, so that clipping sees the same norm and weights move alike."""
    whole, cut = (steps_of(Plan(16, 8 // batches, batches, epochs=3, seed=0)) for batches in (1, 2))
    assert len(whole) == len(cut) == 6
    for one, other in zip(whole, cut, strict=True):
        assert one.grad_norm.item() == pytest.approx(other.grad_norm.item(), rel=1e-4)
        assert one.parts["task"].item() == pytest.approx(other.parts["task"].item(), rel=1e-4)


def test_each_batch_of_a_step_draws_examples_of_its_own(monkeypatch):
    seeds = []

    def batch_loss(model, examples, banks, teacher_logits, objective, index, seed, *_):
        seeds.append(seed)
        return {"task": model.score.weight.sum()}

    monkeypatch.setattr(loop, "batch_loss", batch_loss)
    steps_of(Plan(16, 4, accumulation=2, epochs=1, seed=9))
    assert seeds == [(9, 0, 0), (9, 0, 1), (9, 1, 0), (9, 1, 1)]


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
