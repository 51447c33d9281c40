"""The contrastive loss of CAP (arXiv 2112.07198), as pure functions.

One function serves PrC, SnC and FiC, which differ only in the bank that the contrast set is drawn from: `pretrained`,
`snapshots` or `finetuned`. An anchor is attracted by the members of the contrast set that represent the same example
(unsupervised) or an example of the same label (supervised), and repelled by the rest.
"""

import torch
from torch.nn.functional import normalize

DIVISORS = {  # --cl_normalization -> N of contrastive_loss, from the anchors' numbers of positives (batch,)
    "released": lambda count: count.sum(),  # as released: by the number of positives a second time (D1)
    "supcon": lambda count: (count > 0).sum(),  # arXiv 2004.11362, equation 2
}


def contrastive_loss(
    anchors: torch.Tensor,
    own: torch.Tensor,
    extra: torch.Tensor,
    index: torch.Tensor,
    extra_index: torch.Tensor,
    labels: torch.Tensor | None = None,
    extra_labels: torch.Tensor | None = None,
    *,
    temperature: float,
    unsupervised_weight: float,
    supervised_weight: float = 0.0,
    normalization: str = "released",
) -> torch.Tensor:
    """The weighted sum of the unsupervised and the supervised term for one bank, a scalar.

    For every anchor i of the batch, with z the representations, of length 1, and tau the temperature:

        q(i, k) = exp(z_i . z_k / tau) / sum of exp(z_i . z_a / tau) over a in A(i)
        l(i)    = -1/|P(i)| * sum of log q(i, p) over p in P(i)
        L       = 1/N * sum of l(i) over the batch
        loss    = unsupervised_weight * L_unsup + supervised_weight * L_sup

        A(i)    the contrast set without anchor i's own copy: the other anchors, detached, and all R rows of the batch's
                examples and of the extra ones in the bank; so the denominator holds the positives too
        P(i)    the positives: in L_unsup the members of A(i) that represent example i, in L_sup those whose example
                has the label of example i
        N       with `normalization` "released" all positives, the sum of |P(i)| (D1); with "supcon" the anchors that
                have any

    `anchors` (batch, hidden), normalised here; `own` (batch, R, hidden) and `extra` (E, R, hidden), rows of a bank
    with R representations per example, already of length 1; `index` (batch,) and `extra_index` (E,), places in the
    training set; `labels` (batch,) and `extra_labels` (E,), needed for a supervised weight other than 0. Computed in
    the wider type of anchors and rows, at least float32. KeyError for another `normalization`.
    """
    wide = torch.promote_types(torch.promote_types(anchors.dtype, own.dtype), torch.float32)
    anchors = normalize(anchors.to(wide), dim=-1)
    # as released: the keys are detached, the gradient reaches the anchors alone (D4)
    contrast = torch.cat([anchors.detach(), own.flatten(0, 1), extra.flatten(0, 1)])
    columns = own.shape[1]  # R

    def repeat_per_column(batch: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        return torch.cat([batch, batch.repeat_interleave(columns), others.repeat_interleave(columns)])

    # A(i): all of the contrast set but the anchor's own detached copy
    itself = torch.eye(len(anchors), len(contrast), dtype=torch.bool, device=anchors.device)
    logits = (anchors @ contrast.T / temperature).masked_fill(itself, -torch.inf)
    log_q = logits.log_softmax(-1)
    # as released: an extra example that is also in the batch is a positive too (D2)
    same_example = (index[:, None] == repeat_per_column(index, extra_index)) & ~itself
    loss = unsupervised_weight * positive_loss(log_q, same_example, normalization)
    if supervised_weight:
        same_label = (labels[:, None] == repeat_per_column(labels, extra_labels)) & ~itself
        loss = loss + supervised_weight * positive_loss(log_q, same_label, normalization)
    return loss


def positive_loss(log_q: torch.Tensor, positive: torch.Tensor, normalization: str) -> torch.Tensor:
    """L of contrastive_loss from log q and P(i) as a mask, both (batch, contrast)."""
    count = positive.sum(-1)
    per_anchor = log_q.masked_fill(~positive, 0).sum(-1) / count.clamp(min=1)
    return -per_anchor.sum() / DIVISORS[normalization](count).clamp(min=1)
