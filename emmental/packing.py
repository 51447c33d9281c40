"""No arithmetic on padding: the real tokens of a batch stand in one row, and only attention takes them apart again.

Every layer of BERT but attention works token by token, so a batch of shape (batch, length) can pass through it as one
row of its real tokens. Attention is registered with transformers' AttentionInterface under the name "packed"; the
encoder hands it the batch's `Packing`, with which it restores the rows, attends within each and packs again.
"""

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

ATTENTION = "packed"


class Packing:
    """Where the real tokens of a padded batch stand.

    `attention_mask` is (batch, length), 1 for a real token. Kept on the CPU it is read without waiting for the device
    on which the tokens are.
    """

    def __init__(self, attention_mask: torch.Tensor, device: torch.device):
        self.shape = attention_mask.shape
        real = attention_mask.flatten().nonzero().squeeze(-1)
        self.full = len(real) == attention_mask.numel()
        self.real = real.to(device, non_blocking=True)  # (tokens,): places in the flattened batch
        # (batch, 1, 1, length): keys that may be attended to, for every head and query
        self.keys = None if self.full else attention_mask.to(device, non_blocking=True).bool()[:, None, None]

    def pack(self, padded: torch.Tensor) -> torch.Tensor:
        """(batch, length, ...) -> (1, tokens, ...)"""
        flat = padded.flatten(0, 1)
        return (flat if self.full else flat[self.real])[None]

    def unpack(self, packed: torch.Tensor) -> torch.Tensor:
        """(1, tokens, ...) -> (batch, length, ...), zeros for padding"""
        tokens = packed[0]
        if not self.full:
            tokens = tokens.new_zeros(self.shape.numel(), *tokens.shape[1:]).index_copy(0, self.real, tokens)
        return tokens.view(*self.shape, *tokens.shape[1:])


def packed_attention(module, query, key, value, attention_mask, dropout=0.0, scaling=None, packing=None, **_):
    """Attention on (batch, heads, length, head size), or on (1, heads, tokens, head size) with a `packing`.

    Returns (batch, length, heads, head size) or (1, tokens, heads, head size), and no attention weights.
    """
    if packing is not None:
        query, key, value = (packing.unpack(x.transpose(1, 2)).transpose(1, 2) for x in (query, key, value))
        attention_mask = packing.keys
    context = scaled_dot_product_attention(query, key, value, attention_mask, dropout, scale=scaling).transpose(1, 2)
    return (context if packing is None else packing.pack(context)), None


AttentionInterface.register(ATTENTION, packed_attention)


def set_packing(model: nn.Module, on: bool) -> None:
    """Turns packing on (the default) or off; off, every position of a padded batch is computed, as released."""
    for module in model.modules():
        if hasattr(module, "packing"):
            module.packing = on
