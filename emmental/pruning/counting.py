"""How sparse a model is, by the released definition and by the masked matrices alone."""

import re
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from emmental.pruning.masked_linear import kept_weights, masked_linears

# what the heat map calls a layer's matrices; others keep their names
COLUMNS = {
    **{f"attention.self.{name}": name for name in ("query", "key", "value")},
    **{"attention.q_lin": "query", "attention.k_lin": "key", "attention.v_lin": "value"},
    **{"attn.Wqkv": "query, key,\nvalue"},
    **dict.fromkeys(("attention.output.dense", "attention.out_lin", "attn.Wo"), "attention\noutput"),
    **dict.fromkeys(("intermediate.dense", "ffn.lin1", "mlp.Wi"), "FFN\nin"),
    **dict.fromkeys(("output.dense", "ffn.lin2", "mlp.Wo"), "FFN\nout"),
}


@dataclass(frozen=True)
class Count:
    """Weights kept, of how many: by masked matrix, and of everything else in the encoder (biases and LayerNorms)."""

    matrices: dict[str, tuple[int, int]]
    unmasked: int

    @property
    def kept(self) -> int:
        return sum(kept for kept, _ in self.matrices.values())

    @property
    def total(self) -> int:
        return sum(total for _, total in self.matrices.values())

    @property
    def remaining(self) -> float:
        """Percent of the weights of the masked matrices that remain."""
        return 100 * self.kept / self.total

    @property
    def remaining_released(self) -> float:
        """Percent as released (D19): biases and LayerNorms of the encoder count as kept, and in the total."""
        return 100 * (self.kept + self.unmasked) / (self.total + self.unmasked)


def count(model: nn.Module) -> Count:
    """Counts a masked model's present masks; a device is waited for once."""
    linears = masked_linears(model)
    kept = torch.stack([kept_weights(linear) for linear in linears.values()]).tolist()
    parts = zip(linears.items(), kept, strict=True)
    matrices = {f"{name}.weight": (number, linear.weight.numel()) for (name, linear), number in parts}
    encoder = dict(model.encoder.named_parameters())
    unmasked = sum(p.numel() for name, p in encoder.items() if not name.endswith("mask_scores"))
    return Count(matrices, unmasked - sum(total for _, total in matrices.values()))


def table(counted: Count) -> str:
    """The count by matrix, and both totals, to be printed."""
    width = max(len(name) for name in counted.matrices)
    lines = [f"{'matrix':{width}}  {'kept':>12}  {'of':>12}  {'%':>7}"]
    lines += [f"{name:{width}}  {k:12,}  {n:12,}  {100 * k / n:7.3f}" for name, (k, n) in counted.matrices.items()]
    kept, total = counted.kept, counted.total
    lines += [
        f"remaining weights, masked matrices only: {counted.remaining:.3f} % ({kept:,} of {total:,})",
        f"remaining weights, as released (biases and LayerNorms of the encoder count as kept): "
        f"{counted.remaining_released:.3f} % ({kept + counted.unmasked:,} of {total + counted.unmasked:,})",
    ]
    return "\n".join(lines)


def as_json(counted: Count) -> dict:
    return {
        "remaining_weights": counted.remaining,
        "remaining_weights_released": counted.remaining_released,
        "kept": counted.kept,
        "total": counted.total,
        "unmasked": counted.unmasked,
        "matrices": {name: {"kept": kept, "total": total} for name, (kept, total) in counted.matrices.items()},
    }


def heat_map(counted: Count):
    """A matplotlib figure: percent remaining by layer (rows) and matrix (columns), the number in each cell."""
    from matplotlib.colors import LogNorm  # optional, which callers ask for first
    from matplotlib.figure import Figure

    cells, kinds = {}, {}
    for name, (kept, total) in counted.matrices.items():
        layer, kind = re.search(r"layers?\.(\d+)\.(.+?)(?:\.weight)?$", name).groups()
        cells[int(layer), kinds.setdefault(kind, len(kinds))] = 100 * kept / total
    layers = max(layer for layer, _ in cells) + 1
    values = np.array([[cells[layer, kind] for kind in range(len(kinds))] for layer in range(layers)])
    figure = Figure(figsize=(8, 1.6 + 0.42 * layers), layout="constrained")
    axes = figure.subplots()
    # logarithmic, since what matters at 3 % is 2 against 4, not the distance to 100
    norm = LogNorm(vmin=0.1, vmax=100, clip=True)
    image = axes.imshow(np.maximum(values, 0.1), norm=norm, cmap="viridis", aspect="auto")
    for (layer, kind), percent in cells.items():
        shade = "black" if norm(max(percent, 0.1)) > 0.6 else "white"
        axes.text(kind, layer, f"{percent:.3g}", ha="center", va="center", color=shade)
    axes.set_xticks(range(len(kinds)), [COLUMNS.get(kind, kind) for kind in kinds])
    axes.set_yticks(range(layers), [f"layer {layer}" for layer in range(layers)])
    axes.set_title(f"Remaining weights by matrix, percent (all masked matrices: {counted.remaining:.2f} %)")
    bar = figure.colorbar(image, label="percent, logarithmic scale")
    bar.set_ticks([0.1, 1, 10, 100], labels=["0.1 or less", "1", "10", "100"])
    return figure
