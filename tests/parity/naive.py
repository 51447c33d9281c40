"""CAP as its formulas say, without a thought for time: what training is compared with where the released code's figures
do not reach. Nothing of emmental is used here.

Weights and scores are tensors by the released names, of a BERT of two layers with two heads and no dropout. The
formulas are those of arXiv 2112.07198 and 2005.07683, with what is kept of the released code (DIFFERENCES.md, D1 to
D17).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch.nn import functional as F

LINEARS = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")
LINEARS += ("intermediate.dense", "output.dense")
MATRICES = [f"bert.encoder.layer.{layer}.{linear}" for layer in (0, 1) for linear in LINEARS]
KEEP_ALL = -1e2  # below every score


@dataclass(frozen=True)
class Recipe:
    """The released flags, by shorter names; `total` optimizer steps, of which epochs have `per_epoch`."""

    total: int
    per_epoch: int
    task: str = "labels"  # or "scores" (a regression), or "spans"
    method: str = "topK"
    alignrep: str = "cls"
    warmup: int = 2
    initial: float = 1.0
    final: float = 0.1
    initial_warmup: int = 1
    final_warmup: int = 1
    final_lambda: float = 0.0
    penalty: str | None = None
    cut_every: int | None = None
    banks: tuple[str, ...] = ("pretrained", "finetuned", "snapshots")
    extra: int = 12
    tau: float = 0.1
    unsupervised: float = 0.1
    supervised: float = 10.0
    normalization: str = "released"
    ce: float = 0.1
    kl: float = 0.9
    temperature: float = 2.0
    lr: float = 3e-3
    scores_lr: float = 1e-2
    decay: float = 0.0
    clip: float = 1.0

    @property
    def first_step(self) -> int:
        return int(self.task == "spans")


def kept(weight: torch.Tensor, scores: torch.Tensor | None, method: str | None, threshold: float) -> torch.Tensor:
    """The factor on a matrix: its mask, whose gradient goes to the scores as it is."""
    if method is None:
        return torch.ones_like(weight)
    if method == "l0":
        noise = torch.zeros_like(scores).uniform_().clamp(1e-4, 1 - 1e-4)
        gate = torch.sigmoid((torch.log(noise) - torch.log(1 - noise) + scores) / (2 / 3))
        return (gate * 1.2 - 0.1).clamp(0, 1)
    values = (weight.abs() if method == "magnitude" else scores).detach().flatten()
    if method in ("topK", "magnitude"):
        order = sorted(range(len(values)), key=lambda place: (-values[place].item(), place))
        largest = order[: int(threshold * len(values))]
    else:
        compared = values.sigmoid() if method == "sigmoied_threshold" else values
        largest = [place for place in range(len(values)) if compared[place] > threshold]
        assert len(largest) > int(0.005 * len(values))  # no case here needs the minimum
    mask = torch.zeros_like(values)
    mask[largest] = 1
    mask = mask.view_as(weight)
    return mask if method == "magnitude" else mask + scores - scores.detach()


def encoded(weights: dict, inputs: tuple, factors: dict) -> torch.Tensor:
    """The last layer's hidden states, (batch, length, hidden)."""
    ids, mask, types = inputs
    batch, length = ids.shape

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-12)

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(x, weights[f"{name}.weight"] * factors[name], weights[f"{name}.bias"])

    tables = ("word", ids), ("position", torch.arange(length)), ("token_type", types)
    hidden = sum(weights[f"bert.embeddings.{name}_embeddings.weight"][places] for name, places in tables)
    hidden = norm(hidden, "bert.embeddings.LayerNorm")
    for layer in (0, 1):
        name = f"bert.encoder.layer.{layer}"
        query, key, value = (
            linear(hidden, f"{name}.attention.self.{part}").view(batch, length, 2, -1).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        attention = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        attention = attention.masked_fill(mask[:, None, None] == 0, -torch.inf).softmax(-1)
        context = (attention @ value).transpose(1, 2).flatten(2)
        context = linear(context, f"{name}.attention.output.dense")
        hidden = norm(hidden + context, f"{name}.attention.output.LayerNorm")
        inner = F.gelu(linear(hidden, f"{name}.intermediate.dense"))
        hidden = norm(hidden + linear(inner, f"{name}.output.dense"), f"{name}.output.LayerNorm")
    return hidden


def represented(weights: dict, recipe: Recipe, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    if recipe.alignrep == "mean-pooling":
        return torch.stack([row[real == 1].mean(0) for row, real in zip(hidden, mask, strict=True)])
    if recipe.task == "spans":
        return hidden[:, 0]
    return F.linear(hidden[:, 0], weights["bert.pooler.dense.weight"], weights["bert.pooler.dense.bias"]).tanh()


def logits_of(weights: dict, recipe: Recipe, hidden: torch.Tensor) -> tuple[torch.Tensor, ...]:
    if recipe.task == "spans":
        return F.linear(hidden, weights["qa_outputs.weight"], weights["qa_outputs.bias"]).unbind(-1)
    pooled = F.linear(hidden[:, 0], weights["bert.pooler.dense.weight"], weights["bert.pooler.dense.bias"]).tanh()
    return (F.linear(pooled, weights["classifier.weight"], weights["classifier.bias"]),)


def contrast(recipe: Recipe, anchors: torch.Tensor, bank: torch.Tensor, index, extra, labels) -> torch.Tensor:
    """One bank's loss, anchor by anchor and positive by positive; `bank` (examples, R, hidden)."""
    anchors = F.normalize(anchors, dim=-1)
    members = [(int(i), anchor.detach()) for i, anchor in zip(index, anchors, strict=True)]
    members += [(int(i), row) for i in (*index, *extra) for row in bank[int(i)]]
    loss = torch.zeros(())
    for weight, key in ((recipe.unsupervised, lambda i: i), (recipe.supervised, lambda i: labels[i].item())):
        if not weight:
            continue
        total, positives, some = torch.zeros(()), 0, 0
        for place, (own, anchor) in enumerate(zip(index, anchors, strict=True)):
            others = members[:place] + members[place + 1 :]
            log_q = (torch.stack([row for _, row in others]) @ anchor / recipe.tau).log_softmax(0)
            chosen = [log_q[k] for k, (i, _) in enumerate(others) if key(i) == key(int(own))]
            if chosen:
                total, positives, some = total - sum(chosen) / len(chosen), positives + len(chosen), some + 1
        loss = loss + weight * total / (positives if recipe.normalization == "released" else some)
    return loss


def scheduled(recipe: Recipe, step: int) -> tuple[float, float]:
    """Threshold and lambda of optimizer step `step`."""
    start, end = recipe.initial_warmup * recipe.warmup, recipe.total - recipe.final_warmup * recipe.warmup
    step += recipe.first_step
    threshold = recipe.initial if step <= start else recipe.final
    if start < step <= end:
        threshold += (recipe.initial - recipe.final) * (1 - (step - start) / (end - start)) ** 3
    return threshold, recipe.final_lambda * threshold / recipe.final


@dataclass
class Naive:
    """A training run. `draw(bank's number, step, batch's number, count)` says which extra examples are drawn."""

    recipe: Recipe
    weights: dict[str, torch.Tensor]
    teacher: dict[str, torch.Tensor]
    data: tuple[torch.Tensor, ...]  # input_ids, attention_mask, token_type_ids of the whole set
    labels: tuple[torch.Tensor, ...]
    draw: Callable[..., list[int]]
    banks: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    moments: dict[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    cut: float | None = None
    threshold: float = 0.0  # of the step before

    def __post_init__(self):
        self.banks = {name: [] for name in self.recipe.banks}
        hidden = encoded(self.teacher, self.data, dict.fromkeys(MATRICES, 1.0))
        self.teacher_logits = [values.detach() for values in logits_of(self.teacher, self.recipe, hidden)]
        if "finetuned" in self.banks:
            self.banks["finetuned"].append(self.rows(self.teacher, hidden))
        self.threshold = self.global_cut(self.recipe.initial) if self.recipe.cut_every else self.recipe.initial

    def rows(self, weights: dict, hidden: torch.Tensor) -> torch.Tensor:
        return F.normalize(represented(weights, self.recipe, hidden, self.data[1]), dim=-1).detach()

    def factors(self) -> dict[str, torch.Tensor]:
        scores = (self.weights.get(f"{name}.mask_scores") for name in MATRICES)
        each = zip(MATRICES, scores, strict=True)
        return {n: kept(self.weights[f"{n}.weight"], s, self.recipe.method, self.threshold) for n, s in each}

    def epoch(self, number: int) -> None:
        """The bank's column at the start of an epoch, with the masks of the step before."""
        if (bank := "snapshots" if number else "pretrained") in self.banks:
            hidden = encoded(self.weights, self.data, self.factors())
            self.banks[bank].append(self.rows(self.weights, hidden))

    def schedule(self, step: int) -> float:
        """Sets this step's threshold, or global cut; returns lambda."""
        self.threshold, regu_lambda = scheduled(self.recipe, step)
        if self.recipe.cut_every:
            if self.cut in (None, KEEP_ALL) or (step + self.recipe.first_step) % self.recipe.cut_every == 0:
                self.cut = self.global_cut(self.threshold)
            self.threshold = self.cut
        return regu_lambda

    def global_cut(self, threshold: float) -> float:
        """The score above which a share `threshold` of all scores lies."""
        scores = torch.cat([self.weights[f"{name}.mask_scores"].flatten() for name in MATRICES])
        place = max(len(scores) - (int(len(scores) * threshold) + 1), 1)
        return KEEP_ALL if threshold == 1 else sorted(scores.tolist())[place - 1]

    def parts(self, index, step: int, number: int, factors: dict, regu_lambda: float) -> dict[str, torch.Tensor]:
        """The weighted parts of the loss of batch `number` of a step, the examples `index`."""
        recipe, inputs = self.recipe, tuple(values[index] for values in self.data)
        hidden = encoded(self.weights, inputs, factors)
        logits, parts = logits_of(self.weights, recipe, hidden), {}
        pairs = list(zip(logits, (each[index] for each in self.labels), self.teacher_logits, strict=True))
        if recipe.task == "scores":
            parts["task"] = sum((given[:, 0] - wanted).square().mean() for given, wanted, _ in pairs)
            parts["distillation"] = sum((given - teacher[index]).square().mean() for given, _, teacher in pairs)
        else:
            parts["task"] = sum(-given.log_softmax(-1)[range(len(index)), to].mean() for given, to, _ in pairs)
            parts["distillation"] = 0
            for given, _, teacher in pairs:
                p = (teacher[index] / recipe.temperature).softmax(-1)
                gap = p.log() - (given / recipe.temperature).log_softmax(-1)
                parts["distillation"] += (p * gap).sum() / len(index) * recipe.temperature**2
        parts = {name: value / len(pairs) for name, value in parts.items()}
        parts = {"task": recipe.ce * parts["task"], "distillation": recipe.kl * parts["distillation"]}
        anchors = represented(self.weights, recipe, hidden, inputs[1])
        for place, (name, columns) in enumerate(self.banks.items()):
            if columns:
                extra = self.draw(place, step, number, recipe.extra // len(columns))
                parts[name] = contrast(recipe, anchors, torch.stack(columns, 1), index, extra, self.labels[0])
        if recipe.penalty:
            shift = {"l1": 0.0, "l0": 2 / 3 * math.log(0.1 / 1.1)}[recipe.penalty]
            means = [torch.sigmoid(self.weights[f"{name}.mask_scores"] - shift).mean() for name in MATRICES]
            parts["penalty"] = regu_lambda * sum(means) / len(means)
        return parts

    def step(self, step: int, batches: list) -> tuple[dict[str, float], float, float, float]:
        """One optimizer step: the mean parts of its batches' losses, the gradient's norm, threshold and lambda."""
        regu_lambda, sums = self.schedule(step), {}
        trained = {name: value for name, value in self.weights.items() if "embeddings" not in name}
        for value in trained.values():
            value.requires_grad_()
        factors = self.factors()  # one mask for all batches of a step
        for number, index in enumerate(batches):
            parts = self.parts(index, step, number, factors, regu_lambda)
            (sum(parts.values()) / len(batches)).backward(retain_graph=True)
            for name, value in parts.items():
                sums[name] = sums.get(name, 0.0) + float(value.detach()) / len(batches)
        gradients = {name: value.grad for name, value in trained.items() if value.grad is not None}
        norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients.values()))
        for name, gradient in gradients.items():
            self.move(name, gradient * min(1.0, self.recipe.clip / (norm + 1e-6)), step)
        return sums, norm, scheduled(self.recipe, step)[0], regu_lambda

    @torch.no_grad()
    def move(self, name: str, gradient: torch.Tensor, step: int) -> None:
        """AdamW: epsilon outside the bias correction, decay of the updated weights."""
        recipe, value, scores = self.recipe, self.weights[name].detach(), name.endswith("mask_scores")
        first, second = self.moments.get(name, (torch.zeros_like(value), torch.zeros_like(value)))
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        self.moments[name] = first, second
        up, down = step / max(1, recipe.warmup), (recipe.total - step) / max(1, recipe.total - recipe.warmup)
        rate = (recipe.scores_lr if scores else recipe.lr) * (up if step < recipe.warmup else down)
        corrected = rate * math.sqrt(1 - 0.999 ** (step + 1)) / (1 - 0.9 ** (step + 1))
        value = value - corrected * first / (second.sqrt() + 1e-8)
        if recipe.decay and not (scores or name.endswith(("bias", "LayerNorm.weight"))):
            value = value - rate * recipe.decay * value
        self.weights[name] = value
