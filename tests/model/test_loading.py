"""Models are computed in float32 whatever their files hold, and older files are read."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from emmental import (
    MaskedBertConfig,
    MaskedBertForQuestionAnswering,
    MaskedBertForSequenceClassification,
    load_sparse,
    set_threshold,
)
from emmental.model import loading
from emmental.model.heads import CLASSIFIES
from emmental.utils.errors import InputError

SIZES = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


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
    config = MaskedBertConfig(**SIZES, pruning_method="magnitude", threshold=0.5)
    MaskedBertForSequenceClassification(config).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["bert.embeddings.position_ids"] = torch.arange(512)[None]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    assert loading.load_masked(str(tmp_path)).config.threshold == 0.5


def test_weights_that_the_model_lacks_are_refused(tmp_path):
    config = MaskedBertConfig(**SIZES, pruning_method="magnitude", threshold=0.5)
    MaskedBertForSequenceClassification(config).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict() | {"num_hidden_layers": 1}))
    with pytest.raises(InputError, match=r"16 weights are of another model, the first bert.encoder.layer.1.attention"):
        loading.load_masked(str(tmp_path))


def test_a_model_in_several_files_is_loaded(tmp_path):
    model = MaskedBertForSequenceClassification(MaskedBertConfig(**SIZES, threshold=0.5))
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    loaded = loading.load_masked(str(tmp_path)).state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in model.state_dict().items())


def test_the_threshold_that_was_set_last_is_saved(tmp_path):
    model = MaskedBertForSequenceClassification(MaskedBertConfig(**SIZES, mask_init="uniform", mask_scale=0.1)).eval()
    set_threshold(model, 0.3)
    ids = torch.tensor([[2, 9, 10, 3]])
    model.save_pretrained(tmp_path)
    loaded = MaskedBertForSequenceClassification.from_pretrained(tmp_path)
    assert loaded.config.threshold == 0.3 and torch.equal(loaded(ids).logits, model(ids).logits)


@pytest.mark.parametrize("kind", [MaskedBertForSequenceClassification, MaskedBertForQuestionAnswering])
def test_a_model_can_be_pickled(kind, tmp_path):
    """In another process, too, which has made no model yet."""
    model, ids = kind(MaskedBertConfig(**SIZES)).eval(), torch.tensor([[2, 9, 10, 3]])
    torch.save(model, tmp_path / "model.pt")
    read = "import torch, sys, emmental; torch.load(sys.argv[1], weights_only=False)"
    subprocess.run([sys.executable, "-c", read, tmp_path / "model.pt"], check=True)
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    assert torch.equal(loaded(ids)[0], model(ids)[0])
