"""The project's way: its own training loop and encoding pass, as masked_run_glue.py sets them up."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from emmental import build
from emmental.contrast.bank import Bank, DeviceRoom
from emmental.contrast.encoding import encode_epoch
from emmental.data.examples import Examples
from emmental.model.inference import predict
from emmental.pruning import schedule
from emmental.pruning.masked_linear import set_threshold
from emmental.training import loop, objective
from emmental.utils.precision import Precision
from tests.benchmarks.case import KEPT, Case, subset


class Project:
    """The project's own training loop, as masked_run_glue.py sets it up, and its encoding pass."""

    name = "project"

    def __init__(self, case: Case, steps: int, dtype: torch.dtype | None, bank_dtype: torch.dtype = torch.float32):
        self.case, self.folder, self.bank_dtype = case, Path(case.args.output_dir), bank_dtype
        self.precision, task = Precision(case.device, dtype), SimpleNamespace(labels=("0", "1"), first_step=0)
        state = build.initial_state(case.args, task, case.student, case.plan, {}, self.precision, 100)
        for name, columns in case.columns.items():
            state.banks[name].dtype = bank_dtype
            for column in columns:
                state.banks[name].add("", column, write=False)
        adamw, state.progress.step = state.optimizer.adamw, case.first_step
        for parameter in (p for group in adamw.param_groups for p in group["params"]):
            moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
            done = torch.tensor(float(case.first_step), device=case.device)
            adamw.state[parameter] = {"step": done, **moments}
        self.optimizer = state.optimizer
        # the teacher's logits are known before training; only those of the steps to come are made here
        index = np.concatenate([case.plan.micro_batches(case.first_step + step)[0] for step in range(steps)])
        (some,) = predict(case.teacher, subset(case.examples, index), self.precision, "teacher")
        logits = torch.zeros(len(case.examples), some.shape[1])
        logits[torch.from_numpy(index)] = some
        given = case.student, case.examples, state.banks, (logits,), case.plan
        built = state.masks, build.build_objective(case.args, task), state.optimizer
        self.steps = loop.train(*given, *built, state.progress, self.precision)
        self.parts = [
            (schedule, "set_threshold", "masks"),
            (sys.modules[__name__], "set_threshold", "masks"),
            (case.student, "forward", "student forward"),
            (case.student, "encode", "student forward"),
            (torch.Tensor, "backward", "backward"),
            (Bank, "draw", "contrastive"),
            (objective, "contrastive_loss", "contrastive"),
            (state.optimizer, "step", "clip, optimizer"),
        ]

    def step(self, step: int) -> tuple[float, float]:
        torch.set_float32_matmul_precision("high" if self.case.args.tf32 else "highest")
        done = next(self.steps)
        return sum(done.parts.values()).item(), done.grad_norm.item()

    def contrastive(self, anchors, banks, index, labels, step) -> torch.Tensor:
        """The terms by themselves; in a step the training loop puts them together."""
        args, place, terms = self.case.args, torch.from_numpy(index), []
        weights = {"temperature": args.contrastive_temperature, "unsupervised_weight": args.cl_unsupervised_loss_weight}
        place_device = place.to(anchors.device)
        for number, bank in enumerate(banks):
            rows = bank.draw(place, place_device, labels, args.extra_examples, (0, step, 0, number))
            here = place_device, rows.extra_index, labels[place].to(anchors.device), rows.extra_labels
            batch = anchors, rows.batch_rows, rows.extra_rows, *here
            supervised = args.cl_supervised_loss_weight
            terms.append(objective.contrastive_loss(*batch, supervised_weight=supervised, **weights))
        return sum(terms)

    def grow(self, bank: Bank | None, column: torch.Tensor) -> Bank:
        bank = bank or Bank(self.folder, self.case.device, torch.float32, room=DeviceRoom(100))
        bank.add("column.safetensors", column, write=True)
        return bank

    def encode(self, examples: Examples, model=None) -> torch.Tensor:
        """One snapshot of `examples`, (examples, hidden): masks, pass, and the column on disk."""
        torch.set_float32_matmul_precision("high" if self.case.args.tf32 else "highest")
        set_threshold(self.case.student, KEPT)
        banks = {"snapshots": Bank(self.folder, self.case.device, self.bank_dtype, dropout=True, room=DeviceRoom(1))}
        encode_epoch(1, banks, model or self.case.student, examples, self.precision)
        return banks["snapshots"].columns[0].float()
