"""CAP end to end with every family beside BERT, by both scripts: train, evaluate, fold, count, kill and resume."""

import json
import os
import signal
import subprocess

import pytest
import torch
from tiny import HARD, ROOT, SOFT, TRAIN, World, log, result, run_script, succeed
from transformers import AutoModelForQuestionAnswering, AutoModelForSequenceClassification

from emmental import load_sparse
from emmental.model import loading
from emmental.model.families import FAMILIES

OTHERS = [name for name in FAMILIES if name != "bert"]
WORDS = 40  # of the vocabulary, all of which every tokenizer has


LONGER = ("distilbert", "electra")  # in a step they are as BERT, which the other tests run
OFTEN = pytest.mark.parametrize(
    "world", [pytest.param(name, marks=[pytest.mark.slow] * (name in LONGER)) for name in OTHERS], indirect=True
)


@pytest.fixture(scope="module", params=OTHERS)
def world(request, tmp_path_factory) -> World:
    return World(tmp_path_factory.mktemp(request.param), request.param)


def command(world: World, task: str, folder, *flags) -> list:
    return [*world.command(task), *TRAIN, *world.cap(task), *flags, "--output_dir", folder]


def batch(pad: int) -> dict[str, torch.Tensor]:
    mask = (torch.arange(9) < torch.tensor([9, 4, 1])[:, None]).long()
    ids = torch.randint(5, WORDS, mask.shape, generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids * mask + (1 - mask) * pad, "attention_mask": mask}


def assert_folds(masked, folder, auto) -> None:
    """bertarize.py's folder, loaded by plain transformers, has the masked model's logits."""
    succeed("bertarize.py", "--model_name_or_path", masked, "--target_model_path", folder)
    plain, model = auto.from_pretrained(folder).eval(), loading.load_masked(str(masked))
    inputs = batch(plain.config.pad_token_id)
    with torch.no_grad():
        expected, got = model(**inputs), plain(**inputs)
    real = inputs["attention_mask"].bool()
    for name in got:
        chosen = real if "_logits" in name else slice(None)
        torch.testing.assert_close(got[name][chosen], expected[name][chosen], atol=1e-5, rtol=1e-5)


@OFTEN
def test_classification(world, tmp_path):
    run = tmp_path / "run"
    succeed(*command(world, "qqp", run, *HARD))
    made, config = result(run), json.loads((run / "config.json").read_text())
    assert config["model_type"] == f"masked_{world.family}" and 9 < made["remaining_weights"] < 10.1
    assert json.loads((run / "arguments.json").read_text())["model_type"] == f"masked_{world.family}"
    prefix = FAMILIES[world.family].prefix
    assert f"emmental.Masked{prefix}ForSequenceClassification.from_pretrained" in (run / "README.md").read_text()
    last = log(run)[-1]
    assert {"loss/pretrained", "loss/finetuned", "loss/snapshots", "loss/task", "loss/distillation"} <= set(last)
    succeed(*world.command("qqp", run), "--do_eval", "--output_dir", tmp_path / "again", "--alignrep", "cls")
    again = result(tmp_path / "again")
    assert {name: made[name] for name in again} == again
    assert_folds(run, tmp_path / "folded", AutoModelForSequenceClassification)
    assert f"transformers import {prefix}ForSequence" in (tmp_path / "folded" / "README.md").read_text()
    counts = tmp_path / "counts.json"
    succeed("counts_parameters.py", "--serialization_dir", run, "--json", counts)
    assert json.loads(counts.read_text())["remaining_weights"] == made["remaining_weights"]


@OFTEN
def test_questions_killed_and_resumed(world, tmp_path):
    flags = ["--resume_from_checkpoint", "auto", "--save_steps", 2]
    run, torn = tmp_path / "run", tmp_path / "torn"
    succeed(*command(world, "squad2", run, *SOFT, *flags))
    died = run_script(*command(world, "squad2", torn, *SOFT, *flags), before=("hit", signal.SIGKILL, "save", 2))
    assert died.code == -signal.SIGKILL
    succeed(*command(world, "squad2", torn, *SOFT, *flags))
    assert (torn / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
    assert result(torn) == result(run) and log(torn) == log(run)
    assert_folds(run, tmp_path / "folded", AutoModelForQuestionAnswering)


def test_a_dense_run_makes_a_teacher(world, tmp_path):
    """Whose folder, of plain transformers' type, then teaches."""
    teacher, flags = tmp_path / "teacher", ["--model_type", "dense", "--do_train", "--do_eval", "--save_steps", 0]
    succeed(*world.command("qqp"), *flags, "--max_steps", 2, "--output_dir", teacher)
    assert json.loads((teacher / "config.json").read_text())["model_type"] == world.family
    short = ["--max_steps", 4, "--save_steps", 0, "--teacher_name_or_path", teacher]
    succeed(*command(world, "qqp", tmp_path / "run", *HARD, *short))


def test_other_families_are_refused(world, tmp_path):
    """A type that does not fit the model, and a teacher of another family, in one line each."""
    run = ["--output_dir", tmp_path / "run"]
    wrong = run_script(*world.command("qqp"), *TRAIN, *run, "--model_type", "masked_bert")
    fitting = f"is of the family {world.family}, which --model_type masked_{world.family} fits"
    assert wrong.code == 2 and fitting in wrong.err
    bert = World(tmp_path / "bert").teacher("qqp")
    wrong = run_script(*command(world, "qqp", tmp_path / "run", "--teacher_name_or_path", bert))
    assert wrong.code == 2 and f"model_type is 'bert', not {world.family}" in wrong.err
    missing = run_script(*command(world, "qqp", tmp_path / "run", "--teacher_name_or_path", "teacher/none"))
    assert missing.code == 2 and f"masked_run_glue.py --model_type {world.family} " in missing.err
    capitals = run_script(*world.command("qqp"), *TRAIN, *run, "--do_lower_case", "--max_steps", 3)
    keeps = world.family in ("roberta", "modernbert")
    assert capitals.code == (2 if keeps else 0) and ("--do_lower_case: the tokenizer" in capitals.err) == keeps


def test_every_form_of_a_folded_model(world, tmp_path):
    """Dense, packed and compact, by bertarize.py: the masked model's logits from each, and a card that says how."""
    folder = tmp_path / "masked"
    model = loading.load("SequenceClassification", str(world.model), trained=False, pruning_method="magnitude")
    model.config.threshold = 0.5
    model.save_pretrained(folder)
    model, inputs = loading.load_masked(str(folder)), batch(model.config.pad_token_id)
    for flags in ([], ["--format", "sparse"], ["--compact"], ["--compact", "--format", "sparse"]):
        target = tmp_path / "folded"
        written = ["--model_name_or_path", folder, "--target_model_path", target, "--overwrite"]
        assert "encoder" in succeed("bertarize.py", *written, *flags).out
        with torch.no_grad():
            expected, got = model(**inputs).logits, load_sparse(target)(**inputs).logits
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
        assert ("load_sparse" in (target / "README.md").read_text()) == ("sparse" in flags)


@pytest.mark.slow
@pytest.mark.parametrize(("task", "flags"), [("mnli", SOFT), ("sts-b", HARD), ("squad1", HARD)])
def test_other_tasks(world, tmp_path, task, flags):
    succeed(*command(world, task, tmp_path / "run", *flags))
    assert result(tmp_path / "run")["remaining_weights"] <= 100


@pytest.mark.slow
@pytest.mark.parametrize(("script", "task"), [("run_glue_topk_kd.sh", "qqp"), ("run_squad_soft_kd.sh", "squad1")])
def test_a_shell_script_needs_the_model_alone(world, tmp_path, script, task):
    names = {"MODEL": world.model, "TEACHER_PATH": world.teacher(task), "DATA_DIR": world.data(task), "WARMUP": "1"}
    names |= {"OUTPUT": tmp_path / "run", "EPOCH": "3"}
    environ = os.environ | {name: str(value) for name, value in names.items()}
    lengths = world.command(task)[world.command(task).index("--max_seq_length") :]
    flags = [str(flag) for flag in (*lengths, "--cache_dir", world.cache, "--per_gpu_train_batch_size", 4)]
    bash = ["bash", str(ROOT / script), *flags]
    done = subprocess.run(bash, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((tmp_path / "run" / "config.json").read_text())["model_type"] == f"masked_{world.family}"


@pytest.mark.slow
def test_target_sparsity(world, tmp_path):
    flags = [*SOFT, "--target_sparsity", 0.6, "--num_train_epochs", 12]
    succeed(*command(world, "qqp", tmp_path / "run", *flags))
    assert abs(result(tmp_path / "run")["remaining_weights"] - 40) < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("task", ["qqp", "squad1"])
def test_two_processes_give_the_numbers_of_one(world, tmp_path, task):
    from test_processes import run

    still = [*world.command(task, world.still_model), *TRAIN, *world.cap(task), *HARD]
    succeed(*still, "--output_dir", tmp_path / "one")
    answers = run(still, 2, tmp_path / "two")
    assert [answer.code for answer in answers] == [0, 0], answers
    one, two = (log(tmp_path / name) for name in ("one", "two"))
    for ours, theirs in zip(two, one, strict=True):
        for name in theirs:
            if name.startswith(("loss/", "remaining")):
                assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-4), name
