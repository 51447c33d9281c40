"""The training loop of arXiv 2112.07198, section 3: one boxed step, and what happens between steps.

A step makes the masks once, runs the batch, adds up the named parts of the loss, and moves weights and scores
together. Nothing in it waits for the device: losses are read when they are logged.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property, partial

import numpy as np
import torch
from torch import nn

from emmental.contrast.bank import Bank
from emmental.data.batches import Plan
from emmental.data.examples import Examples
from emmental.pruning.masked_linear import set_threshold
from emmental.pruning.schedule import LOWEST, Steering, global_cut
from emmental.utils import distributed

BETAS = (0.9, 0.999)


def build_optimizer(
    model: nn.Module, learning_rate: float, mask_scores_learning_rate: float, weight_decay: float
) -> torch.optim.AdamW:
    """AdamW over the trainable parameters: scores, weights with decay, and biases and LayerNorm weights without.

    Decay stands in the group as `decay`: `optimizer_step` applies it after the update, where the released code does.
    """
    groups = {"scores": [], "weights": [], "undecayed": []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            undecayed = name.endswith(("bias", "LayerNorm.weight"))
            kind = "scores" if name.endswith("mask_scores") else "undecayed" if undecayed else "weights"
            groups[kind].append(parameter)
    return torch.optim.AdamW(
        [
            {"params": groups["scores"], "base_lr": mask_scores_learning_rate, "decay": 0.0},
            {"params": groups["weights"], "base_lr": learning_rate, "decay": weight_decay},
            {"params": groups["undecayed"], "base_lr": learning_rate, "decay": 0.0},
        ],
        betas=BETAS,
        weight_decay=0.0,
        fused=True,
    )


def rate_factor(step: int, warmup_steps: int, total_steps: int) -> float:
    """The factor on every learning rate at optimizer step `step` from 0: linear up, then linear down to 0.

    as released the first step of a warm-up has learning rate 0 (quirk 27).
    """
    if step < warmup_steps:
        return step / warmup_steps
    return max(0.0, (total_steps - step) / max(1, total_steps - warmup_steps))


def optimizer_step(optimizer: torch.optim.AdamW, step: int, factor: float, epsilon: float, update=None) -> None:
    """One update at optimizer step `step` from 0, with the learning rates times `factor`.

    as released (transformers' former AdamW, quirk 26) epsilon stands outside the bias correction, which torch's AdamW
    gives when its own is divided by sqrt(1 - beta2^t), and decay acts on the updated weights (with float16 also in the
    first few steps, which the scaler skips).
    """
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
        group["eps"] = epsilon / math.sqrt(1 - BETAS[1] ** (step + 1))
    (update or optimizer.step)()
    for group in optimizer.param_groups:
        if group["decay"]:
            torch._foreach_mul_([p.data for p in group["params"]], 1 - group["lr"] * group["decay"])


@dataclass
class Progress:
    """Where a run stands: what a checkpoint keeps beside weights, optimizer, banks and random state."""

    step: int = 0  # optimizer steps done
    logged: int = 0  # lines of the log
    cut: float | None = None  # global top-k's present cut
    steering: dict = field(default_factory=dict)  # the state of lambda's steering


@dataclass(frozen=True)
class Record:
    """What one step did. Losses and the gradient's norm stay on the device until they are read."""

    step: int  # optimizer steps done, this one included
    threshold: float
    regu_lambda: float
    rate: float  # factor on the learning rates
    grad_norm: torch.Tensor
    parts: dict[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Precision:
    """float32, or autocast to `dtype`; float16 also scales the loss."""

    device: torch.device
    dtype: torch.dtype | None = None

    def autocast(self):
        return torch.autocast(self.device.type, self.dtype) if self.dtype else nullcontext()

    @cached_property
    def scaler(self) -> torch.amp.GradScaler:
        return torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)


def train(
    model: nn.Module,
    examples: Examples,
    banks: dict[str, Bank],
    teacher_logits: tuple[torch.Tensor, ...] | None,
    optimizer: torch.optim.AdamW,
    plan: Plan,
    progress: Progress,
    *,
    schedule: Callable[[int], tuple[float, float]] | None,
    rate: Callable[[int], float],
    encode: Callable[[int], None],
    objective: Callable[..., dict[str, torch.Tensor]],
    penalty: Callable[[nn.Module], torch.Tensor] | None,
    global_topk_every: int | None,
    steering: Steering | None,
    first_step: int,
    extra_examples: int,
    supervised: bool,
    epsilon: float,
    max_grad_norm: float,
    precision: Precision,
    length: int | None,
) -> Iterator[Record]:
    """Trains from `progress.step` to the plan's end; yields a Record after each optimizer step.

    `schedule` gives threshold and lambda of a step, counted from `first_step` (None: dense); `rate` the factor on the
    learning rates of a step from 0; `encode` is called with the number of each epoch that starts, to fill `banks`; a
    bank without columns is passed over. `global_topk_every` is None for one cut per matrix; `steering` multiplies
    lambda; `length` pads every batch to it.
    """
    device, scaler = precision.device, precision.scaler
    # the buffers are constants, so they are not sent round
    parallel = partial(nn.parallel.DistributedDataParallel, broadcast_buffers=False)
    forward = parallel(model) if distributed.world() > 1 else model

    def loss_parts(index: np.ndarray, seed: tuple[int, ...], regu_lambda: float) -> dict[str, torch.Tensor]:
        batch = len(index)
        padded = int(examples.lengths[index].max()) if length is None else length
        with precision.autocast():
            outputs = forward(**examples.inputs(distributed.share(index), padded))
        logits = tuple(distributed.gather(scores, batch) for scores in outputs.classifications)
        anchors = distributed.gather(outputs.representation, batch)
        places = torch.from_numpy(index)
        here = places.to(device, non_blocking=True)
        labels = tuple(truth[places].to(device, non_blocking=True) for truth in examples.labels)
        targets = None
        if teacher_logits is not None:
            width = logits[0].shape[1]
            targets = tuple(known[places, :width].to(device, non_blocking=True) for known in teacher_logits)
        known_labels = examples.labels[0] if supervised else None
        drawn = {
            name: bank.draw(places, known_labels, extra_examples, (*seed, number))
            for number, (name, bank) in enumerate(banks.items())
            if bank.columns
        }
        parts = objective(logits, labels, targets, anchors, here, drawn)
        if penalty is not None:
            parts["penalty"] = regu_lambda * penalty(model)
        return parts

    def make_masks(number: int) -> tuple[float, float]:
        threshold, regu_lambda = schedule(number)
        if global_topk_every:
            if threshold < 1 and (progress.cut is None or number % global_topk_every == 0):
                progress.cut = global_cut(model, threshold)
            set_threshold(model, LOWEST if progress.cut is None else progress.cut)
        else:
            set_threshold(model, threshold)
        return threshold, regu_lambda

    while progress.step < plan.total_steps:
        step = progress.step
        if schedule and step % plan.steps_per_epoch == 0:
            # as released: with the threshold of the last step before, the initial one in the first epoch (quirk 10)
            make_masks(step - 1 + first_step)
            encode(step // plan.steps_per_epoch)
        model.train()
        # ------------------------------------------------------------------------------------------------------------
        # threshold and lambda of this step; masks once, for all its batches
        threshold, regu_lambda = make_masks(step + first_step) if schedule else (1.0, 0.0)
        factor = rate(step)
        if steering:
            learning_rate = factor * optimizer.param_groups[0]["base_lr"]
            regu_lambda *= steering.factor(model, step + first_step, learning_rate, progress.steering)

        # the batches' losses, part by part, and their gradients
        batches, sums = plan.micro_batches(step), {}
        for number, index in enumerate(batches):
            last = number == len(batches) - 1
            with nullcontext() if last or forward is model else forward.no_sync():
                parts = loss_parts(index, (plan.seed, step, number), regu_lambda)
                scaler.scale(sum(parts.values()) / len(batches)).backward()
            for name, value in parts.items():
                sums[name] = sums.get(name, 0) + value.detach() / len(batches)

        # clip jointly, move weights and scores
        scaler.unscale_(optimizer)
        grad_norm = nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
        optimizer_step(optimizer, step, factor, epsilon, lambda: scaler.step(optimizer))
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        # ------------------------------------------------------------------------------------------------------------
        progress.step += 1
        yield Record(progress.step, threshold, regu_lambda, factor, grad_norm, sums)
