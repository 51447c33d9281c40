"""Tokenised examples without padding, and the padded batches made of them.

One `Examples` holds a whole training or evaluation set as flat arrays, example i being the tokens from `offsets[i]`
to `offsets[i + 1]`. An example's place in it is its `index`, under which the banks and the teacher's logits are kept.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch


@dataclass(frozen=True)
class Examples:
    """A tokenised set.

    `input_ids` and `token_type_ids`: (tokens,); `offsets`: (examples + 1,), from 0; `labels`: one (examples,) tensor
    per classification, that is one for a sentence task and two, start and end position, for a span. `pad_to`: the
    length to which every batch is padded; None: its longest example's. `pad_token`: what padding is filled with.
    """

    input_ids: np.ndarray
    token_type_ids: np.ndarray
    offsets: np.ndarray
    labels: tuple[torch.Tensor, ...]
    pad_to: int | None = None
    pad_token: int = 0

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each example, (examples,)."""
        return np.diff(self.offsets)

    @property
    def padded_lengths(self) -> np.ndarray:
        """The length to which each example is padded at least, (examples,)."""
        return self.lengths if self.pad_to is None else np.full(len(self), self.pad_to)

    def padded_length(self, index: np.ndarray) -> int:
        """The length of a batch of the examples `index`."""
        return int(self.lengths[index].max()) if self.pad_to is None else self.pad_to

    def inputs(self, index: np.ndarray, length: int | None = None) -> dict[str, torch.Tensor]:
        """The padded model inputs of the examples `index`, each (batch, length); padding has type 0.

        `length` is given where they are only a part of a batch.
        """
        starts, lengths = self.offsets[index], self.offsets[np.asarray(index) + 1] - self.offsets[index]
        length = self.padded_length(index) if length is None else length
        real = np.arange(length) < lengths[:, None]
        tokens = (starts[:, None] + np.arange(length))[real]
        padded = {"attention_mask": torch.from_numpy(real.astype(np.int64))}
        for name, fill in (("input_ids", self.pad_token), ("token_type_ids", 0)):
            values = np.full(real.shape, fill, dtype=np.int64)
            values[real] = getattr(self, name)[tokens]
            padded[name] = torch.from_numpy(values)
        return padded

    def ragged(self, padded: np.ndarray) -> np.ndarray:
        """The real tokens' values of a padded array, (examples, length) -> (tokens,), as in the flat arrays."""
        return padded[np.arange(padded.shape[1]) < self.lengths[:, None]]
