"""The training loop of CAP (arXiv 2112.07198): one boxed step, and what happens between steps.

A step makes the masks once, runs the batch, adds up the named parts of the loss, and moves weights and scores
together. Nothing in it waits for the device, but for a new global cut, a change of lambda's steering, and float16's
count of skipped steps: losses are read when they are logged.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from inspect import signature

import numpy as np
import torch
from torch import nn

from emmental.contrast.bank import Bank
from emmental.contrast.encoding import encode_epoch
from emmental.data.batches import Plan
from emmental.data.examples import Examples
from emmental.pruning.schedule import MaskSchedule, regularization
from emmental.training.objective import Classifications, Objective
from emmental.training.optimizer import Optimizer
from emmental.utils import distributed
from emmental.utils.precision import Precision
from emmental.utils.transfers import rows_to_device, to_device


@dataclass
class Progress:
    """How far a run has come."""

    step: int = 0  # optimizer steps done
    logged: int = 0  # lines of the log


@dataclass(frozen=True)
class StepResult:
    """What one step did. Losses and the gradient's norm stay on the device until they are read."""

    step: int  # optimizer steps done, this one included
    threshold: float
    regu_lambda: float
    learning_rates: dict[str, float]  # of weights and mask_scores
    grad_norm: torch.Tensor
    parts: dict[str, torch.Tensor]  # the weighted parts of the loss by name


def train(
    model: nn.Module,
    examples: Examples,
    banks: dict[str, Bank],
    teacher_logits: Classifications | None,
    plan: Plan,
    masks: MaskSchedule | None,
    objective: Objective,
    optimizer: Optimizer,
    progress: Progress,
    precision: Precision,
) -> Iterator[StepResult]:
    """Trains from `progress.step` to the plan's end; yields a StepResult after each optimizer step.

    `banks` are those to contrast with, of which PrC and SnC are filled on the way; `teacher_logits`, each (examples,
    classes), are what is distilled (None: nothing); `masks` is None for a dense model.
    """
    forward = data_parallel(model) if distributed.world_size() > 1 else model

    while progress.step < plan.total_steps:
        step = progress.step
        if masks and banks and step % plan.steps_per_epoch == 0:
            # as released: with the masks of the step before, in the first epoch those of the initial threshold (D7)
            masks.set_masks(model, step - 1, new_cut=False)
            encode_epoch(step // plan.steps_per_epoch, banks, model, examples, precision)
        model.train()
        # ------------------------------------------------------------------------------------------------------------
        # threshold and lambda of this step; masks once, for all its batches
        threshold, regu_lambda = masks.apply(model, step) if masks else (1.0, 0.0)

        # the batches' losses, part by part, and their gradients
        batches, sums = plan.micro_batches(step), {}
        for number, index in enumerate(batches):
            last, seed = number == len(batches) - 1, (plan.seed, step, number)
            with nullcontext() if last or forward is model else forward.no_sync():
                parts = batch_loss(
                    forward, examples, banks, teacher_logits, objective, index, seed, regu_lambda, precision
                )
                optimizer.backward(sum(parts.values()) / len(batches))
            for name, value in parts.items():
                sums[name] = sums.get(name, 0) + value.detach() / len(batches)

        # clip jointly, move weights and scores
        grad_norm = optimizer.step(step)
        # ------------------------------------------------------------------------------------------------------------
        progress.step += 1
        yield StepResult(progress.step, threshold, regu_lambda, optimizer.learning_rates(step), grad_norm, sums)


def data_parallel(model: nn.Module) -> nn.Module:
    """`model` in one of several processes: its gradients are averaged. Buffers are constants: no step sends them."""
    parallel = nn.parallel.DistributedDataParallel
    name = "forward_sync_buffers" if "forward_sync_buffers" in signature(parallel).parameters else "broadcast_buffers"
    return parallel(model, **{name: False})  # the latter before torch 2.13


def batch_loss(
    model: nn.Module,
    examples: Examples,
    banks: dict[str, Bank],
    teacher_logits: Classifications | None,
    objective: Objective,
    index: np.ndarray,
    seed: tuple[int, ...],
    regu_lambda: float,
    precision: Precision,
) -> dict[str, torch.Tensor]:
    """The weighted parts, by name, of the loss of the global batch `index` (batch,); each process runs its share.

    `seed` decides which extra examples are drawn from the banks; a bank without columns is passed over.
    """
    batch, index_cpu = len(index), torch.from_numpy(index)
    # What is copied from the host goes before the forward pass, behind which a device would queue it.
    index_device = to_device(index_cpu, precision.device)

    def of_batch(values: torch.Tensor) -> torch.Tensor:
        return rows_to_device(values, index_cpu, precision.device)

    labels = tuple(map(of_batch, examples.labels))
    teacher = None if teacher_logits is None else tuple(map(of_batch, teacher_logits))
    extra_labels = examples.labels[0] if objective.supervised_weight else None
    samples = {
        name: bank.draw(index_cpu, index_device, extra_labels, objective.extra_examples, (*seed, number))
        for number, (name, bank) in enumerate(banks.items())
        if bank.columns
    }
    with precision.autocast():
        inputs = examples.inputs(distributed.share(index), examples.padded_length(index))
        outputs = model(**inputs, with_representation=bool(samples))
    logits = tuple(distributed.gather_batch(student, batch) for student in outputs.classifications)
    anchors = distributed.gather_batch(outputs.representation, batch) if samples else None
    if teacher is not None:  # a span's logits are as wide as the widest window, the batch's as its own
        teacher = tuple(values[:, : logits[0].shape[1]] for values in teacher)
    parts = objective.parts(logits, labels, teacher, anchors, index_device, samples)
    if objective.penalty:
        zero = torch.zeros((), device=precision.device)  # as long as the threshold is 0, lambda is too
        parts["penalty"] = regu_lambda * regularization(model, objective.penalty) if regu_lambda else zero
    return parts
