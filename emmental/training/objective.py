"""The training objective: task + distillation + three contrastive terms + penalty, each part by its name.

Pure functions of tensors. Logits come as a tuple of classifications, one for a sentence task and two (start, end) for
a span, over which task loss and distillation are means.
"""

import torch
from torch.nn import functional as F

from emmental.contrast.bank import Drawn
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
    for scores, truth in zip(logits, labels, strict=True):
        ignored = scores.shape[-1]
        losses.append(F.cross_entropy(scores.float(), truth.clamp(0, ignored), ignore_index=ignored))
    return torch.stack(losses).mean()


def distillation(logits: Classifications, teacher_logits: Classifications, temperature: float) -> torch.Tensor:
    """KL(teacher || student) of the softened distributions, per example, times temperature^2 (arXiv 1503.02531).

    A regression's single logit is no distribution; there it is the squared distance to the teacher's.
    """
    losses = []
    for scores, teacher in zip(logits, teacher_logits, strict=True):
        if scores.shape[-1] == 1:
            losses.append(F.mse_loss(scores.float(), teacher.float()))
            continue
        student = F.log_softmax(scores.float() / temperature, dim=-1)
        target = F.softmax(teacher.float() / temperature, dim=-1)
        losses.append(F.kl_div(student, target, reduction="batchmean") * temperature**2)
    return torch.stack(losses).mean()


def objective(
    logits: Classifications,
    labels: Classifications,
    teacher_logits: Classifications | None,
    anchors: torch.Tensor,
    index: torch.Tensor,
    drawn: dict[str, Drawn],
    *,
    ce_weight: float,
    distill_weight: float,
    distill_temperature: float,
    **contrastive,
) -> dict[str, torch.Tensor]:
    """The weighted parts of a global batch's loss by name; their sum is what is minimised.

    `logits`, `labels` and `teacher_logits` (None: no distillation) as above; `anchors` (batch, hidden), `index`
    (batch,) and `drawn`, what each bank gave for the batch; `contrastive` are contrastive_loss's keyword arguments.
    """
    parts = {"task": ce_weight * task_loss(logits, labels)}
    if teacher_logits is not None:
        parts["distillation"] = distill_weight * distillation(logits, teacher_logits, distill_temperature)
    for name, rows in drawn.items():
        batch = anchors, rows.own, rows.extra, index, rows.extra_index, labels[0], rows.extra_labels
        parts[name] = contrastive_loss(*batch, **contrastive)
    return parts
