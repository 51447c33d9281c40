"""Banks: which extra examples are drawn, in which type columns are kept, and how the student is encoded for them."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from emmental import MaskedBertConfig, MaskedBertForSequenceClassification
from emmental.contrast.bank import Bank, sample
from emmental.contrast.encoding import encode_epoch
from emmental.data.examples import Examples
from emmental.utils.precision import Precision

CPU = torch.device("cpu")


def test_extra_examples_differ_from_one_another_and_from_draw_to_draw():
    """Seed, step, batch of the step and bank all count."""
    seeds = [(42, 0, 0, 0), (43, 0, 0, 0), (42, 1, 0, 0), (42, 0, 1, 0), (42, 0, 0, 1)]
    draws = [sample(100, 60, seed).tolist() for seed in seeds]
    assert all(len(set(draw)) == 60 and max(draw) < 100 for draw in draws)
    assert len({tuple(sorted(draw)) for draw in draws}) == 5


def test_all_are_drawn_where_there_are_fewer():
    assert sorted(sample(100, 4096, (0,))) == list(range(100))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_columns_are_kept_and_written_in_the_banks_type(tmp_path, dtype):
    bank, column = Bank(tmp_path, CPU, dtype), torch.rand(5, 3)
    bank.add("one.safetensors", column, write=True)
    assert bank.columns[0].dtype == dtype and load_file(tmp_path / "one.safetensors")["rows"].dtype == dtype
    rows = bank.rows(index := torch.tensor([4, 1]), index)
    assert rows.dtype == torch.float32 and torch.equal(rows[:, 0], column.to(dtype)[[4, 1]].float())


@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("epoch, name", [(0, "pretrained"), (1, "snapshots")])
def test_a_pass_has_the_banks_own_dropout(tmp_path, epoch, name, dropout):
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = MaskedBertConfig(**sizes, intermediate_size=24, pruning_method="topK", hidden_dropout_prob=0.5)
    model, bank = MaskedBertForSequenceClassification(config), Bank(tmp_path, CPU, torch.float32, dropout)
    ids = np.arange(1, 16)
    examples = Examples(ids, np.zeros_like(ids), np.array([0, 5, 8, 15]), (torch.zeros(3, dtype=torch.long),))
    for _ in range(2):
        model.train(not dropout)  # whatever the mode before
        encode_epoch(epoch, {name: bank}, model, examples, Precision(CPU))
    assert torch.equal(*bank.columns) != dropout
