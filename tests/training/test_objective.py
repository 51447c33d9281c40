"""A batch's loss: its parts, by name, are those of the formulas on the whole set."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from emmental import MaskedLinear, contrastive_loss
from emmental.contrast.bank import Bank, sample
from emmental.data.examples import Examples
from emmental.training.loop import batch_loss
from emmental.training.objective import Objective, distillation
from emmental.utils.precision import Precision

WEIGHTS = {
    "ce_weight": 0.1,
    "distill_weight": 0.9,
    "distill_temperature": 2.0,
    "contrastive_temperature": 0.5,
    "unsupervised_weight": 0.3,
    "supervised_weight": 10.0,
    "normalization": "released",
    "penalty": "l1",
    "extra_examples": 6,
}


class Outputs:
    def __init__(self, logits, representation):
        self.classifications, self.representation = (logits,), representation


class Model(nn.Module):
    """Sums a text's embeddings: enough to tell examples, and padding, apart."""

    def __init__(self):
        super().__init__()
        self.embedding, self.score = nn.Embedding(50, 8), MaskedLinear(8, 3, pruning_method="sigmoied_threshold")

    def forward(self, input_ids, attention_mask, token_type_ids, with_representation=True):
        hidden = self.embedding(input_ids).sum(1)
        return Outputs(self.score(hidden), hidden if with_representation else None)


@pytest.fixture
def case(tmp_path):
    torch.manual_seed(0)
    lengths = [3, 5, 2, 4, 6, 3, 2, 5]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = np.random.default_rng(0).integers(1, 50, offsets[-1])
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    examples = Examples(tokens, np.zeros_like(tokens), offsets, (labels,))
    bank = Bank(tmp_path, torch.device("cpu"), torch.float32)
    columns = [nn.functional.normalize(torch.randn(8, 8), dim=-1) for _ in range(2)]
    for column in columns:
        bank.add("", column, write=False)
    empty = Bank(tmp_path, torch.device("cpu"), torch.float32)
    return Model(), examples, {"pretrained": empty, "snapshots": bank}, torch.stack(columns, 1), torch.randn(8, 3)


def test_parts_of_a_batch_equal_the_formulas(case):
    model, examples, banks, rows, teacher = case
    index, seed = np.array([4, 0, 3]), (42, 7, 0)
    cpu = Precision(torch.device("cpu"))
    parts = batch_loss(model, examples, banks, (teacher,), Objective(**WEIGHTS), index, seed, 2.5, cpu)
    assert list(parts) == ["task", "distillation", "snapshots", "penalty"]  # an empty bank is passed over

    outputs = model(**examples.inputs(index))
    (logits,), labels = outputs.classifications, examples.labels[0]
    places, extra = torch.from_numpy(index), torch.from_numpy(sample(8, 3, (42, 7, 0, 1)))
    assert parts["task"].item() == pytest.approx(-0.1 * float(
        torch.stack([logits.log_softmax(-1)[i, labels[place]] for i, place in enumerate(places)]).mean().detach()
    ))  # fmt: skip
    student, target = (x.div(2).softmax(-1) for x in (logits, teacher[places]))
    kl = sum((target * (target.log() - student.log())).sum(-1)) / 3
    assert parts["distillation"].item() == pytest.approx(0.9 * 4 * kl.item(), rel=1e-5)
    contrasted = contrastive_loss(
        *(outputs.representation, rows[places], rows[extra], places, extra, labels[places], labels[extra]),
        temperature=0.5, unsupervised_weight=0.3, supervised_weight=10.0,
    )  # fmt: skip
    assert parts["snapshots"].item() == pytest.approx(contrasted.item(), rel=1e-5)
    scores = model.score.mask_scores.flatten().tolist()
    assert parts["penalty"].item() == pytest.approx(2.5 * sum(1 / (1 + math.exp(-x)) for x in scores) / len(scores))


def test_without_lambda_and_contrast_the_other_parts_are_the_same(case):
    model, examples, banks, _, teacher = case
    index, cpu = np.array([4, 0, 3]), Precision(torch.device("cpu"))
    whole = batch_loss(model, examples, banks, (teacher,), Objective(**WEIGHTS), index, (42, 7, 0), 2.5, cpu)
    parts = batch_loss(model, examples, {}, (teacher,), Objective(**WEIGHTS), index, (42, 7, 0), 0.0, cpu)
    assert list(parts) == ["task", "distillation", "penalty"] and parts["penalty"].item() == 0
    assert all(torch.equal(parts[name], whole[name]) for name in ("task", "distillation"))


@pytest.mark.parametrize("anchors, rows", [("float64", "float64"), ("float32", "float64"), ("bfloat16", "float16")])
def test_contrast_is_computed_in_the_wider_type(anchors, rows):
    given = [torch.randn(3, 4, generator=torch.Generator().manual_seed(0)) for _ in range(3)]
    index, extra = torch.tensor([0, 1, 2]), torch.tensor([3, 4, 5])

    def loss(*types: str) -> torch.Tensor:
        values = [value.to(getattr(torch, each)) for value, each in zip(given, types, strict=True)]
        of_bank = (value[:, None] / value.norm(dim=-1)[:, None, None] for value in values[1:])
        return contrastive_loss(values[0], *of_bank, index, extra, temperature=0.5, unsupervised_weight=1.0)

    found, expected = loss(anchors, rows, rows), loss("float64", "float64", "float64")
    assert found.dtype == (torch.float64 if rows == "float64" else torch.float32)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6 if rows == "float64" else 0.02)


def test_a_regression_distils_the_squared_distance():
    student, teacher = torch.tensor([[1.0], [4.0]]), torch.tensor([[3.0], [4.0]])
    assert distillation((student,), (teacher,), temperature=2.0).item() == 2.0  # the mean of 4 and 0


def test_batches_are_padded_to_their_longest_or_to_the_length_of_the_set(case):
    _, examples, *_ = case
    padded = Examples(examples.input_ids, examples.token_type_ids, examples.offsets, examples.labels, pad_to=9)
    index = np.array([2, 0])
    assert examples.padded_length(index) == 3 and padded.padded_length(index) == 9
    for some, length in ((examples, 3), (padded, 9)):
        inputs = some.inputs(index)
        assert inputs["input_ids"].shape == (2, length) and inputs["attention_mask"].sum(1).tolist() == [2, 3]
        assert inputs["input_ids"][0, :2].tolist() == examples.input_ids[slice(*examples.offsets[2:4])].tolist()
    assert padded.padded_lengths.tolist() == [9] * 8 and examples.padded_lengths.tolist() == [3, 5, 2, 4, 6, 3, 2, 5]
