"""What bertarize.py may replace."""

import json
import shutil

from safetensors.numpy import load_file
from tiny import run_script, succeed


def test_an_earlier_call_s_folder_is_replaced(world, tmp_path):
    """Whatever its form was; without --overwrite it stays as it is."""
    masked = shutil.copytree(world.teacher("qqp"), tmp_path / "masked")
    config = json.loads((masked / "config.json").read_text())
    settings = {"model_type": "masked_bert", "pruning_method": "magnitude", "threshold": 0.5}
    settings["architectures"] = ["MaskedBertForSequenceClassification"]
    (masked / "config.json").write_text(json.dumps(config | settings))
    target = tmp_path / "target"
    command = ["bertarize.py", "--model_name_or_path", masked, "--target_model_path", target]
    succeed(*command, "--format", "sparse")
    refused = run_script(*command)
    assert refused.code == 2 and "exists; --overwrite replaces it" in refused.err
    assert (target / "model.sparse.safetensors").exists()
    (tmp_path / "target.partial").mkdir()  # of a call that was killed
    (tmp_path / "target.partial" / "config.json").write_text('{"model_type": "bert"}')
    succeed(*command, "--overwrite")
    names = {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt"}
    assert {path.name for path in target.iterdir()} == names and not (tmp_path / "target.partial").exists()
    kept = [(x != 0).mean() for name, x in load_file(target / "model.safetensors").items() if "query.weight" in name]
    assert kept == [0.5, 0.5]
