"""The representation banks: for every training example, what other stages of the same model make of it.

PrC draws on the pre-trained model's representations, FiC on the fine-tuned teacher's, SnC on one snapshot for each
earlier epoch (arXiv 2112.07198). A bank is a list of columns, each (examples, hidden) and written once:
adding a snapshot copies nothing.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from emmental.utils.files import atomic_write, digest
from emmental.utils.transfers import rows_to_device, to_device


@dataclass(frozen=True)
class BankSample:
    """A bank's rows for one batch, those of its own examples (batch, R, hidden) and of extra ones (E, R, hidden).

    `extra_index` and `extra_labels` (E,) say which the extra examples are; the labels are None where none were given.
    """

    batch_rows: torch.Tensor
    extra_rows: torch.Tensor
    extra_index: torch.Tensor
    extra_labels: torch.Tensor | None


def sample(examples: int, count: int, seed: tuple[int, ...]) -> np.ndarray:
    """`count` different examples, or all where there are fewer, (count,); a function of the seed alone.

    as released: batch examples may be among them (D2).
    """
    return np.random.default_rng(seed).choice(examples, min(count, examples), replace=False, shuffle=False)


@dataclass
class DeviceRoom:
    """How many more columns go on the device: shared by all banks, first come, first served.

    A resumed run adds its columns in the same order.
    """

    columns: int


class Bank:
    """L2-normalised representations: R columns of (examples, hidden), and the files in `folder` that hold them.

    A column is on `device` if there is `room` for it, else in host memory (None: all of them). `dropout` says whether
    it is on while a column is encoded.
    """

    def __init__(
        self,
        folder: Path,
        device: torch.device,
        dtype: torch.dtype,
        dropout: bool = False,
        room: DeviceRoom | None = None,
    ):
        self.folder, self.device, self.dtype, self.dropout, self.room = folder, device, dtype, dropout, room
        self.columns: list[torch.Tensor] = []
        self.files: dict[str, list[int]] = {}  # name -> size and checksum, as checkpoints refer to them

    def add(self, file: str, column: torch.Tensor, write: bool) -> None:
        """Appends a column (examples, hidden); `write` it to `file` as well, which one process does."""
        column = column.to(self.dtype)
        if write:
            with atomic_write(self.folder / file) as temporary:
                save_file({"rows": column}, temporary)
            self.files[file] = digest(self.folder / file)
        self._place(column)

    def restore(self, files: dict[str, list[int]]) -> None:
        """Takes up the columns that a checkpoint refers to, in the order in which they were added."""
        self.files = dict(files)
        for file in files:
            self._place(load_file(self.folder / file)["rows"])

    def _place(self, column: torch.Tensor) -> None:
        if self.room and self.room.columns:
            self.room.columns -= 1
            column = column.to(self.device)
        self.columns.append(column)

    def rows(self, index: torch.Tensor, index_device: torch.Tensor) -> torch.Tensor:
        """The rows of the examples `index` (batch,) as float32 on the device, (batch, R, hidden).

        `index_device` is `index` on the bank's device, for the columns that lie there.
        """
        parts = [
            rows_to_device(column, index, self.device)
            if column.device.type == "cpu"
            else column.index_select(0, index_device)
            for column in self.columns
        ]
        return (torch.stack(parts, dim=1) if len(parts) > 1 else parts[0][:, None]).float()

    def draw(
        self,
        index: torch.Tensor,
        index_device: torch.Tensor,
        labels: torch.Tensor | None,
        extra: int,
        seed: tuple[int, ...],
    ) -> BankSample:
        """The batch's own rows and those of extra // R drawn examples, `extra` rows in all (D3, as released).

        `index` (batch,), and the same on the device; `labels` (examples,), those of the whole set, or None.
        """
        others = torch.from_numpy(sample(len(self.columns[0]), extra // len(self.columns), seed))
        extra_index = to_device(others, self.device)
        return BankSample(
            batch_rows=self.rows(index, index_device),
            extra_rows=self.rows(others, extra_index),
            extra_index=extra_index,
            extra_labels=None if labels is None else rows_to_device(labels, others, self.device),
        )
