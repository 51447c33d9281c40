"""No arithmetic on padding: the real tokens of a batch form one row, and only attention takes them apart again.

Every layer of BERT but attention works token by token, so a batch of shape (batch, length) can pass through it as one
row of its real tokens, the longest text first. Attention is registered with transformers' AttentionInterface under the
name "packed"; the encoder hands it the batch's `Packing`, with which it restores texts of like length together,
attends within each and packs again.
"""

from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from emmental.model.dropout import dropout
from emmental.utils.transfers import to_device

ATTENTION = "packed"
GROUPS = 4  # of texts of like length on a CPU, where a position costs more than a call; one on other devices


@dataclass(frozen=True)
class Group:
    """Texts that are attended to together: `shape` (texts, width), padded to the widest."""

    shape: tuple[int, int]
    tokens: int
    device: torch.device
    real: torch.Tensor | None  # (tokens,): places in the flattened group; None: it has no padding
    keys: torch.Tensor | None  # (texts, 1, 1, width): keys that may be attended to, for every head and query
    close: dict[int, torch.Tensor] = field(default_factory=dict)  # `near` of each window, which many layers share

    def near(self, window: int) -> torch.Tensor | None:
        """(texts or 1, 1, width, width): which keys are real and at most `window` places from a query, or itself."""
        width = self.shape[1]
        if width <= window + 1:
            return self.keys
        if window not in self.close:
            self.close[window] = self._near(window)
        return self.close[window]

    def _near(self, window: int) -> torch.Tensor:
        width = self.shape[1]
        places = torch.arange(width, device=self.device)
        distance = (places[:, None] - places).abs()
        close = (distance <= window)[None, None]
        return close if self.keys is None else close & self.keys | (distance == 0)  # else padding would attend to none

    def unpack(self, tokens: torch.Tensor) -> torch.Tensor:
        """(tokens, heads, head size) -> (texts, heads, width, head size), zeros for padding"""
        if self.real is not None:
            texts, width = self.shape
            tokens = tokens.new_zeros(texts * width, *tokens.shape[1:]).index_copy_(0, self.real, tokens)
        return tokens.view(*self.shape, *tokens.shape[1:]).transpose(1, 2)

    def pack(self, context: torch.Tensor) -> torch.Tensor:
        """(texts, heads, width, head size) -> (tokens, heads, head size)"""
        context = context.transpose(1, 2).flatten(0, 1)
        return context if self.real is None else context.index_select(0, self.real)

    def attend(
        self, query, key, value, p: float, scaling: float, alone: bool, window: int | None = None
    ) -> torch.Tensor:
        """Attention within each text of (tokens, heads, head size); with `alone`, `query` is of first tokens only."""
        query = query[:, :, None] if alone else self.unpack(query)
        keys = self.keys if window is None else self.near(window)
        context = attention(query, self.unpack(key), self.unpack(value), keys, p, scaling)
        return context.squeeze(2) if alone else self.pack(context)


class Packing:
    """The places of a padded batch's real tokens in the packed row, and in its groups.

    `attention_mask` is (batch, length), 1 for a real token; the first of every text must be one. Kept on the CPU it is
    read without waiting for the device on which the tokens are.
    """

    def __init__(self, attention_mask: torch.Tensor, device: torch.device):
        self.shape = batch, length = attention_mask.shape
        widths = (attention_mask * torch.arange(1, length + 1, device=attention_mask.device)).amax(1)
        order = widths.argsort(descending=True, stable=True)
        attention_mask, widths, counts = attention_mask[order], widths[order].tolist(), attention_mask.sum(1)[order]
        texts, places = attention_mask.nonzero(as_tuple=True)
        self.real = to_device(order[texts] * length + places, device)  # (tokens,): places in the flattened batch
        # (batch,): each text's first token, the longest text first, and the way from that order to the batch's
        self.first = to_device(counts.cumsum(0) - counts, device)
        self.inverse = to_device(order.argsort(), device)
        self.groups = []
        for members in torch.arange(batch).tensor_split(min(batch, GROUPS if device.type == "cpu" else 1)):
            mask = attention_mask[members, : widths[members[0]]]
            real = mask.flatten().nonzero().squeeze(-1)
            padding = (real, mask.bool()[:, None, None]) if len(real) < mask.numel() else ()
            padded = [to_device(x, device) for x in padding] or [None, None]
            self.groups.append(Group(tuple(mask.shape), len(real), device, *padded))

    def pack(self, padded: torch.Tensor) -> torch.Tensor:
        """(batch, length, ...) -> (1, tokens, ...)"""
        return padded.flatten(0, 1).index_select(0, self.real)[None]

    def unpack(self, packed: torch.Tensor) -> torch.Tensor:
        """(1, tokens, ...) -> (batch, length, ...), zeros for padding"""
        tokens = packed.squeeze(0)  # unlike [0] its gradient needs no fill and no copy
        tokens = tokens.new_zeros(self.shape.numel(), *tokens.shape[1:]).index_copy_(0, self.real, tokens)
        return tokens.view(*self.shape, *tokens.shape[1:])

    def attend(self, query, key, value, p: float, scaling: float, window: int | None = None) -> torch.Tensor:
        """Attention within each text of (tokens, heads, head size); `query` may be of first tokens alone.

        With a `window`, every token attends to those at most so many places away.
        """
        alone = len(query) < len(key)
        if len(self.groups) == 1:
            return self.groups[0].attend(query, key, value, p, scaling, alone, window)
        queries = query.split([group.shape[0] if alone else group.tokens for group in self.groups])
        keys, values = (x.split([group.tokens for group in self.groups]) for x in (key, value))
        parts = zip(self.groups, queries, keys, values, strict=True)
        return torch.cat([group.attend(*part, p, scaling, alone, window) for group, *part in parts])


def attention(query, key, value, keys, p: float, scaling: float) -> torch.Tensor:
    """Attention on (texts, heads, length, head size), with dropout of probability `p` on its weights."""
    if not p or query.device.type != "cpu":
        return scaled_dot_product_attention(query, key, value, keys, p, scale=scaling)
    scores = (query * scaling) @ key.mT  # torch's own would draw its dropout element by element
    if keys is not None:
        scores = scores.masked_fill(keys.logical_not(), -torch.inf)
    return dropout(scores.softmax(-1), p) @ value


def packed_attention(
    module, query, key, value, attention_mask, dropout=0.0, scaling=None, packing=None, sliding_window=None, **_
):
    """Attention on (batch, heads, length, head size), or on (1, heads, tokens, head size) with a `packing`.

    Returns (batch, length, heads, head size) or (1, tokens, heads, head size), and no attention weights.
    """
    if packing is None:
        context = scaled_dot_product_attention(query, key, value, attention_mask, dropout, scale=scaling)
        return context.transpose(1, 2), None
    tokens = (x.squeeze(0).transpose(0, 1) for x in (query, key, value))
    window = None if sliding_window is None else sliding_window - 1  # ModernBERT's counts the token itself
    return packing.attend(*tokens, dropout, scaling, window)[None], None


def bert_first_tokens(layer: nn.Module, hidden: torch.Tensor, packing: Packing) -> torch.Tensor:
    """A BERT layer's output for the first token of each text alone, (1, tokens, hidden) -> (batch, hidden)."""
    tokens, attending = hidden.squeeze(0), layer.attention.self
    first = tokens.index_select(0, packing.first)
    query, key, value = attending.query(first), attending.key(tokens), attending.value(tokens)
    context = first_context(attending, query, key, value, packing)
    return layer.feed_forward_chunk(layer.attention.output(context, first)).index_select(0, packing.inverse)


def distilbert_first_tokens(layer: nn.Module, hidden: torch.Tensor, packing: Packing) -> torch.Tensor:
    """The same of a DistilBERT layer."""
    tokens, attending = hidden.squeeze(0), layer.attention
    first = tokens.index_select(0, packing.first)
    query, key, value = attending.q_lin(first), attending.k_lin(tokens), attending.v_lin(tokens)
    context = first_context(attending, query, key, value, packing)
    attended = layer.sa_layer_norm(attending.out_lin(context) + first)
    return layer.output_layer_norm(layer.ffn(attended) + attended).index_select(0, packing.inverse)


def first_context(attending: nn.Module, query, key, value, packing: Packing) -> torch.Tensor:
    """What first tokens' queries (batch, hidden) gather from keys and values (tokens, hidden): (batch, hidden)."""
    p = attending.dropout.p if attending.training else 0.0
    split = (x.unflatten(-1, (-1, attending.attention_head_size)) for x in (query, key, value))
    return packing.attend(*split, p, attending.scaling).flatten(1)


# How a layer's first tokens alone are computed, by the names of its modules; a family without an entry computes all.
FIRST_TOKENS = {"bert": bert_first_tokens, "distilbert": distilbert_first_tokens}

AttentionInterface.register(ATTENTION, packed_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)  # for whoever calls the inner BertModel with a padded batch


def set_packing(model: nn.Module, on: bool) -> None:
    """Turns packing on (the default) or off; off, every position of a padded batch is computed, as released (D37).

    Dropout goes with it: off, its rate is exact on a CPU too.
    """
    for module in model.modules():
        if hasattr(module, "packing"):
            module.packing = on
