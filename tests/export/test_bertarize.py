"""What bertarize.py may replace, and what it leaves where it cannot write."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.numpy import load_file
from tiny import run_script, succeed


def pruned(world, folder: Path) -> Path:
    """A masked model made of a teacher."""
    shutil.copytree(world.teacher("qqp"), folder)
    config = json.loads((folder / "config.json").read_text())
    settings = {"model_type": "masked_bert", "pruning_method": "magnitude", "threshold": 0.5}
    settings["architectures"] = ["MaskedBertForSequenceClassification"]
    (folder / "config.json").write_text(json.dumps(config | settings))
    return folder


def test_an_earlier_call_s_folder_is_replaced(world, tmp_path):
    """Whatever its form was; without --overwrite it stays as it is."""
    masked, target = pruned(world, tmp_path / "masked"), tmp_path / "target"
    command = ["bertarize.py", "--model_name_or_path", masked, "--target_model_path", target]
    succeed(*command, "--format", "sparse")
    refused = run_script(*command)
    assert refused.code == 2 and "exists; --overwrite replaces it" in refused.err
    assert (target / "model.sparse.safetensors").exists()
    (tmp_path / "target.partial").mkdir()  # of a call that was killed
    (tmp_path / "target.partial" / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "target.partial" / "model.sparse.safetensors.partial").touch()
    succeed(*command, "--overwrite")
    names = {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt"}
    assert {path.name for path in target.iterdir()} == names and not (tmp_path / "target.partial").exists()
    kept = [(x != 0).mean() for name, x in load_file(target / "model.safetensors").items() if "query.weight" in name]
    assert kept == [0.5, 0.5]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_plain_folder_is_in_the_type_asked_for(world, tmp_path, dtype):
    masked, target = pruned(world, tmp_path / "masked"), tmp_path / "target"
    fold = ["bertarize.py", "--model_name_or_path", masked, "--target_model_path", target, "--format", "dense"]
    succeed(*fold, "--dtype", dtype)
    assert {str(weight.dtype) for weight in load_file(target / "model.safetensors").values()} == {dtype}
    assert json.loads((target / "config.json").read_text())["dtype"] == dtype


def test_without_a_target_the_folder_is_named_after_the_model(world, tmp_path):
    masked = pruned(world, tmp_path / "masked")
    succeed("bertarize.py", "--model_name_or_path", masked)
    assert (tmp_path / "bertarized_masked" / "model.safetensors").exists()


def test_folders_of_another_form_are_named(world, tmp_path):
    masked, dense, packed = (tmp_path / name for name in ("masked", "dense", "packed"))
    fold = ["bertarize.py", "--model_name_or_path", pruned(world, masked), "--target_model_path"]
    succeed(*fold, dense)
    succeed(*fold, packed, "--format", "sparse")
    for folder in (dense, packed):
        modes = {path.stat().st_mode & 0o777 for path in folder.iterdir()}
        assert modes == {(folder / "config.json").stat().st_mode & 0o777}
        answer = run_script("counts_parameters.py", "--serialization_dir", folder)
        assert answer.code == 2 and "it is not masked, or folded already" in answer.err
    train = [*world.command("qqp", packed), "--do_train", "--output_dir", tmp_path / "out"]
    answer = run_script(*train)
    assert answer.code == 2 and f"{packed}: packed, for evaluation alone" in answer.err


@pytest.mark.parametrize("form", ["dense", "sparse"])
def test_a_full_disk_gives_one_line_and_leaves_nothing(world, tmp_path, form):
    command = ["bertarize.py", "--model_name_or_path", pruned(world, tmp_path / "masked"), "--format", form]
    full = run_script(*command, "--target_model_path", tmp_path / "out", before=("limit_file_size", 5000))
    (line,) = full.err.splitlines()
    assert full.code == 2 and "could not be written" in line
    assert [path.name for path in tmp_path.iterdir()] == ["masked"]


def test_a_config_may_name_no_class(world, tmp_path):
    config = json.loads((pruned(world, tmp_path / "masked") / "config.json").read_text())
    del config["architectures"]
    (tmp_path / "masked" / "config.json").write_text(json.dumps(config))
    succeed("bertarize.py", "--model_name_or_path", tmp_path / "masked", "--target_model_path", tmp_path / "out")
    assert "BertForSequenceClassification" in (tmp_path / "out" / "README.md").read_text()
