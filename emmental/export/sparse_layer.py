"""One encoder layer of a pruned and folded BERT, fast on a CPU because it multiplies by compressed sparse rows.

Activations are (features, tokens) from the first layer to the last, split into tiles by token, because a sparse matrix
times such a tile reads and writes whole rows. Beside the products each operation on a tile has its price, so there are
few: bias, residual connection and LayerNorm's weight and bias are entries of the matrices.
"""

import math
import time
import timeit
from collections.abc import Callable
from functools import partial
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import BertConfig
from transformers.activations import ACT2FN

# The most tokens of a tile. A sparse product reads whole rows of its input, which should stay in the cache, and keeps a
# row of its result in registers: 8 of 16 floats, or 14 of 8. A dense product likes wider tiles.
TILE = {"sparse": 128 if "AVX512" in torch.backends.cpu.get_cpu_capability() else 112, "dense": 512}
ALIGNED = 16  # tokens; then each row of a tile begins on a cache line


def make_tiles(x: Tensor, most: int) -> list[Tensor]:
    """x (hidden, tokens) as tiles (hidden + 1, width), the fewest of at most `most` tokens, all of one width.

    The last row of a tile is ones, which the bias multiplies. Columns of zeros fill the last tile.
    """
    hidden, tokens = x.shape
    width = ALIGNED * math.ceil(tokens / math.ceil(tokens / most) / ALIGNED)
    tiles = []
    for part in x.split(width, dim=1):
        tile = torch.zeros(hidden + 1, width)
        tile[:-1, : part.shape[1]], tile[-1] = part, 1
        tiles.append(tile)
    return tiles


def _multiply(starts: Tensor, columns: Tensor, values: Tensor, x: Tensor) -> Tensor:
    # A weighted bag of rows of x is the product with compressed sparse rows, and 1.3 to 2 times as fast as torch's own.
    return torch.embedding_bag(x, columns, starts, False, 0, False, values, True)[0]


def _sparse(matrix: Tensor) -> Callable:
    row, column = matrix.nonzero(as_tuple=True)
    starts = torch.searchsorted(row, torch.arange(len(matrix) + 1))
    return partial(_multiply, starts.int(), column.int(), matrix[row, column])


def _widen_sparse(weight: Tensor, bias: Tensor) -> Callable:
    matrix = torch.cat([weight, bias[:, None]], dim=1)
    return _sparse(torch.cat([matrix, torch.eye(matrix.shape[1])]))


def _narrow_sparse(weight: Tensor, bias: Tensor, scale: Tensor) -> Callable:
    return _sparse(torch.cat([weight, scale.diag(), bias[:, None]], dim=1))


def _widen_dense(weight: Tensor, bias: Tensor) -> Callable:
    def product(tile: Tensor) -> Tensor:
        block = torch.empty(len(weight) + len(tile), tile.shape[1])
        torch.addmm(bias[:, None], weight, tile[:-1], out=block[: len(weight)])
        block[len(weight) :] = tile
        return block

    return product


def _narrow_dense(weight: Tensor, bias: Tensor, scale: Tensor) -> Callable:
    inner = weight.shape[1]
    return lambda block: torch.addmm(bias[:, None], weight, block[:inner]).addcmul_(scale[:, None], block[inner:-1])


def _linear_sparse(weight: Tensor, bias: Tensor) -> Callable:
    return _sparse(torch.cat([weight, bias[:, None]], dim=1))


def _linear_dense(weight: Tensor, bias: Tensor) -> Callable:
    return lambda tile: torch.addmm(bias[:, None], weight, tile[:-1])


class Kernel(NamedTuple):
    """Makers of the two products in each half of a BERT's layer, and of the product alone.

    `widen(weight, bias)` gives a function from a tile of x to a block, whose rows are weight @ x + bias, then the
    tile. `narrow(weight, bias, scale)` gives one from a block of rows y, then the tile, to weight @ y + bias +
    scale * x, which is the residual connection. `linear(weight, bias)` gives one from a tile of x to weight @ x + bias.
    """

    widen: Callable
    narrow: Callable
    linear: Callable


KERNELS = {
    "sparse": Kernel(_widen_sparse, _narrow_sparse, _linear_sparse),
    "dense": Kernel(_widen_dense, _narrow_dense, _linear_dense),
}


def faster(weight: Tensor) -> str:
    """The name in `KERNELS` of the faster one for this matrix on this machine; sparse must win clearly."""
    tile = torch.ones(weight.shape[1], TILE["sparse"])
    runs = {"sparse": partial(_sparse(weight), tile), "dense": partial(torch.mm, weight, tile)}
    seconds = {name: [] for name in runs}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # timed by one thread's own clock, so that a busy machine does not decide
    try:
        for _ in range(6):
            for name, run in runs.items():
                seconds[name].append(timeit.timeit(run, timer=time.thread_time, number=1))
    finally:
        torch.set_num_threads(threads)
    return "sparse" if min(seconds["sparse"]) < 0.8 * min(seconds["dense"]) else "dense"


def activation(name: str) -> Callable:
    """The function of (x, out) that sets `out` to the activation of x."""
    if name == "gelu":
        return F.gelu
    function = ACT2FN[name]
    return lambda x, out: out.copy_(function(x))


class Layer:
    """One encoder layer on tiles.

    Activations between products are normalised only: a LayerNorm's scale and shift, `norm`, are folded into the
    matrices that read its result. `norm` comes from the layer before, and becomes that of the layer's own result.
    """

    def __init__(self, weights: dict[str, Tensor], norm: tuple[Tensor, Tensor], config: BertConfig, choose: Callable):
        """`weights` by name within the layer; `choose(name, weight)` is the kernel for that matrix."""
        self.heads, self.inner, self.eps = config.num_attention_heads, config.intermediate_size, config.layer_norm_eps
        self.act = activation(config.hidden_act)
        for part in ("weight", "bias"):
            query, key, value = (weights[f"attention.self.{name}.{part}"] for name in ("query", "key", "value"))
            query = query * (config.hidden_size // self.heads) ** -0.5
            weights[f"attention.self.{part}"] = torch.cat([key, value, query])

        def half(wide: str, narrow: str, norm: tuple[Tensor, Tensor]) -> tuple[Callable, Callable]:
            """The products before and after attention or the activation; they read y * scale + shift as y."""
            scale, shift = norm
            weight, bias = weights[f"{wide}.weight"], weights[f"{wide}.bias"]
            widen = choose(wide, weight).widen(weight * scale, bias + weight @ shift)
            weight, bias = weights[f"{narrow}.weight"], weights[f"{narrow}.bias"]
            return widen, choose(narrow, weight).narrow(weight, bias + shift, scale)

        between, self.norm = (
            (weights[f"{name}.LayerNorm.weight"], weights[f"{name}.LayerNorm.bias"])
            for name in ("attention.output", "output")
        )
        self.kvq, self.attended = half("attention.self", "attention.output.dense", norm)
        self.intermediate, self.output = half("intermediate.dense", "output.dense", between)

    def __call__(self, tiles: list[Tensor], lengths: list[int], first: bool) -> list[Tensor]:
        """Take rows of these lengths, which fill the tiles one after another, through the layer.

        With `first` only the first token of each row comes out, in one tile.
        """
        hidden = len(tiles[0]) - 1
        blocks = [self.kvq(tile) for tile in tiles]
        kvq = join([block[: 3 * hidden] for block in blocks])
        rows = kvq.view(3, self.heads, -1, kvq.shape[1])[..., : sum(lengths)].split(lengths, dim=-1)
        context = join([self._attend(*row, first) for row in rows])
        blocks = [block[2 * hidden :] for block in blocks]  # context takes the query's place
        if first:
            (tile,) = tiles = make_tiles(tiles[0][:-1, [0, *accumulate(lengths[:-1])]], len(lengths))
            blocks = [torch.cat([torch.zeros_like(tile[:-1]), tile])]
        for tile, block, part in zip(tiles, blocks, context.split(tiles[0].shape[1], dim=1), strict=True):
            block[:hidden, : part.shape[1]] = part
            normalise(self.attended(block), self.eps, tile[:-1])
            block = self.intermediate(tile)
            neurons = block[: self.inner]
            self.act(neurons, out=neurons)
            normalise(self.output(block), self.eps, tile[:-1])
        return tiles

    def _attend(self, key: Tensor, value: Tensor, query: Tensor, first: bool) -> Tensor:
        """Attention within one row of the batch: each (heads, features, tokens) -> (heads * features, tokens)."""
        query = query[..., :1] if first else query
        scores = torch.bmm(query.mT, key)
        torch.softmax(scores, dim=-1, out=scores)  # in place: at 384 tokens they are 7 MB, beyond most caches
        return torch.bmm(value, scores.mT).flatten(0, 1)


def normalise(y: Tensor, eps: float, out: Tensor) -> None:
    """Sets `out` to y (features, tokens), each token of mean 0 and variance 1: LayerNorm without weight and bias."""
    # Batch statistics over the features are LayerNorm's mean and variance, and fast in this layout. This is what
    # F.batch_norm calls, which cannot write to `out`.
    mean, scale = torch.empty(2, y.shape[1])
    torch.native_batch_norm(y, None, None, None, None, True, 0.0, eps, out=(out, mean, scale))


def join(parts: list[Tensor]) -> Tensor:
    """Side by side; without a copy where there is one."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
