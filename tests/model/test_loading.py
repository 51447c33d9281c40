"""Models are computed in float32 whatever their files hold, and older files are read."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from emmental import MaskedBertConfig, MaskedBertForSequenceClassification, load_sparse
from emmental.model import loading
from emmental.model.heads import CLASSIFIES


@pytest.fixture
def half(world, tmp_path):
    """A plain model's folder in float16, as bertarize.py and the Hub have them."""
    folder = shutil.copytree(world.teacher("qqp"), tmp_path / "half")
    weights = {name: weight.half() for name, weight in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "float16"}))
    return folder


def test_a_half_precision_model_is_computed_in_float32(half):
    model, ids = loading.load(CLASSIFIES, str(half), pruning_method=None).eval(), torch.tensor([[2, 9, 10, 3]])
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    with torch.no_grad():
        torch.testing.assert_close(load_sparse(half)(ids).logits, model(ids).logits, atol=1e-5, rtol=1e-5)


def test_a_buffer_of_positions_in_an_older_file_is_passed_over(tmp_path):
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = MaskedBertConfig(**sizes, intermediate_size=24, pruning_method="magnitude", threshold=0.5)
    MaskedBertForSequenceClassification(config).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["bert.embeddings.position_ids"] = torch.arange(512)[None]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    assert loading.load_masked(str(tmp_path)).config.threshold == 0.5
