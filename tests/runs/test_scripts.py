"""The shell scripts: what they pass on, seen by a stand-in for `python` and `torchrun` that prints its arguments."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GLUE, SQUAD = ("run_glue_topk_kd.sh", "run_glue_soft_kd.sh"), ("run_squad_topk_kd.sh", "run_squad_soft_kd.sh")
COMMON = """--model_type masked --model_name_or_path bert-base-uncased --do_train --do_eval --num_train_epochs 10
    --learning_rate 3e-5 --mask_scores_learning_rate 1e-2 --mask_init constant --mask_scale 0 --use_contrastive_loss
    --contrastive_temperature 0.1 --extra_examples 4096 --alignrep cls --use_distill --teacher_type dense
    --ce_loss_weight 0.1 --distill_loss_weight 0.9 --save_steps 30000 --seed 42"""
BOTH = {
    GLUE: """--task_name qqp --per_gpu_train_batch_size 32 --warmup_steps 11000 --initial_warmup 2 --final_warmup 3
        --cl_unsupervised_loss_weight 0.1 --cl_supervised_loss_weight 10 --teacher_name_or_path teacher/qqp""",
    SQUAD: """--per_gpu_train_batch_size 16 --warmup_steps 5400 --initial_warmup 1 --final_warmup 2
        --cl_unsupervised_loss_weight 0.5 --teacher_name_or_path teacher/squad""",
}
TOPK = "--pruning_method topK --initial_threshold 1 --regularization null --final_lambda 0"
SOFT = "--pruning_method sigmoied_threshold --initial_threshold 0 --final_threshold 0.1 --regularization l1"
OWN = {
    "run_glue_topk_kd.sh": f"{TOPK} --final_threshold 0.03 --output_dir cap/keep-0.03/qqp",
    "run_glue_soft_kd.sh": f"{SOFT} --final_lambda 550 --output_dir soft-cap/lambda-550/qqp",
    "run_squad_topk_kd.sh": f"{TOPK} --final_threshold 0.1 --output_dir cap/keep-0.1/squad",
    "run_squad_soft_kd.sh": f"{SOFT} --final_lambda 2000 --output_dir soft-cap/lambda-2000/squad",
}


@pytest.fixture
def run(tmp_path):
    """Runs a script in a folder with the default teachers; returns what the command was given, word by word."""
    for name in ("python", "torchrun"):
        stub = tmp_path / "bin" / name
        stub.parent.mkdir(exist_ok=True)
        stub.write_text('#!/bin/sh\nprintf "%s\\n" "$(basename "$0")" "$@" "gpus=$CUDA_VISIBLE_DEVICES"\n')
        stub.chmod(0o755)
    for task in ("qqp", "mnli", "rte", "squad"):
        (tmp_path / "teacher" / task).mkdir(parents=True)

    def call(script: str, *flags: str, status: int = 0, **variables: str) -> list[str]:
        environment = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", **variables}
        done = subprocess.run(
            ["bash", ROOT / script, *flags], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == status, done.stderr
        return done.stdout.splitlines() if status == 0 else done.stderr.splitlines()

    return call


def flags(words: list[str]) -> dict[str, str]:
    """Flag -> value, "" for a switch; the last one counts, as on a real command line."""
    after = [*words[1:], "--"]
    return {
        word: "" if value.startswith("--") else value
        for word, value in zip(words, after, strict=True)
        if word.startswith("--")
    }


@pytest.mark.parametrize("script", OWN)
def test_scripts_pass_the_published_values(run, script):
    python, program, *words, gpus = run(script)
    kind = next(kind for kind in BOTH if script in kind)
    assert (python, Path(program).name) == ("python", f"masked_{script[: script.index('_', 4)]}.py")
    assert flags(words) == flags(f"{COMMON} {BOTH[kind]} {OWN[script]}".split())
    assert gpus == "gpus="


# What the environment may hold, and the flag in which it must arrive.
VARIABLES = """OUTPUT output_dir, DATA_DIR data_dir, MODEL model_name_or_path, BATCH per_gpu_train_batch_size, EPOCH
    num_train_epochs, LR learning_rate, METHOD pruning_method, MASK_LR mask_scores_learning_rate, WARMUP warmup_steps,
    INITIAL_TH initial_threshold, FINAL_TH final_threshold, REGULARIZATION regularization, FINAL_LAMBDA final_lambda,
    CONTRASTIVE_TEMPERATURE contrastive_temperature, EXTRA_EXAMPLES extra_examples, ALIGNREP alignrep,
    CL_UNSUPERVISED_LOSS_WEIGHT cl_unsupervised_loss_weight, TEACHER_TYPE teacher_type, TEACHER_PATH
    teacher_name_or_path, CE_LOSS_WEIGHT ce_loss_weight, DISTILL_LOSS_WEIGHT distill_loss_weight,
    SEED seed"""


@pytest.mark.parametrize("script", OWN)
def test_every_variable_is_settable(run, script):
    wanted = dict(pair.split() for pair in VARIABLES.split(","))
    if script in GLUE:
        wanted |= {"TASK": "task_name", "CL_SUPERVISED_LOSS_WEIGHT": "cl_supervised_loss_weight"}
    wanted |= {"TARGET_SPARSITY": "target_sparsity"}
    variables = {name: f"a {name}" for name in wanted}  # with a space, to see the quoting
    variables |= {"WARMUP": "77"} | ({"TASK": "a task"} if script in GLUE else {})
    given = flags(run(script, **variables, GPU="3"))
    assert {flag: given.get(f"--{flag}") for flag in wanted.values()} == {wanted[x]: variables[x] for x in wanted}
    assert "--warmup_epochs" not in given


@pytest.mark.parametrize("script", OWN)
def test_further_flags_come_last_and_whole(run, script):
    *_, one, two, three, gpus = run(script, "--seed", "a b", "*", GPU="1,2")
    assert (one, two, three, gpus) == ("--seed", "a b", "*", "gpus=1,2")


@pytest.mark.parametrize("script", OWN)
def test_nproc_starts_torchrun(run, script):
    launcher, *words = run(script, NPROC="2")
    assert launcher == "torchrun"
    processes, program = words[words.index("--nproc_per_node") :][1:3]
    assert (processes, Path(program).name) == ("2", f"masked_{script[: script.index('_', 4)]}.py")


@pytest.mark.parametrize("script", OWN)
def test_processes_share_the_batch(run, script):
    words = run(script, NPROC="4")
    assert flags(words)["--per_gpu_train_batch_size"] == ("8" if script in GLUE else "4")
    for batch, why in (
        ("30", "a multiple of NPROC, 4"),
        ("2", "a multiple of NPROC, 4"),
        ("b", "a number, at least 1"),
    ):
        (line,) = run(script, status=2, NPROC="4", BATCH=batch)
        assert line.endswith(f"error: BATCH {batch}: {why}")


@pytest.mark.parametrize("script", OWN)
def test_a_launcher_of_ones_own_is_used(run, script):
    launcher, *words = run(script, LAUNCH="torchrun --nnodes 2 --node_rank 1")
    assert launcher == "torchrun" and words[:4] == ["--nnodes", "2", "--node_rank", "1"]
    assert Path(words[4]).name == f"masked_{script[: script.index('_', 4)]}.py"
    (line,) = run(script, status=2, LAUNCH="torchrun --nnodes 2", NPROC="2")
    assert line.endswith("error: NPROC and LAUNCH: give one of them")


@pytest.mark.parametrize("script", GLUE)
@pytest.mark.parametrize("task, flag, value", [("mnli", "steps", "12000"), ("rte", "epochs", "1")])
def test_warmup_fits_the_task(run, script, task, flag, value):
    given = flags(run(script, TASK=task))
    assert {name: x for name, x in given.items() if "--warmup" in name} == {f"--warmup_{flag}": value}
    assert given["--teacher_name_or_path"] == f"teacher/{task}"


@pytest.mark.parametrize("script", [*GLUE, *SQUAD])
def test_an_empty_warmup_is_an_epoch(run, script):
    given = flags(run(script, WARMUP=""))
    assert {name: x for name, x in given.items() if "--warmup" in name} == {"--warmup_epochs": "1"}


@pytest.mark.parametrize("task, published", [("qqp", "550"), ("MNLI", "680"), ("rte", "550")])
def test_lambda_is_the_tasks_published_one(run, task, published):
    assert flags(run("run_glue_soft_kd.sh", TASK=task))["--final_lambda"] == published
    assert flags(run("run_glue_soft_kd.sh", TASK=task, FINAL_LAMBDA="7"))["--final_lambda"] == "7"


def test_output_says_what_its_number_means(run):
    assert flags(run("run_glue_topk_kd.sh", FINAL_TH="0.5"))["--output_dir"] == "cap/keep-0.5/qqp"
    assert flags(run("run_glue_soft_kd.sh", FINAL_LAMBDA="190"))["--output_dir"] == "soft-cap/lambda-190/qqp"
    assert flags(run("run_squad_soft_kd.sh", TARGET_SPARSITY="0.97"))["--output_dir"] == "soft-cap/sparsity-0.97/squad"
    magnitude = run("run_squad_topk_kd.sh", METHOD="magnitude", CONTRAST="0", DISTILL="0")
    assert flags(magnitude)["--output_dir"] == "magnitude-no-kd/keep-0.1/squad"


CONTRAST = {
    *("--use_contrastive_loss", "--contrastive_temperature", "--extra_examples", "--alignrep"),
    *("--cl_unsupervised_loss_weight", "--cl_supervised_loss_weight"),
}
DISTILL = {"--use_distill", "--distill_loss_weight"}
TEACHER = {"--teacher_type", "--teacher_name_or_path"}


@pytest.mark.parametrize("script", OWN)
def test_contrast_and_distillation_can_be_left_out(run, script):
    published = flags(run(script))

    def without(left_out: set[str], ce_loss_weight: str) -> dict[str, str]:
        kept = {flag: value for flag, value in published.items() if flag not in left_out}
        return kept | {"--output_dir": "o", "--ce_loss_weight": ce_loss_weight}

    assert flags(run(script, OUTPUT="o", CONTRAST="0")) == without(CONTRAST, "0.1")
    assert flags(run(script, OUTPUT="o", DISTILL="0")) == without(DISTILL, "1")
    assert flags(run(script, OUTPUT="o", DISTILL="0", CONTRAST="0")) == without(CONTRAST | DISTILL | TEACHER, "1")
    assert flags(run(script, DISTILL="0", CE_LOSS_WEIGHT="3"))["--ce_loss_weight"] == "3"


@pytest.mark.parametrize("script", OWN)
@pytest.mark.parametrize("number", ["0", "-1", "two", "1.5", "1 2"])
def test_process_counts_that_are_none_are_refused(run, script, number):
    (line,) = run(script, status=2, NPROC=number)
    assert f"NPROC {number}: a number, at least 1" in line


@pytest.mark.parametrize("script", OWN)
@pytest.mark.parametrize("demo", ["", "1"])
def test_switches_are_0_or_1(run, script, demo):
    """Before the demo starts, too."""
    for name, value in (("CONTRAST", "maybe"), ("DISTILL", "01"), ("DEMO", "2")):
        (line,) = run(script, status=2, **{"DEMO": demo, name: value})
        assert line.endswith(f"error: {name} {value}: 0 or 1")


@pytest.mark.parametrize("script", OWN)
@pytest.mark.parametrize("given, expected", [({}, "1800"), ({"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "60"}, "60")])
def test_torchrun_has_a_port_of_its_own_and_waits_for_a_save(run, tmp_path, script, given, expected):
    (tmp_path / "bin" / "torchrun").write_text('#!/bin/sh\necho "$TORCH_ELASTIC_SHUTDOWN_TIMEOUT" "$1"\n')
    assert run(script, NPROC="2", **given) == [f"{expected} --standalone"]


@pytest.mark.parametrize("script", OWN)
def test_gpus_are_numbers_or_uuids(run, script):
    for gpu in ("0", "-1", "0,12", "GPU-8932f937-d72c,MIG-af0c", "MIG-GPU-8932f937-d72c/1/0"):
        assert run(script, GPU=gpu)[-1] == f"gpus={gpu}"
    for gpu in ("x", "0,", "0 1", "cuda:0", "GPU-"):
        (line,) = run(script, status=2, GPU=gpu)
        assert line.endswith(f"error: GPU {gpu}: numbers or UUIDs, as in 0,1")
    assert run(script, DEMO="1", GPU="1")[-1] == "gpus=1"


@pytest.mark.parametrize("script", OWN)
def test_the_program_lies_beside_the_script(run, script):
    """The fixture runs in another folder than the scripts' own."""
    assert Path(run(script)[1]) == ROOT / f"masked_{script[: script.index('_', 4)]}.py"


LENGTHS = {
    GLUE: ["--max_seq_length", "64"],
    SQUAD: ["--max_seq_length", "64", "--doc_stride", "16", "--max_query_length", "16"],
}


def really(script: str, folder: Path, **variables: str) -> str:
    """Runs a script and its program in `folder`; returns the one line on which it ends with status 2."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {"PATH": path, "HF_HUB_OFFLINE": "1", **variables}
    lengths = next(lengths for kind, lengths in LENGTHS.items() if script in kind)  # the tiny models'
    command = ["bash", ROOT / script, *lengths, "--do_lower_case"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    return line


@pytest.mark.parametrize("path", ["teacher/none", "./no teacher", "/no/where", "../none"])
@pytest.mark.parametrize("script", OWN)
def test_a_missing_teacher_is_answered_with_the_command_that_trains_it(world, tmp_path, script, path):
    """Pasted into a shell, that command is the very one, also where names hold spaces."""
    model, data = tmp_path / "a  model", tmp_path / "the data"
    model.symlink_to(world.model)
    line = really(script, tmp_path, MODEL="a  model", DATA_DIR=str(data), TEACHER_PATH=path, TASK="mrpc")
    assert f"--teacher_name_or_path {path}: no such folder" in line
    advice = line[line.index("python ") :]
    pasted = shlex.split(advice)
    assert Path(pasted[1]) == ROOT / f"masked_{script[: script.index('_', 4)]}.py"
    given = flags(pasted[1:])
    assert (given["--model_type"], given["--output_dir"]) == ("bert", path)
    assert (given["--model_name_or_path"], given["--data_dir"]) == ("a  model", str(data))
    assert given.get("--task_name") == ("mrpc" if script in GLUE else None)
    assert (given["--max_seq_length"], given["--do_lower_case"]) == ("64", "")


@pytest.mark.parametrize("script", OWN)
def test_the_default_teacher_is_looked_for_in_the_users_folder_alone(world, tmp_path, script):
    line = really(script, tmp_path, MODEL=str(world.model))
    assert "--teacher_name_or_path teacher/" in line and "no such folder; this trains it: python " in line


@pytest.mark.parametrize("script", [script for script in OWN if "topk" in script])
def test_topk_has_no_target_sparsity(tmp_path, script):
    assert "--target_sparsity: topK fixes its sparsity" in really(script, tmp_path, TARGET_SPARSITY="0.9")


@pytest.mark.parametrize("script", OWN)
def test_a_teacher_on_the_hub_is_left_to_the_program(run, script):
    assert flags(run(script, TEACHER_PATH="someone/bert-qqp"))["--teacher_name_or_path"] == "someone/bert-qqp"


@pytest.mark.parametrize("script", OWN)
def test_demo_is_handed_over(run, script):
    words = run(script, "--bf16", DEMO="1")
    assert words[:3] == ["python", "-m", "emmental.demo"]
    assert words[3].endswith(script)
    assert words[4] == "--bf16"


@pytest.mark.parametrize("script", GLUE)
def test_the_demo_gets_the_environment_as_it_was(run, tmp_path, script):
    (tmp_path / "bin" / "python").write_text('#!/bin/sh\necho "$WARMUP; $FINAL_TH; $LAUNCH"\n')
    assert run(script, DEMO="1", WARMUP="60", NPROC="2", LAUNCH="python", FINAL_TH="0.2") == ["60; 0.2; python"]


@pytest.mark.parametrize("script", OWN)
def test_a_copy_or_a_link_finds_the_program(run, tmp_path, script):
    """A batch system runs a copy of the script, in the folder from which it was submitted."""
    (tmp_path / "link.sh").symlink_to(ROOT / script)
    _, program, *_ = run(tmp_path / "link.sh")
    assert Path(program).is_file()
    shutil.copy(ROOT / script, tmp_path / "copy.sh")
    (line,) = run(tmp_path / "copy.sh", status=2)
    assert line.endswith("copy.sh: error: start it in the repository's folder")
    environment = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "TEACHER_PATH": str(tmp_path)}
    copy = ["bash", tmp_path / "copy.sh"]
    done = subprocess.run(copy, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[1].startswith("./masked_run_")


@pytest.mark.parametrize("script", GLUE)
def test_a_task_in_capitals_is_the_same(run, script):
    assert run(script, TASK="QQP") == run(script, TASK="Qqp") == run(script)
