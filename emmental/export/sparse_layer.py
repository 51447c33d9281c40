"""One encoder layer of a pruned and folded BERT, fast on a CPU because it multiplies by compressed sparse rows.

Activations are (features, tokens) from the first layer to the last, cut into tiles by token, because a sparse matrix
times such a tile reads and writes whole rows. Beside the products each operation on a tile has its price, so there are
few: bias, residual connection and LayerNorm's weight and bias are entries of the matrices.
"""

import math
import time
import timeit
from collections.abc import Callable
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import BertConfig
from transformers.activations import ACT2FN

# The most tokens of a tile. A sparse product reads whole rows of its input, which should stay in the cache, and keeps a
# row of its result in registers: 8 of 16 floats, or 14 of 8. A dense product likes wider tiles.
TILE = {"sparse": 128 if "AVX512" in torch.backends.cpu.get_cpu_capability() else 112, "dense": 192}
ALIGNED = 16  # tokens; then each row of a tile begins on a cache line


class Stack:
    """A tile as the products read it, (inner + hidden + 1, width): rows `top`, x and ones, which the bias multiplies.

    `whole` is read with the residual connection, `x_and_one` without. Only the ones are set.
    """

    def __init__(self, inner: int, hidden: int, width: int):
        self.whole = torch.empty(inner + hidden + 1, width)
        self.whole[-1] = 1
        self.top, self.x, self.x_and_one = self.whole[:inner], self.whole[inner:-1], self.whole[inner:]


def make_tiles(x: Tensor, most: int) -> list[Stack]:
    """x (hidden, tokens) as the stacks that attention reads, the fewest of at most `most` tokens, all of one width.

    Columns of zeros fill the last one.
    """
    hidden, tokens = x.shape
    width = ALIGNED * math.ceil(tokens / math.ceil(tokens / most) / ALIGNED)
    tiles = []
    for part in x.split(width, dim=1):
        tile, real = Stack(hidden, hidden, width), part.shape[1]
        tile.top[:, real:], tile.x[:, :real], tile.x[:, real:] = 0, part, 0
        tiles.append(tile)
    return tiles


def _sparse(starts: Tensor, columns: Tensor, values: Tensor, x: Tensor) -> Tensor:
    # A weighted bag of rows of x is the product with compressed sparse rows, and 1.5 to 2 times as fast as torch's own.
    return torch.embedding_bag(x, columns, starts, False, 0, False, values, True)[0]


def _to_sparse(weight: Tensor, bias: Tensor, residual: Tensor | None) -> Callable:
    diagonal = [] if residual is None else [residual.diag()]
    matrix = torch.cat([weight, *diagonal, bias[:, None]], dim=1)
    row, column = matrix.nonzero(as_tuple=True)
    starts = torch.searchsorted(row, torch.arange(len(matrix) + 1))
    return partial(_sparse, starts.int(), column.int(), matrix[row, column])


def _dense(weight: Tensor, bias: Tensor, residual: Tensor | None, x: Tensor) -> Tensor:
    inner = weight.shape[1]
    y = torch.addmm(bias[:, None], weight, x[:inner])
    return y if residual is None else y.addcmul_(residual[:, None], x[inner:-1])


def _to_dense(weight: Tensor, bias: Tensor, residual: Tensor | None) -> Callable:
    return partial(_dense, weight, bias, residual)


# Makers of the function from a stack (top, x, 1) to weight @ top + residual * x + bias, or, where `residual` is None,
# from (x, 1) to weight @ x + bias.
KERNELS = {"sparse": _to_sparse, "dense": _to_dense}


def faster(weight: Tensor) -> str:
    """The name of the faster kernel for this matrix on this machine; sparse must win clearly."""
    rows, columns = weight.shape
    runs = {
        name: partial(make(weight, torch.ones(rows), None), torch.ones(columns + 1, TILE[name]))
        for name, make in KERNELS.items()
    }
    seconds = {name: [] for name in runs}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # timed by one thread's own clock, so that a busy machine does not decide
    try:
        for _ in range(6):
            for name, run in runs.items():
                seconds[name].append(timeit.timeit(run, timer=time.thread_time, number=1) / TILE[name])
    finally:
        torch.set_num_threads(threads)
    return "sparse" if min(seconds["sparse"]) < 0.8 * min(seconds["dense"]) else "dense"


def _activation(name: str) -> Callable:
    """The function of (x, out) that sets `out` to the activation of x."""
    if name == "gelu":
        return F.gelu
    function = ACT2FN[name]
    return lambda x, out: out.copy_(function(x))


class Layer:
    """One encoder layer on tiles; query, key and value are one matrix.

    Activations between products are normalised only: the weight and bias of a LayerNorm, `norm`, are folded into the
    matrices that read its result. `norm` comes from the layer before, and becomes that of the layer's own result.
    """

    def __init__(self, weights: dict[str, Tensor], norm: tuple[Tensor, Tensor], config: BertConfig, linear: Callable):
        self.heads, self.inner, self.eps = config.num_attention_heads, config.intermediate_size, config.layer_norm_eps
        self.act = _activation(config.hidden_act)
        scale = (config.hidden_size // self.heads) ** -0.5
        for part in ("weight", "bias"):
            query, key, value = (weights[f"attention.self.{name}.{part}"] for name in ("query", "key", "value"))
            weights[f"attention.self.{part}"] = torch.cat([query * scale, key, value])

        def half(reader: str, writer: str, norm: tuple[Tensor, Tensor]) -> list[Callable]:
            """The matrices of x = normalised * norm[0] + norm[1] that read x, and to whose result x is added."""
            weight, bias = (weights[f"{reader}.{part}"] for part in ("weight", "bias"))
            return [
                linear(reader, weight * norm[0], bias + weight @ norm[1], None),
                linear(writer, weights[f"{writer}.weight"], weights[f"{writer}.bias"] + norm[1], norm[0]),
            ]

        between, self.norm = (
            tuple(weights[f"{name}.LayerNorm.{part}"] for part in ("weight", "bias"))
            for name in ("attention.output", "output")
        )
        self.qkv, self.attended = half("attention.self", "attention.output.dense", norm)
        self.intermediate, self.output = half("intermediate.dense", "output.dense", between)

    def __call__(self, tiles: list[Stack], lengths: list[int], first: bool) -> list[Stack]:
        """Take rows of these lengths, which fill the tiles one after another, through the layer.

        With `first` only the first token of each row comes out, in one tile.
        """
        qkv = join([self.qkv(tile.x_and_one) for tile in tiles])
        rows = qkv.view(3, self.heads, -1, qkv.shape[1])[..., : sum(lengths)].split(lengths, dim=-1)
        context = join([self._attend(*row, first) for row in rows])
        if first:
            tiles = make_tiles(tiles[0].x[:, [0, *accumulate(lengths[:-1])]], len(lengths))
        for tile, part in zip(tiles, context.split(tiles[0].x.shape[1], dim=1), strict=True):
            tile.top[:, : part.shape[1]] = part
            self._feed_forward(tile)
        return tiles

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, first: bool) -> Tensor:
        """Attention within one row of the batch: each (heads, features, tokens) -> (heads * features, tokens)."""
        query = query[..., :1] if first else query
        return (value @ torch.softmax(query.mT @ key, dim=-1).mT).flatten(0, 1)

    def _feed_forward(self, tile: Stack):
        wide = Stack(self.inner, *tile.x.shape)
        self._norm(self.attended(tile.whole), wide.x)
        self.act(self.intermediate(wide.x_and_one), out=wide.top)
        self._norm(self.output(wide.whole), tile.x)

    def _norm(self, x: Tensor, out: Tensor):
        # Batch statistics over the features are LayerNorm's mean and variance, and fast in this layout. This is what
        # F.batch_norm calls, which cannot write to `out`.
        mean, scale = torch.empty(2, x.shape[1])
        torch.native_batch_norm(x, None, None, None, None, True, 0.0, self.eps, out=(out, mean, scale))


def join(parts: list[Tensor]) -> Tensor:
    """Side by side; without a copy where there is one."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
