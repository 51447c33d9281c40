"""The training objective: task + distillation + three contrastive terms + penalty, each part by its name.

The terms are pure functions of tensors; `Objective` holds their weights. Logits come as a tuple of classifications, one
for a sentence task and two (start, end) for a span, over which task loss and distillation are means.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from emmental.contrast.bank import BankSample
from emmental.contrast.loss import contrastive_loss

Classifications = tuple[torch.Tensor, ...]


def task_loss(logits: Classifications, labels: Classifications) -> torch.Tensor:
    """Mean cross-entropy over the classifications, or the squared error where the labels are real numbers.

    `logits`: each (batch, classes); `labels`: each (batch,). A label beyond the classes, a position after the
    window's end, is ignored.
    """
    if labels[0].is_floating_point():
        return F.mse_loss(logits[0].float().squeeze(-1), labels[0])
    losses = []
    for student, label in zip(logits, labels, strict=True):
        ignored = student.shape[-1]
        losses.append(F.cross_entropy(student.float(), label.clamp(0, ignored), ignore_index=ignored))
    return torch.stack(losses).mean()


def distillation(logits: Classifications, teacher_logits: Classifications, temperature: float) -> torch.Tensor:
    """KL(teacher || student) of the softened distributions, per example, times temperature^2 (arXiv 1503.02531).

    as released: a mean over the batch (D10). A regression's single logit is no distribution; there it is the squared
    distance to the teacher's (D34).
    """
    losses = []
    for student, teacher in zip(logits, teacher_logits, strict=True):
        if student.shape[-1] == 1:
            losses.append(F.mse_loss(student.float(), teacher.float()))
            continue
        log_p = F.log_softmax(student.float() / temperature, dim=-1)
        target = F.softmax(teacher.float() / temperature, dim=-1)
        losses.append(F.kl_div(log_p, target, reduction="batchmean") * temperature**2)
    return torch.stack(losses).mean()


@dataclass(frozen=True)
class Objective:
    """What is minimised: the weights of all parts, and what else shapes them.

    `normalization` as in contrastive_loss; `penalty` is a key of PENALTIES or None; `extra_examples` are the rows drawn
    from each bank beside the batch's own. The penalty's weight, lambda, comes from the mask schedule.
    """

    ce_weight: float
    distill_weight: float
    distill_temperature: float
    contrastive_temperature: float
    unsupervised_weight: float
    supervised_weight: float
    normalization: str
    penalty: str | None
    extra_examples: int

    def parts(
        self,
        logits: Classifications,
        labels: Classifications,
        teacher_logits: Classifications | None,
        anchors: torch.Tensor | None,
        index: torch.Tensor,
        samples: dict[str, BankSample],
    ) -> dict[str, torch.Tensor]:
        """The weighted parts of a global batch's loss by name; `batch_loss` adds the penalty.

        `logits`, `labels` and `teacher_logits` (None: no distillation) as above; `anchors` (batch, hidden), `index`
        (batch,), and `samples`, what each bank gave for the batch (none: no anchors are needed).
        """
        parts = {"task": self.ce_weight * task_loss(logits, labels)}
        if teacher_logits is not None:
            distilled = distillation(logits, teacher_logits, self.distill_temperature)
            parts["distillation"] = self.distill_weight * distilled
        for name, sample in samples.items():
            parts[name] = contrastive_loss(
                anchors,
                own=sample.batch_rows,
                extra=sample.extra_rows,
                index=index,
                extra_index=sample.extra_index,
                labels=labels[0],
                extra_labels=sample.extra_labels,
                temperature=self.contrastive_temperature,
                unsupervised_weight=self.unsupervised_weight,
                supervised_weight=self.supervised_weight,
                normalization=self.normalization,
            )
        return parts
