"""The model card: its metadata as the Hub's library reads it, what it says, and that its Python loads the model."""

import os
import re
import shlex
import socket

import pytest
from huggingface_hub import ModelCard
from tiny import HARD, TRAIN, result, succeed

from emmental.export.model_card import license_of, write_card
from emmental.pruning.masked_linear import masked_linears

SHORT = ["--max_steps", 4, "--save_steps", 0]


def card(folder):
    return ModelCard((folder / "README.md").read_text())


def test_a_card_names_data_set_and_metrics_as_the_hub_does(tmp_path):
    rows = {"train": 3, "dev": 2}
    write_card(tmp_path, ["x.py"], ARGUMENTS | {"task_name": "mrpc"}, {"acc": 0.5, "f1": 0.25}, rows)
    found = [(x.metric_type, x.metric_name, x.dataset_type, x.dataset_config) for x in card(tmp_path).data.eval_results]
    assert found == [("accuracy", "acc", "nyu-mll/glue", "mrpc"), ("f1", "f1", "nyu-mll/glue", "mrpc")]


@pytest.mark.parametrize("version_2, name, config", [(True, "squad_v2", "squad_v2"), (False, "squad", "plain_text")])
def test_a_card_of_a_squad_names_its_version_and_how_it_was_trained(tmp_path, version_2, name, config):
    arguments = {key: value for key, value in ARGUMENTS.items() if key != "task_name"} | {"model_type": "masked_bert"}
    arguments |= {"version_2_with_negative": version_2, "banks": ("snapshots",), "use_distill": True}
    write_card(tmp_path, ["x.py"], arguments, {"exact": 50.0}, {"train": 3, "dev": 2})
    (found,) = card(tmp_path).data.eval_results
    assert (found.metric_type, found.dataset_type, found.dataset_config) == ("exact_match", f"rajpurkar/{name}", config)
    assert found.dataset_name == f"SQuAD v{'2.0' if version_2 else '1.1'}"
    assert "with contrastive losses (banks: snapshots) and distillation." in card(tmp_path).text


def loaded(folder):
    """The model that the card's lines of Python load, run where a download of the folder would lie."""
    (code,) = re.findall(r"```python\n(.*?)```", card(folder).text, re.DOTALL)
    names, before = {}, os.getcwd()
    os.chdir(folder.parent)
    try:
        exec(code, names)
    finally:
        os.chdir(before)
    return names["model"]


@pytest.mark.parametrize(
    "task, data, kind",
    [("qqp", "nyu-mll/glue", "text-classification"), ("squad1", "rajpurkar/squad", "question-answering")],
)
def test_trained_and_folded_models_carry_their_evidence(world, tmp_path, task, data, kind):
    masked, dense, packed = (tmp_path / name for name in ("masked", "dense", "packed"))
    succeed(*world.command(task), *TRAIN, *HARD, *SHORT, "--output_dir", masked)
    fold = ["bertarize.py", "--model_name_or_path", masked, "--target_model_path"]
    succeed(*fold, dense)
    succeed(*fold, packed, "--format", "sparse")

    found, metric = result(masked), "f1"
    for folder in (masked, dense, packed):
        about = card(folder)
        assert (about.data.datasets, about.data.pipeline_tag, about.data.license) == ([data], kind, "unknown")
        assert about.data.library_name == ("transformers" if folder == dense else "emmental")
        assert about.data.base_model is None  # a folder here is no name on the Hub
        measured = {entry.metric_name: entry for entry in about.data.eval_results}
        assert measured[metric].metric_value == found[metric]
        assert measured[metric].dataset_args == {"rows": 21 if task == "qqp" else 12}
        assert f"{found['remaining_weights']:.2f} % remain" in about.text
        percent = found[metric] * (100 if task == "qqp" else 1)
        assert f"| f1 | {percent:.2f} % | {21 if task == 'qqp' else 12} |" in about.text
        assert f"Trained on {26 if task == 'qqp' else 16}" in about.text
        assert re.search(r"Commit [0-9a-f]{40}", about.text)
        commands = [shlex.split(line) for line in about.text.splitlines() if line.startswith("python ")]
        assert str(masked) in commands[0] and "--final_threshold" in commands[0]
        assert len(commands) == (1 if folder == masked else 2)
        assert type(loaded(folder)).__name__.startswith({masked: "Masked", dense: "Bert", packed: "Sparse"}[folder])
    assert all(linear.threshold == 0.1 for linear in masked_linears(loaded(masked)).values())

    succeed(*fold, tmp_path / "other", "--threshold", 0.5)
    about = card(tmp_path / "other")
    assert about.data.eval_results is None and "Not evaluated" in about.text and "| f1 |" not in about.text
    assert "50.00 % remain" in about.text and about.data.datasets == [data]


ARGUMENTS = {
    "model_name_or_path": "bert-base-uncased",
    "model_type": "bert",
    "task_name": "mnli",
    "pruning_method": "topK",
}


def test_a_teacher_of_the_hub_names_its_base_and_both_sets(tmp_path, monkeypatch):
    def no_network(*_):
        raise AssertionError("a card needs no network")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    rows = {"train": 3000, "dev_matched": 9055, "dev_mismatched": 1000}
    write_card(tmp_path, ["masked_run_glue.py", "--x", "a b"], ARGUMENTS, {"acc": 0.5, "acc_mm": 0.25}, rows)
    about = card(tmp_path)
    assert (about.data.base_model, about.data.license) == ("bert-base-uncased", "apache-2.0")
    assert [(x.metric_value, x.dataset_args, x.dataset_split) for x in about.data.eval_results] == [
        (0.5, {"rows": 9055}, "validation_matched"),
        (0.25, {"rows": 1000}, "validation_mismatched"),
    ]
    assert "python masked_run_glue.py --x 'a b'" in about.text


def test_a_card_names_torchrun_and_local_files(tmp_path, monkeypatch):
    for processes, nodes in (("8", "--nnodes 2 "), ("4", "")):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
        monkeypatch.setenv("WORLD_SIZE", processes)
        local = ARGUMENTS | {"data_dir": "here"}
        write_card(tmp_path, ["masked_run_glue.py", "--x"], local, {"acc": 0.5}, {"train": 3, "dev_matched": 2})
        about = card(tmp_path)
        assert f"torchrun {nodes}--nproc_per_node 4 masked_run_glue.py --x" in about.text
        assert "GLUE MNLI (rows of local files in its layout)" in about.text
        assert [x.dataset_name for x in about.data.eval_results] == ["GLUE MNLI (local files)"]


def test_a_card_names_the_banks_that_were_contrasted_with(tmp_path):
    two = ("pretrained", "snapshots")
    for banks, said in ((two, "by `topK` with contrastive losses (banks: pretrained, snapshots)."), ((), "by `topK`.")):
        arguments = ARGUMENTS | {"model_type": "masked_bert", "use_distill": False, "banks": banks}
        write_card(tmp_path, ["masked_run_glue.py"], arguments, {"acc": 0.5}, {"train": 3, "dev_matched": 2})
        assert said in card(tmp_path).text


def test_the_licence_is_that_of_the_base_folders_card(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    assert license_of(str(tmp_path)) == "mit"
    for broken in (b"---\nfoo: [\n---\n", b"\xff", b"no head"):
        (tmp_path / "README.md").write_bytes(broken)
        assert license_of(str(tmp_path)) == "unknown"
