"""A pass over a set: results at their examples' places, as wide as the widest window."""

import numpy as np
import torch

from emmental import MaskedBertConfig, MaskedBertForQuestionAnswering
from emmental.data.examples import Examples
from emmental.model.inference import predict
from emmental.utils.precision import Precision


def test_positions_that_a_batch_lacks_have_no_chance(monkeypatch):
    """Two windows in batches of their own: the short one's logits are widened by what softmax makes 0."""
    monkeypatch.setattr("emmental.model.inference.TOKENS", {"cpu": 1})
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = MaskedBertForQuestionAnswering(MaskedBertConfig(**sizes, intermediate_size=24, pruning_method=None))
    ids = np.arange(1, 14)
    windows = Examples(ids, np.zeros_like(ids), np.array([0, 4, 13]), ())
    for logits in predict(model, windows, Precision(torch.device("cpu")), "dev"):
        assert logits.shape == (2, 9) and (logits[0, 4:] == -1e4).all()
        assert (logits[0, :4] > -1e3).all() and (logits[1] > -1e3).all()
