"""A pass over a set: results at their examples' places, as wide as the widest window."""

import numpy as np
import torch

from emmental import MaskedBertConfig, MaskedBertForQuestionAnswering, MaskedBertForSequenceClassification
from emmental.data.examples import Examples
from emmental.model.inference import predict
from emmental.utils.precision import Precision

SIZES = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}


def test_positions_that_a_batch_lacks_have_no_chance(monkeypatch):
    """Two windows in batches of their own: the short one's logits are widened by what softmax makes 0."""
    monkeypatch.setattr("emmental.model.inference.TOKENS", {"cpu": 1})
    model = MaskedBertForQuestionAnswering(MaskedBertConfig(**SIZES, pruning_method=None))
    ids = np.arange(1, 14)
    windows = Examples(ids, np.zeros_like(ids), np.array([0, 4, 13]), ())
    for logits in predict(model, windows, Precision(torch.device("cpu")), "dev"):
        assert logits.shape == (2, 9) and (logits[0, 4:] == -1e4).all()
        assert (logits[0, :4] > -1e3).all() and (logits[1] > -1e3).all()


def test_representations_are_normalised_in_float32():
    """In bfloat16 a norm is 1 to two decimals only; banks hold what is normalised here."""
    torch.manual_seed(0)
    model, bf16 = MaskedBertForSequenceClassification(MaskedBertConfig(**SIZES)), torch.bfloat16
    ids = torch.tensor([[2, 9, 10, 3], [2, 11, 12, 3]])
    examples = Examples(ids.flatten().numpy(), np.zeros(8, int), np.array([0, 4, 8]), ())
    with torch.no_grad(), torch.autocast("cpu", bf16):
        encoded = model.eval().encode(ids)
    *_, predicted = predict(model, examples, Precision(torch.device("cpu"), bf16), "teacher", with_representation=True)
    for rows in (encoded, predicted):
        assert rows.dtype == torch.float32
        torch.testing.assert_close(rows.norm(dim=-1), torch.ones(2), atol=1e-5, rtol=0)
