"""One encoder layer of a pruned and folded ModernBERT, on the tiles and products of `sparse_layer`.

It differs from BERT's in that its LayerNorms come before the matrices, so that tiles hold the residual stream as it is;
positions turn queries and keys; most layers attend to neighbours alone; and the feed-forward neurons are gated.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import ModernBertConfig
from transformers.models.modernbert.modeling_modernbert import ModernBertRotaryEmbedding

from emmental.export.sparse_layer import activation, join, normalise

Turns = dict[str, tuple[Tensor, Tensor]]  # kind of layer -> cosines and sines, each (head size, tokens)


class RotaryLayer:
    """One encoder layer on tiles; LayerNorms' scales and shifts are folded into the matrices that read them."""

    def __init__(self, weights: dict[str, Tensor], config: ModernBertConfig, kind: str, choose: Callable):
        """`weights` by name within the layer, `kind` as in the config's layer_types; `choose` as in sparse_layer."""
        self.heads, self.inner, self.eps = config.num_attention_heads, config.intermediate_size, config.norm_eps
        self.kind, self.window = kind, config.sliding_window if kind == "sliding_attention" else None
        self.act, self.first = activation(config.hidden_activation), "attn_norm.weight" not in weights

        def product(name: str, norm: str = "", scale: Tensor | float = 1.0) -> Callable:
            weight = weights[f"{name}.weight"]
            bias = weights.get(f"{name}.bias", torch.zeros(len(weight)))
            kernel = choose(name, weight)
            if f"{norm}.bias" in weights:
                bias = bias + weight @ weights[f"{norm}.bias"]
            if f"{norm}.weight" in weights:
                weight = weight * weights[f"{norm}.weight"]
            return kernel.linear((weight.T * scale).T, bias * scale)

        scale = torch.ones(3, config.hidden_size)
        scale[0] = (config.hidden_size // self.heads) ** -0.5  # of the queries
        self.qkv, self.attended = product("attn.Wqkv", "attn_norm", scale.flatten()), product("attn.Wo")
        self.intermediate, self.output = product("mlp.Wi", "mlp_norm"), product("mlp.Wo")

    def __call__(self, tiles: list[Tensor], lengths: list[int], places: Tensor, turns: Turns) -> list[Tensor]:
        """Take rows of these lengths, which fill the tiles one after another, through the layer, in place.

        `places` (tokens,) are the tokens' positions in their rows.
        """
        hidden = len(tiles[0]) - 1
        qkv = join([self.qkv(tile if self.first else self._normed(tile)) for tile in tiles])
        query, key, value = qkv.view(3, self.heads, -1, qkv.shape[1])[..., : len(places)]
        query, key = (turn(x, *turns[self.kind]) for x in (query, key))
        rows = zip(*(x.split(lengths, dim=-1) for x in (query, key, value, places)), strict=True)
        context = join([self._attend(*row) for row in rows])
        for tile, part in zip(tiles, context.split(tiles[0].shape[1], dim=1), strict=True):
            block = torch.zeros_like(tile)
            block[:hidden, : part.shape[1]], block[-1] = part, 1
            tile[:-1] += self.attended(block)
            neurons, gates = self.intermediate(self._normed(tile)).split(self.inner)
            block = torch.ones(self.inner + 1, tile.shape[1])
            self.act(neurons, out=block[:-1])
            block[:-1] *= gates
            tile[:-1] += self.output(block)
        return tiles

    def _normed(self, tile: Tensor) -> Tensor:
        normed = torch.ones_like(tile)
        normalise(tile[:-1], self.eps, out=normed[:-1])
        return normed

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, places: Tensor) -> Tensor:
        """Attention within one row of the batch: each (heads, features, tokens) -> (heads * features, tokens)."""
        scores = torch.bmm(query.mT, key)
        if self.window is not None and places[-1] > self.window:
            scores.masked_fill_((places[:, None] - places).abs() > self.window, -torch.inf)
        torch.softmax(scores, dim=-1, out=scores)
        return torch.bmm(value, scores.mT).flatten(0, 1)


def turn(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Queries or keys (heads, head size, tokens) turned by their positions (arXiv 2104.09864, as transformers does)."""
    one, other = x.chunk(2, dim=1)
    return x * cosines + torch.cat([-other, one], dim=1) * sines


def turns(rotary: ModernBertRotaryEmbedding, places: Tensor) -> Turns:
    """By how much positions (tokens,) turn queries and keys, for each kind of layer."""
    angles = {kind: rotary(torch.zeros(1), places[None], kind) for kind in rotary.layer_types}
    return {kind: tuple(x[0].T for x in pair) for kind, pair in angles.items()}
