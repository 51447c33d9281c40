"""The real scripts, on models and data of a few rows: what they leave, what they print, and that it agrees."""

import json
import pickle
import re
import shutil
import signal
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file
from tiny import HARD, SOFT, TRAIN, log, result, run_script, succeed
from transformers import AutoTokenizer, BertForQuestionAnswering, BertForSequenceClassification

from emmental import MaskedBertForQuestionAnswering, MaskedBertForSequenceClassification, load_sparse
from emmental.model.vocabulary import vocabulary
from emmental.pruning.schedule import schedule_threshold

METRICS = {
    "qqp": {"acc", "f1", "acc_and_f1"},
    "mnli": {"acc", "acc_mm"},
    "sts-b": {"pearson", "spearmanr", "corr"},
    "squad1": {"exact", "f1", "total"},
    "squad2": {"exact", "f1", "total"}
    | {f"{which}_{name}" for which in ("HasAns", "NoAns") for name in ("exact", "f1", "total")}
    | {f"best_{name}" for name in ("exact", "f1", "exact_thresh", "f1_thresh")},
}
REMAINING = {"remaining_weights", "remaining_weights_released"}
GLOBAL = ["--pruning_method", "threshold", "--global_topk", "--final_threshold", 0.1]


@pytest.fixture(scope="module")
def trained(world):
    """A function: the output folder of a task's run as a teacher, or with topK or sigmoied_threshold masks."""
    made = {}

    def train(task, kind):
        if (task, kind) not in made:
            folder, flags = world.folder / f"trained-{kind}-{task}", [*world.command(task), *TRAIN]
            if kind == "teacher":
                flags += ["--model_type", "bert"]
            else:
                flags += [*world.cap(task), *(HARD if kind == "hard" else SOFT)]
                flags[flags.index("--teacher_name_or_path") + 1] = train(task, "teacher")[0]
            made[task, kind] = folder, succeed(*flags, "--output_dir", folder)
        return made[task, kind]

    return train


def printed(out):
    """The numbers that a script printed, by name."""
    return {name: float(value) for name, value in re.findall(r"^(\w+) = (\S+)$", out, re.M)}


# every task and every kind, each task with a method, and qqp with all; the other pairs are slow
OFTEN = [*(("qqp", kind) for kind in ("teacher", "hard", "soft")), ("mnli", "hard"), ("sts-b", "soft")]
OFTEN += [("squad1", "teacher"), ("squad1", "hard"), ("squad2", "soft")]
PAIRS = [
    pytest.param(task, kind, marks=[pytest.mark.slow] * ((task, kind) not in OFTEN))
    for task in METRICS
    for kind in ("teacher", "hard", "soft")
]


@pytest.mark.parametrize("task, kind", PAIRS)
def test_a_run_leaves_its_results(trained, task, kind):
    folder, ran = trained(task, kind)
    results, masked = result(folder), kind != "teacher"
    assert set(results) == METRICS[task] | (REMAINING if masked else set())
    kept = {"seconds", *results}
    assert set(printed(ran.out)) == kept == set(printed((folder / "eval_results.txt").read_text()))
    assert printed(ran.out) == pytest.approx(json.loads((folder / "result.json").read_text()), rel=1e-5)

    arguments = json.loads((folder / "arguments.json").read_text())
    assert arguments["num_train_epochs"] == 3 and arguments["output_dir"] == str(folder)
    lines = log(folder)
    total = len(lines)
    evaluation = json.loads((folder / "log.jsonl").read_text().splitlines()[-1])
    assert {f"eval/{name}" for name in METRICS[task]} <= set(evaluation) and evaluation["step"] == total
    assert [line["step"] for line in lines] == list(range(1, total + 1))
    assert {path.name for path in folder.glob("checkpoint-*")} == {f"checkpoint-{n}" for n in range(3, total + 1, 3)}
    assert next((folder / "tensorboard").glob("events.out.tfevents.*")).stat().st_size > 1000
    assert len({path.stat().st_mode for path in folder.iterdir() if path.is_file()}) == 1  # safetensors writes 600
    assert (folder / "banks").exists() == masked
    parts = {"task"} | ({"distillation", "pretrained", "finetuned", "snapshots"} if masked else set())
    parts |= {"penalty"} if kind == "soft" else set()
    assert {name for name in lines[-1] if name.startswith("loss/")} == {f"loss/{name}" for name in {*parts, "total"}}
    for line in lines:
        assert line["loss/total"] == pytest.approx(sum(line.get(f"loss/{part}", 0) for part in parts), rel=1e-5)
    if masked:
        assert {"threshold", "lambda", "remaining_weights", "learning_rate/mask_scores"} <= set(lines[0])
        assert "loss/snapshots" not in lines[0]  # there is none in the first epoch
    assert json.loads((folder / "config.json").read_text())["model_type"] == ("masked_bert" if masked else "bert")
    if task.startswith("squad"):
        assert len(json.loads((folder / "predictions_.json").read_text())) == 12
        assert (folder / "null_odds_.json").exists() == (task == "squad2")


@pytest.mark.parametrize("task, kind", PAIRS)
def test_evaluation_alone_gives_the_same(world, trained, tmp_path, task, kind):
    folder, _ = trained(task, kind)
    command = world.command(task, model=folder)
    succeed(*command, "--do_eval", "--output_dir", tmp_path)
    assert result(tmp_path) == pytest.approx(result(folder), rel=1e-5)
    assert not (tmp_path / "arguments.json").exists() and not list(tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize("task, kind", [("mnli", "hard"), ("squad2", "soft")])
def test_counts_equal_the_runs_results(trained, tmp_path, task, kind):
    folder, _ = trained(task, kind)
    shown = succeed("counts_parameters.py", "--serialization_dir", folder, "--json", tmp_path / "c.json")
    counted = json.loads((tmp_path / "c.json").read_text())
    assert {name: counted[name] for name in REMAINING} == {name: result(folder)[name] for name in REMAINING}
    assert f"{counted['remaining_weights']:.3f} %" in shown.out
    other = succeed("counts_parameters.py", "--serialization_dir", folder, "--threshold", 0.5)
    assert "--threshold 0.5 is taken, not the 0.1 of" in other.out


@pytest.mark.parametrize("task, kind", [("mnli", "hard"), ("sts-b", "soft"), ("squad1", "hard"), ("squad2", "soft")])
def test_the_folded_model_is_a_plain_bert(trained, world, tmp_path, task, kind):
    folder, _ = trained(task, kind)
    spans = task.startswith("squad")
    masked = MaskedBertForQuestionAnswering if spans else MaskedBertForSequenceClassification
    plain = BertForQuestionAnswering if spans else BertForSequenceClassification
    texts = ["ba be bi", "do du"], ["fa fe", "ga ge gi go gu ?"]
    batch = AutoTokenizer.from_pretrained(folder)(*texts, padding=True, return_tensors="pt")
    real = batch["attention_mask"].bool() if spans else slice(None)

    def logits(model):
        with torch.no_grad():
            output = model(**batch)
        return [x[real] for x in ((output.start_logits, output.end_logits) if spans else (output.logits,))]

    expected = logits(masked.from_pretrained(folder).eval())
    for form in ("dense", "sparse"):
        target, more = tmp_path / form, ["--format", form, *(["--compact"] if form == "sparse" else [])]
        succeed("bertarize.py", "--model_name_or_path", folder, "--target_model_path", target, *more)
        weights = "model.safetensors" if form == "dense" else "model.sparse.safetensors"
        assert {path.name for path in target.iterdir()} == {
            *("README.md", "config.json", weights, "tokenizer.json", "tokenizer_config.json")
        }
        config = json.loads((target / "config.json").read_text())
        assert config["model_type"] == "bert" and "pruning_method" not in config
        if form == "dense":
            model, loading_info = plain.from_pretrained(target, output_loading_info=True)
            assert not any(loading_info.values()), loading_info
            torch.testing.assert_close(logits(model.eval()), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(logits(load_sparse(target)), expected, rtol=1e-5, atol=1e-5)
    if task in ("mnli", "squad1"):  # a packed model is evaluated as it is
        succeed(*world.command(task, tmp_path / "sparse"), "--do_eval", "--output_dir", tmp_path / "evaluated")
        metrics = result(tmp_path / "evaluated")
        assert metrics == pytest.approx({name: result(folder)[name] for name in metrics}, rel=1e-3)
        assert metrics.keys() == METRICS[task]


class Malice:
    def __reduce__(self):
        return open, ("/tmp/never-written-by-a-model-file", "w")


def test_weights_of_older_runs_are_read_as_tensors_only(trained, world, tmp_path):
    folder, _ = trained("qqp", "hard")
    old = tmp_path / "old"
    shutil.copytree(folder, old, ignore=shutil.ignore_patterns("checkpoint-*", "banks", "tensorboard"))
    (old / "model.safetensors").unlink()
    torch.save(load_file(folder / "model.safetensors"), old / "pytorch_model.bin")
    evaluate = [*world.command("qqp", model=old), "--do_eval", "--output_dir", tmp_path / "out"]
    counts = ["counts_parameters.py", "--serialization_dir", old]
    fold = ["bertarize.py", "--model_name_or_path", old, "--target_model_path", tmp_path / "folded"]
    answers = [succeed(*command) for command in (evaluate, counts, fold)]
    assert result(tmp_path / "out") == pytest.approx(result(folder), rel=1e-5)
    assert f"{old}: evaluated with its own masks, topK at threshold 0.1;" in answers[0].out

    for name in ("out", "folded"):
        shutil.rmtree(tmp_path / name)
    torch.save({"weight": Malice()}, old / "pytorch_model.bin", pickle_module=pickle)
    for command in (evaluate, counts, fold):
        refused = run_script(*command)
        assert refused.code == 2 and str(old) in refused.err and len(refused.err.splitlines()) < 3, refused.err
    assert {path.name for path in tmp_path.iterdir()} == {"old"}


CUT = ["--pruning_method", "threshold"]
OTHER = {
    "global_topk": GLOBAL,
    "l0": ["--pruning_method", "l0", "--regularization", "l0", "--final_lambda", 10, "--mask_scale", 2],
    "magnitude": ["--pruning_method", "magnitude", "--final_threshold", 0.1],
    "threshold": [*CUT, "--initial_threshold", 0, "--final_threshold", 0.105, "--mask_scale", 0.1],
    "uniform scores": [*HARD, "--mask_init", "uniform", "--mask_scale", 0.1],
    "mean-pooling, supcon, eval snapshots": [*HARD, "--alignrep", "mean-pooling", "--cl_normalization", "supcon"],
    "every position": [*HARD, "--pad_to_max_length"],
    "bf16": [*HARD, "--bf16"],
    "half banks": [*HARD, "--bank_dtype", "float16", "--snapshot_mode", "eval"],
    "pretrained alone": [*HARD, "--contrast_with", "pretrained"],
    "snapshots and finetuned": [*HARD, "--contrast_with", "snapshots", "finetuned"],
    "more extra examples than there are": [*HARD, "--extra_examples", 4096],
    "weight decay": [*HARD, "--weight_decay", 0.1],
    "target sparsity": [*SOFT, "--target_sparsity", 0.9],
    "a pruned teacher": [*HARD, "--teacher_type", "masked_bert"],
}


LONGER = ("half banks", "weight decay", "more extra examples than there are")  # other tests have them, too


@pytest.mark.parametrize(
    "flags", [pytest.param(OTHER[name], id=name, marks=[pytest.mark.slow] * (name in LONGER)) for name in OTHER]
)
def test_every_method_and_option_trains_and_evaluates_alike(world, trained, tmp_path, flags):
    command = [*world.command("qqp"), *TRAIN, *world.cap("qqp"), "--num_train_epochs", 2, "--save_steps", 0]
    if "masked_bert" in flags:
        flags = [*flags, "--teacher_name_or_path", trained("qqp", "hard")[0]]
    shown = succeed(*command, *flags, "--output_dir", tmp_path)
    lines, results = log(tmp_path), result(tmp_path)
    assert len(lines) == 8 and not (tmp_path / "banks").exists() and not list(tmp_path.glob("checkpoint-*"))
    if {"topK", "--global_topk", "magnitude", "--target_sparsity"} & set(flags):
        assert results["remaining_weights"] == pytest.approx(10, abs=0.1)
    if "--target_sparsity" in flags:  # in eight steps scores hardly move, so lambda is pushed, and a warning says so
        _, usual = zip(*(schedule_threshold(i, 8, 1, 0, 0.1, 1, 1, 10) for i in range(8)), strict=True)
        assert all(line["lambda"] > value for line, value in zip(lines[2:], usual[2:], strict=True))
        before = results["remaining_weights_before_calibration"]
        assert before > 90 and f"steering ended at {before:.2f} % remaining weights, not 10.00 %" in shown.out
    if "--contrast_with" in flags:
        asked = {name for name in ("pretrained", "finetuned", "snapshots") if name in flags}
        assert {name[5:] for name in lines[-1] if name.startswith("loss/")} == {"total", "task", "distillation", *asked}
    alone = [*world.command("qqp", model=tmp_path), "--do_eval", "--output_dir", tmp_path / "alone"]
    succeed(*alone, *[flag for flag in flags if flag in ("--bf16", "--pad_to_max_length")])
    again = result(tmp_path / "alone")
    assert again == {name: results[name] for name in again}


@pytest.mark.parametrize("task", ["qqp", "squad1"])
def test_plain_movement_pruning_needs_no_teacher(world, tmp_path, task):
    succeed(*world.command(task), *TRAIN, *HARD, "--save_steps", 0, "--output_dir", tmp_path)
    assert {name for name in log(tmp_path)[-1] if name.startswith("loss/")} == {"loss/total", "loss/task"}
    assert result(tmp_path)["remaining_weights"] == pytest.approx(10, abs=0.1)


LENGTHS = {  # 26 rows in batches of 8 are 4 batches an epoch
    "epochs": (["--num_train_epochs", 2], 8),
    "fractional epochs": (["--num_train_epochs", 1.5], 6),
    "less than an epoch": (["--num_train_epochs", 0.5, "--warmup_steps", 0], 2),
    "steps": (["--max_steps", 5], 5),
    "accumulation with a leftover": (["--num_train_epochs", 2, "--gradient_accumulation_steps", 3], 4),
    "accumulation longer than an epoch": (["--gradient_accumulation_steps", 9, "--warmup_steps", 0], 3),
    "one batch an epoch": (["--per_gpu_train_batch_size", 64, "--warmup_steps", 0], 3),
}


@pytest.mark.parametrize("flags, steps", LENGTHS.values(), ids=LENGTHS)
def test_a_run_has_the_asked_number_of_steps(world, tmp_path, flags, steps):
    succeed(*world.command("qqp"), *TRAIN, *HARD, "--save_steps", 1, *flags, "--output_dir", tmp_path)
    lines = log(tmp_path)
    assert [line["step"] for line in lines] == list(range(1, steps + 1))
    assert len(list(tmp_path.glob("checkpoint-*"))) == steps
    rates = [line["learning_rate/weights"] for line in lines]
    warm = 0 if "--warmup_steps" in flags else 1
    assert rates[:warm] == [0.0] * warm and all(a > b for a, b in pairwise(rates[warm:]))
    assert rates[-1] == pytest.approx(1e-3 / (steps - warm))


@pytest.mark.parametrize("task", ["qqp", "squad1"])
def test_evaluations_on_the_way_equal_those_of_checkpoints(world, tmp_path, task):
    flags = ["--evaluate_during_training", "--logging_steps", 2, "--save_steps", 4, "--eval_all_checkpoints"]
    succeed(*world.command(task), *TRAIN, *SOFT, *flags, "--max_steps", 8, "--output_dir", tmp_path)
    lines, results = log(tmp_path, "eval/"), result(tmp_path)
    assert [line["step"] for line in lines] == [2, 4, 6, 8]
    assert set(results["checkpoints"]) == {"4", "8"}
    metrics = results["checkpoints"]["8"]
    assert metrics == {name: results[name] for name in metrics}
    on_the_way = next(line for line in lines if line["step"] == 4)
    masks = {"step": 4, "eval/remaining_weights": 100.0, "eval/threshold": 0.1}
    assert on_the_way == {f"eval/{name}": value for name, value in results["checkpoints"]["4"].items()} | masks


@pytest.mark.parametrize("kind, flags", [("teacher", []), ("hard", ["--model_type", "bert"])])
def test_checkpoints_are_evaluated_as_they_were_saved(trained, world, tmp_path, kind, flags):
    """Masked or dense, whatever --model_type says, which decides what is trained."""
    folder, _ = trained("qqp", kind)
    shutil.copytree(folder, tmp_path / "run")
    command = [*world.command("qqp", tmp_path / "run"), "--do_eval", "--output_dir", tmp_path / "run", *flags]
    elsewhere = [*command, "--eval_all_checkpoints", "--output_dir", tmp_path / "elsewhere"]
    assert f"{tmp_path / 'elsewhere'} holds no checkpoints" in succeed(*elsewhere).out
    succeed(*command, "--eval_all_checkpoints")
    found = result(tmp_path / "run" / "evaluation")
    (last,) = [values for step, values in found["checkpoints"].items() if step == max(found["checkpoints"], key=int)]
    assert last == {name: found[name] for name in last} == {name: result(folder)[name] for name in last}
    assert ("remaining_weights" in found) == (kind == "hard")


@pytest.mark.parametrize(
    "flags, kept", [(GLOBAL, True), ([*SOFT, "--target_sparsity", 0.9], False)], ids=["hard", "soft"]
)
def test_evaluations_at_the_running_threshold(world, tmp_path, flags, kept):
    """They have the masks of the step's own threshold, a share of the weights if `kept`, and leave the run as it is."""
    command = [*world.command("qqp"), *TRAIN, *flags, "--save_steps", 0]
    succeed(*command, "--output_dir", tmp_path / "a")
    succeed(*command, "--evaluate_during_training", "--evaluate_at", "running", "--output_dir", tmp_path / "b")
    lines, (*evaluated, last) = log(tmp_path / "b"), log(tmp_path / "b", "eval/")
    assert [line["step"] for line in evaluated] == [line["step"] for line in lines[:-1]]
    for step, line in zip(lines, evaluated, strict=False):
        if kept:
            assert line["eval/remaining_weights"] == pytest.approx(100 * step["threshold"], abs=0.1)
        else:
            assert line["eval/threshold"] == step["threshold"]
    assert len({line["eval/threshold"] for line in evaluated}) > 2
    assert last == log(tmp_path / "a", "eval/")[-1] and lines == log(tmp_path / "a")
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("task, flags", [("qqp", HARD), ("squad1", SOFT)])
def test_a_run_repeats_bit_for_bit(world, tmp_path, task, flags):
    command = [*world.command(task), *TRAIN, *flags, *world.cap(task), "--save_steps", 0, "--num_train_epochs", 2]
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        succeed(*command, "--seed", seed, "--output_dir", tmp_path / name)
    weights = {name: (tmp_path / name / "model.safetensors").read_bytes() for name in "abc"}
    assert weights["a"] == weights["b"] != weights["c"]
    assert log(tmp_path / "a") == log(tmp_path / "b") and result(tmp_path / "a") == result(tmp_path / "b")


def test_overwriting_leaves_nothing_of_the_earlier_run(world, tmp_path):
    """--overwrite_output_dir: no checkpoint, bank or log line of the run before is left to be taken for a new one's."""
    command = [*world.command("qqp"), *TRAIN, *HARD, "--output_dir", tmp_path]
    succeed(*command, *world.cap("qqp"))
    succeed(*command, "--overwrite_output_dir", "--max_steps", 5)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-3"]
    assert not (tmp_path / "banks").exists() and len(log(tmp_path)) == 5
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1


@pytest.mark.slow
def test_overwriting_keeps_a_model_that_the_run_needs(world, tmp_path):
    """That of the folder may be trained further there, or teach there, and is there until the new one is."""
    command = [*world.command("qqp"), *TRAIN, *HARD, "--output_dir", tmp_path]
    succeed(*command)
    taught = ["--use_distill", "--distill_loss_weight", 0.9, "--teacher_type", "masked", "--teacher_name_or_path"]
    for flags in (["--model_name_or_path"], taught):
        further = [*command, "--overwrite_output_dir", "--max_steps", 5, *flags, tmp_path]
        before = (tmp_path / "model.safetensors").read_bytes()
        run_script(*further, before=("hit", signal.SIGKILL, "Optimizer.step", 1))
        assert (tmp_path / "model.safetensors").read_bytes() == before and not (tmp_path / "result.json").exists()
        succeed(*further)
        assert (tmp_path / "model.safetensors").read_bytes() != before


@pytest.mark.parametrize("task", ["qqp", "squad1"])
def test_an_evaluation_replaces_nothing_of_a_training_run(world, tmp_path, task):
    """Into its own folder, on other data: its figures come beside; a second one replaces those of the first."""
    folder, data = tmp_path / "run", shutil.copytree(world.data(task), tmp_path / "data")
    flags = [*TRAIN, *SOFT, "--target_sparsity", 0.9, "--eval_all_checkpoints"]
    succeed(*world.command(task), *flags, "--output_dir", folder)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}
    assert {"target_sparsity", "remaining_weights_before_calibration", "checkpoints"} <= set(result(folder))
    command = [*world.command(task, folder), "--do_eval", "--output_dir", folder, "--eval_all_checkpoints"]
    if task == "qqp":
        (data / "dev.tsv").write_text("\n".join((data / "dev.tsv").read_text().splitlines()[:9]) + "\n")
    for files, same in ((world.data(task), True), (data, task != "qqp")):
        ran = succeed(*command, "--data_dir", files)
        found = result(folder / "evaluation")
        assert f"results in {folder / 'evaluation' / 'result.json'}\n" in ran.out
        assert found.keys() == result(folder).keys() - {"target_sparsity", "remaining_weights_before_calibration"}
        assert (found == {name: result(folder)[name] for name in found}) == same
    assert (folder / "evaluation" / "predictions_.json").exists() == (task == "squad1")
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in before} == before
    succeed(*world.command(task), *flags, "--overwrite_output_dir", "--output_dir", folder)
    assert not (folder / "evaluation").exists()


def test_the_highest_target_is_reached_and_no_file_holds_an_infinite_number(world, tmp_path):
    """40 of 7,168 weights are kept in any case; what is refused beyond is in test_bad_input."""
    target = ["--target_sparsity", 0.99441, "--evaluate_during_training", "--save_steps", 6]
    succeed(*world.command("qqp"), *TRAIN, *SOFT, *target, "--output_dir", tmp_path)

    def finite(word):
        raise AssertionError(word)

    for path in tmp_path.rglob("*.json*"):
        for line in path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]:
            json.loads(line, parse_constant=finite)
    assert result(tmp_path)["remaining_weights"] == pytest.approx(100 * 40 / 7168)
    succeed("counts_parameters.py", "--serialization_dir", tmp_path)


def test_a_dense_model_ignores_what_is_for_pruning(world, tmp_path):
    """As `bash run_glue_soft_kd.sh --model_type bert` gives them: every such flag, by name, in one line."""
    command = [*world.command("qqp"), *TRAIN, "--model_type", "bert"]
    given = [*world.cap("qqp"), *SOFT, "--cl_supervised_loss_weight", 10, "--mask_scale", 1, "--target_sparsity", 0.9]
    ran = succeed(*command, *given, "--output_dir", tmp_path / "given")
    (message,) = (line for line in ran.out.splitlines() if line.startswith("--model_type"))
    start, names = message.split("; ignored: ")
    assert start == "--model_type bert trains without masks, contrast and distillation"
    names = set(names.split())
    assert names == {flag for flag in given if str(flag).startswith("--")} | {"--final_warmup"}
    assert not (tmp_path / "given" / "banks").exists()
    ran = succeed(*command, "--final_warmup", 2, "--output_dir", tmp_path / "plain")
    assert "ignored" not in ran.out
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("given", "plain")]
    assert weights[0] == weights[1] and log(tmp_path / "given") == log(tmp_path / "plain")


def test_a_small_set_and_losses_of_no_weight_are_told(world, tmp_path):
    command = [*world.command("qqp"), *TRAIN, *HARD, *world.cap("qqp"), "--max_steps", 4]
    ran = succeed(*command, "--extra_examples", 27, "--output_dir", tmp_path / "27")
    assert ran.out.count("--extra_examples 27: the training set has 26, all of which are used") == 1
    none = ["--cl_unsupervised_loss_weight", 0, "--cl_supervised_loss_weight", 0, "--save_steps", 2]
    ran = succeed(*command, *none, "--output_dir", tmp_path / "none")
    assert not [*(tmp_path / "none").glob("banks/*napshot*")] and "loss/pretrained" not in log(tmp_path / "none")[0]
    assert ran.out.count("--use_contrastive_loss: no term has a weight above 0, so nothing is contrasted") == 1
    ran = succeed(*command, "--extra_examples", 26, "--output_dir", tmp_path / "26")
    assert "--extra_examples" not in ran.out and "--use_contrastive_loss" not in ran.out


@pytest.mark.parametrize("task", ["qqp", "squad1"])
def test_a_teacher_s_checkpoint_is_a_teacher(world, trained, tmp_path, task):
    """Plain transformers loads it whole, and a run takes it as its teacher."""
    folder, _ = trained(task, "teacher")
    saved, plain = (
        folder / "checkpoint-3",
        BertForQuestionAnswering if task == "squad1" else BertForSequenceClassification,
    )
    assert json.loads((saved / "config.json").read_text())["model_type"] == "bert"
    model, loading_info = plain.from_pretrained(saved, output_loading_info=True)
    assert not any(loading_info.values()), loading_info
    weights = load_file(saved / "model.safetensors")
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    command = [*world.command(task), *TRAIN, *HARD, *world.cap(task), "--max_steps", 4]
    command[command.index("--teacher_name_or_path") + 1] = saved
    succeed(*command, "--output_dir", tmp_path / "student")


def test_saving_changes_no_number(world, tmp_path):
    """A dense model is folded for a checkpoint, amid dropout."""
    command = [*world.command("qqp"), *TRAIN, "--model_type", "bert", "--final_warmup", 2]
    for steps in (0, 1):
        succeed(*command, "--save_steps", steps, "--output_dir", tmp_path / str(steps))
    assert log(tmp_path / "0") == log(tmp_path / "1")


def test_training_on_from_a_model_of_other_labels(world, trained, tmp_path):
    """MNLI's three labels, then QQP's two: a new head, masked and dense, and one line that says so."""
    folder, _ = trained("mnli", "teacher")
    for kind, flags in (("masked", HARD), ("dense", ["--model_type", "bert"])):
        out = tmp_path / kind
        ran = succeed(*world.command("qqp", folder), *TRAIN, *flags, "--output_dir", out)
        messages = [line for line in ran.out.splitlines() if "new head" in line]
        assert messages == [f"{folder}: training starts with a new head: the model has 3 labels, the task 2"]
        assert load_file(out / "model.safetensors")["classifier.weight"].shape == (2, 32)
        assert json.loads((out / "config.json").read_text())["id2label"] == {"0": "0", "1": "1"}
    ran = succeed(*world.command("sts-b", folder), *TRAIN, *HARD, "--output_dir", tmp_path / "regression")
    assert "a new head: the model has 3 labels, the task 1\n" in ran.out


def test_training_on_from_a_masked_model(world, trained, tmp_path):
    """Its scores are where training starts, whatever --mask_init says; without any step they are found again."""
    folder, _ = trained("qqp", "hard")
    command = [*world.command("qqp", folder), *TRAIN, "--mask_scale", 5, "--max_steps", 1, "--warmup_steps", 0]
    command += ["--mask_scores_learning_rate", 0, "--learning_rate", 0]
    ran = succeed(*command, *SOFT, "--output_dir", tmp_path / "soft")
    assert f"{folder}: training starts from its mask scores; --mask_init and --mask_scale are not used\n" in ran.out
    before, after = (load_file(x / "model.safetensors") for x in (folder, tmp_path / "soft"))
    scores = [name for name in before if name.endswith("mask_scores")]
    assert len(scores) == 12 and all(torch.equal(before[name], after[name]) for name in scores)
    ran = succeed(*command, "--pruning_method", "magnitude", "--output_dir", tmp_path / "magnitude")
    assert f"{folder}: its mask scores are not used; magnitude has none\n" in ran.out
    assert "mask scores" not in succeed(*world.command("qqp"), *TRAIN, *HARD, "--output_dir", tmp_path / "new").out


def test_tokens_are_made_again_if_asked_for(world, tmp_path):
    command = [*world.command("qqp", world.teacher("qqp")), "--do_eval", "--cache_dir", tmp_path / "cache"]
    times = []
    for number, flags in enumerate(([], [], ["--overwrite_cache"])):
        succeed(*command, *flags, "--output_dir", tmp_path / str(number))
        times.append({path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()})
    assert times[0] and times[0] == times[1] and times[0].keys() == times[2].keys() and times[1] != times[2]


def test_flags_of_the_answer_search_reach_it(world, tmp_path):
    command = [*world.command("squad2", world.teacher("squad2")), "--do_eval", "--output_dir", tmp_path]
    succeed(*command, "--n_best_size", 3, "--null_score_diff_threshold", -1e9, "--max_answer_length", 1)
    answers, best = (
        json.loads((tmp_path / f"{name}_.json").read_text()) for name in ("predictions", "nbest_predictions")
    )
    assert set(answers.values()) == {""} and max(map(len, best.values())) <= 4  # the three best, and none
    assert max(len(entry["text"].split()) for entries in best.values() for entry in entries) <= 1


def test_a_tokenizer_may_come_from_another_folder(world, tmp_path):
    model, tokenizer = shutil.copytree(world.teacher("qqp"), tmp_path / "model"), tmp_path / "tokenizer"
    tokenizer.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        if (model / name).exists():
            (model / name).rename(tokenizer / name)
    flags = ["--model_type", "bert", "--max_steps", 4, "--save_steps", 0, "--tokenizer_name", tokenizer]
    succeed(*world.command("qqp", model), *TRAIN, *flags, "--output_dir", tmp_path / "out")
    assert vocabulary(str(tmp_path / "out")) == vocabulary(str(tokenizer))


def test_float16_on_a_cpu_is_refused_before_a_model_is_loaded(world, tmp_path):
    out = tmp_path / "out"
    refused = run_script(*world.command("qqp"), *TRAIN, "--fp16", "--output_dir", out)
    assert refused.code == 2 and "--fp16 needs a GPU" in refused.err and not out.exists()
