"""The released way, written from its formulas (tests/parity/README.md) on transformers' own padded BertModel.

A full sort per matrix and forward, a teacher forward in every step, bank rows gathered on the CPU, banks grown by
concatenation.
"""

import random

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import BertConfig, BertModel

from emmental.data.examples import Examples
from emmental.model.masked_classes import MaskedBertForSequenceClassification
from emmental.pruning.masks import StraightThrough
from emmental.training.optimizer import lr_factor
from tests.benchmarks.case import KEPT, Case


class SortedLinear(nn.Linear):
    """A masked layer that finds its mask anew in every forward, by sorting all its scores."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__(in_features, out_features)
        self.mask_scores = nn.Parameter(torch.empty_like(self.weight))

    @torch.no_grad()
    def sorted_mask(self) -> torch.Tensor:
        order = self.mask_scores.flatten().sort(descending=True).indices
        mask = torch.zeros_like(self.mask_scores)
        mask.view(-1)[order[: int(KEPT * order.numel())]] = 1
        return mask

    def forward(self, inputs):
        return F.linear(inputs, self.weight * StraightThrough.apply(self.mask_scores, self.sorted_mask()), self.bias)


class PaddedBert(nn.Module):
    """transformers' own BertModel and a classifier, with the weights of one of the project's models."""

    def __init__(self, source: MaskedBertForSequenceClassification, attention: str):
        super().__init__()
        masked = source.config.pruning_method is not None
        self.bert = BertModel(BertConfig.from_dict(source.config.to_dict(), attn_implementation=attention))
        for parent in list(self.bert.encoder.modules()) if masked else []:
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(parent, name, SortedLinear(child.in_features, child.out_features))
        self.dropout = nn.Dropout(source.config.hidden_dropout_prob)
        self.classifier = nn.Linear(source.config.hidden_size, source.config.num_labels)
        self.load_state_dict(source.state_dict())
        self.bert.embeddings.requires_grad_(not masked)

    def forward(self, **inputs):
        pooled = self.dropout(self.bert(**inputs).pooler_output)
        return self.classifier(pooled), pooled

    def encode(self, **inputs):
        return F.normalize(self.bert(**inputs).pooler_output, dim=-1)


class FormerAdamW:
    """transformers' former AdamW: one parameter after the other, epsilon outside the bias correction."""

    def __init__(self, model: nn.Module, weights_rate: float, scores_rate: float):
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self.rates = [(p, scores_rate if name.endswith("mask_scores") else weights_rate) for name, p in named]
        self.moments = {p: (torch.zeros_like(p), torch.zeros_like(p)) for _, p in named}

    @torch.no_grad()
    def step(self, count: int, factor: float) -> None:
        correction = (1 - 0.999**count) ** 0.5 / (1 - 0.9**count)
        for p, rate in self.rates:
            mean, square = self.moments[p]
            mean.mul_(0.9).add_(p.grad, alpha=0.1)
            square.mul_(0.999).addcmul_(p.grad, p.grad, value=0.001)
            p.addcdiv_(mean, square.sqrt().add_(1e-8), value=-rate * factor * correction)


def draw_any(step: int, number: int, examples: int, count: int) -> list[int]:
    return random.sample(range(examples), count)


class Released:
    """The training step and the encoding pass as the released code does them."""

    name = "released"

    def __init__(self, case: Case, attention: str, draw=draw_any):
        self.case, self.args, self.draw = case, case.args, draw
        self.student = PaddedBert(case.student, attention).to(case.device)
        self.teacher = PaddedBert(case.teacher, attention).to(case.device).eval()
        self.banks = [torch.stack(columns, dim=1) for columns in case.columns.values()]
        self.optimizer = FormerAdamW(self.student, self.args.learning_rate, self.args.mask_scores_learning_rate)
        self.parts = [
            (SortedLinear, "sorted_mask", "masks"),
            (self.student, "forward", "student forward"),
            (self.student, "encode", "student forward"),
            (self.teacher, "forward", "teacher forward"),
            (torch.Tensor, "backward", "backward"),
            (self, "contrastive", "contrastive"),
            (nn.utils, "clip_grad_norm_", "clip, optimizer"),
            (self.optimizer, "step", "clip, optimizer"),
        ]

    def inputs(self, examples: Examples, index: np.ndarray) -> dict[str, torch.Tensor]:
        padded = examples.inputs(index, self.args.max_seq_length)
        return {name: x.to(self.case.device) for name, x in padded.items()}

    def step(self, step: int) -> tuple[float, float]:
        """Takes one training step; returns its loss and its gradient's norm."""
        torch.set_float32_matmul_precision("high")  # TF32 on a GPU, the default of torch 1.8
        (index,) = self.case.plan.micro_batches(step)
        inputs, labels = self.inputs(self.case.examples, index), self.case.examples.labels[0]
        logits, anchors = self.student.train()(**inputs)
        with torch.no_grad():
            teacher_logits, _ = self.teacher(**inputs)
        heat = self.args.temperature
        softened = F.log_softmax(logits / heat, -1), F.softmax(teacher_logits / heat, -1)
        loss = self.args.ce_loss_weight * F.cross_entropy(logits, labels[index].to(self.case.device))
        loss = loss + self.args.distill_loss_weight * heat**2 * F.kl_div(*softened, reduction="batchmean")
        loss = loss + self.contrastive(anchors, self.banks, index, labels, step)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.student.parameters(), self.args.max_grad_norm)
        self.optimizer.step(step + 1, lr_factor(step, 0, self.case.plan.total_steps))
        self.student.zero_grad()
        return loss.item(), norm.item()

    def contrastive(self, anchors, banks, index, labels, step) -> torch.Tensor:
        """The terms of all banks, each (examples, R, hidden), for the batch `index`."""
        loss, unit, device = 0.0, F.normalize(anchors, dim=-1), anchors.device
        weights = self.args.cl_unsupervised_loss_weight, self.args.cl_supervised_loss_weight
        for number, bank in enumerate(banks):
            extra = self.draw(step, number, len(bank), self.args.extra_examples // bank.shape[1])
            members = [*index.tolist(), *extra]
            rows = bank[members].to(device)
            place = torch.cat([torch.tensor(index), torch.tensor(members).repeat_interleave(rows.shape[1])])
            keys = torch.cat([unit.detach(), rows.flatten(0, 1)])
            for weight, kind in zip(weights, (place.to(device), labels[place].to(device)), strict=True):
                loss = loss + weight * self.term(unit, keys, kind)
        return loss

    def term(self, unit: torch.Tensor, keys: torch.Tensor, kind: torch.Tensor) -> torch.Tensor:
        """One bank's supervised or unsupervised term; `kind` (keys,) are the keys' labels or indices."""
        itself = torch.eye(len(unit), len(keys), dtype=torch.bool, device=unit.device)
        log_q = (unit @ keys.T / self.args.contrastive_temperature).masked_fill(itself, -1e6).log_softmax(-1)
        positive = (kind[: len(unit), None] == kind) & ~itself
        log_p = log_q * positive
        return -(log_p.sum(1) / positive.sum(1)).sum() / (log_p != 0).sum()

    def grow(self, bank: torch.Tensor | None, column: torch.Tensor) -> torch.Tensor:
        return column[:, None] if bank is None else torch.cat([bank, column[:, None]], dim=1)

    @torch.no_grad()
    def encode(self, examples: Examples, model=None) -> torch.Tensor:
        """One snapshot of `examples`, (examples, hidden)."""
        torch.set_float32_matmul_precision("high")
        model, size = model or self.student, self.case.plan.batch_size
        model.train()
        grown = torch.empty(0)
        for start in range(0, len(examples), size):
            inputs = self.inputs(examples, np.arange(start, min(start + size, len(examples))))
            grown = torch.cat([grown, model.encode(**inputs).cpu()])
        return grown
