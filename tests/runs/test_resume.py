"""A run that is killed and goes on ends bit for bit like one that was not; what cannot go on says so."""

import json
import random
import shutil
import signal

import pytest
from safetensors.torch import load_file, save_file
from tiny import HARD, SOFT, TRAIN, log, result, run_script, succeed

# loss windows of five steps, so that checkpoints fall inside them
FLAGS = [*TRAIN, "--logging_steps", 5, "--save_steps", 2, "--resume_from_checkpoint", "auto"]


def outcome(folder):
    """All that must be the same."""
    return (folder / "model.safetensors").read_bytes(), result(folder), log(folder)


def checkpoints(folder):
    """Steps and folders of those that are there."""
    found = (json.loads((path / "state.json").read_text()) for path in folder.glob("checkpoint-*[0-9]"))
    return sorted(state["step"] for state in found)


def killed(command, folder, function, nth):
    answer = run_script(*command, "--output_dir", folder, before=("hit", signal.SIGKILL, function, nth))
    assert answer.code == -signal.SIGKILL, answer.err
    return answer


@pytest.fixture(scope="module")
def undisturbed(world):
    """A function: the folder of a command's run, the number of calls it made, and its optimizer steps."""
    made = {}

    def run(command):
        key = str(command)
        if key not in made:
            folder, calls = world.folder / f"undisturbed-{len(made)}", world.folder / f"calls-{len(made)}"
            succeed(*command, "--output_dir", folder, before=("count_calls", str(calls)))
            made[key] = folder, int(calls.read_text()), log(folder)[-1]["step"]
        return made[key]

    return run


def commands(world):
    for task in ("qqp", "squad1"):
        for method in (HARD, SOFT):
            for accumulation in (1, 2):
                options = ["--gradient_accumulation_steps", accumulation, "--save_steps", 3 - accumulation]
                yield [*world.command(task), *FLAGS, *world.cap(task), *method, *options]


# in the second epoch: inside an encoding pass (its forward, its end, its file), and in the course of a save
PLACES = [
    *[("encode_epoch.<locals>.compute", 1), ("Bank.add", 1), ("atomic_write", 2), ("digest", 5)],
    *[("save", 2), ("optimizer_tensors", 2), ("sync", 8), ("remove_old", 1)],
]


OFTEN = [number if number in (2, 5) else pytest.param(number, marks=pytest.mark.slow) for number in range(8)]


@pytest.mark.parametrize("number", OFTEN)  # both tasks, methods and accumulations; the rest is slow
def test_run_killed_three_times_ends_bit_for_bit_the_same(world, tmp_path, undisturbed, number):
    """In the first third at any instant, in an encoding pass or a save, and in the last step or after it."""
    chance, command = random.Random(number), list(commands(world))[number]
    expected, calls, steps = undisturbed(command)
    killed(command, tmp_path, "", chance.randrange(1, calls // 3))
    killed(command, tmp_path, *PLACES[number])
    done = max(checkpoints(tmp_path), default=0)
    after = ("target_report", 1)
    last = [("Optimizer.step", steps - done), after][number % 2] if steps > done else after
    killed(command, tmp_path, *last)
    succeed(*command, "--output_dir", tmp_path)
    assert outcome(tmp_path) == outcome(expected)
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.slow
@pytest.mark.parametrize("number", range(8))
def test_run_killed_at_any_instant_ends_bit_for_bit_the_same(world, tmp_path, undisturbed, number):
    """Again and again, each time a random number of calls later, until it gets through."""
    chance, command = random.Random(100 + number), list(commands(world))[number]
    expected, calls, _ = undisturbed(command)
    kills = 0
    while True:
        before = ("hit", signal.SIGKILL, "", chance.randrange(1, calls + calls // 4))
        answer = run_script(*command, "--output_dir", tmp_path, before=before)
        if answer.code == 0 and kills >= 10:
            break
        if answer.code == 0:  # through too early: once more from the start
            shutil.rmtree(tmp_path)
            continue
        assert answer.code == -signal.SIGKILL, answer.err
        kills += 1
    assert outcome(tmp_path) == outcome(expected)


OTHER = {
    "global_topk": ["--pruning_method", "threshold", "--global_topk", "--global_topk_frequency_compute", 4],
    "l0": ["--pruning_method", "l0", "--regularization", "l0", "--final_lambda", 10, "--mask_scale", 2],
    "target sparsity": [*SOFT, "--target_sparsity", 0.9, "--mask_scores_learning_rate", 0.3],  # steered in every step
    "bf16, half banks": [*HARD, "--bf16", "--bank_dtype", "float16"],
    "evaluation on the way": [*HARD, "--evaluate_during_training", "--cl_normalization", "supcon"],
    "teacher": ["--model_type", "bert"],
    "logits alone of the teacher": [*HARD, "--contrast_with", "pretrained"],
}


LONGER = ("global_topk", "l0", "logits alone of the teacher")


@pytest.mark.parametrize(
    "flags",
    [pytest.param(OTHER[name], id=name, marks=[pytest.mark.slow] * (name in LONGER)) for name in OTHER],
)
def test_a_signal_finishes_the_step_and_saves(world, tmp_path, undisturbed, flags):
    """A signal in the middle of a step, or of an encoding pass: the step is finished, saved, and gone on from."""
    dense = "bert" in flags
    number = signal.SIGTERM if dense or "l0" in flags else signal.SIGINT
    command = [*world.command("qqp"), *TRAIN, "--logging_steps", 5, *flags, *([] if dense else world.cap("qqp"))]
    expected, _, _ = undisturbed(command)
    outside = dense or "--evaluate_during_training" in flags or "--contrast_with" in flags
    inside = "Optimizer.step" if outside else "encode_epoch.<locals>.compute"
    stopped = run_script(*command, "--output_dir", tmp_path, before=("hit", number, inside, 3))
    assert stopped.code == 128 + number, stopped.err
    saved = tmp_path / f"checkpoint-{checkpoints(tmp_path)[-1]}"
    assert f"stopped by {signal.Signals(number).name}; go on with --resume_from_checkpoint {saved}\n" in stopped.out
    assert saved.name == ("checkpoint-3" if inside == "Optimizer.step" else "checkpoint-9")
    succeed(*command, "--output_dir", tmp_path, "--resume_from_checkpoint", saved)
    assert outcome(tmp_path) == outcome(expected)
    banks = {path.name for path in tmp_path.glob("banks/*")}
    assert ("finetuned.safetensors" in banks) == (not dense and "--contrast_with" not in flags)


def test_a_run_whose_output_nobody_reads_any_more_saves_all_the_same(world, tmp_path):
    command = [*world.command("qqp"), *TRAIN, *HARD, "--output_dir", tmp_path]
    before = ("interrupt_unread", "Optimizer.step", 5)
    assert run_script(*command, before=before).code == 130
    assert checkpoints(tmp_path)[-1] == 5


def test_a_signal_in_the_last_step_leaves_no_result(world, tmp_path):
    command = [*world.command("qqp"), *TRAIN, *HARD, "--max_steps", 5, "--output_dir", tmp_path]
    assert run_script(*command, before=("hit", signal.SIGTERM, "Optimizer.step", 5)).code == 143
    assert not (tmp_path / "result.json").exists()
    succeed(*command, "--resume_from_checkpoint", "auto")
    assert (tmp_path / "result.json").exists() and [line["step"] for line in log(tmp_path)][:5] == [1, 2, 3, 4, 5]


def test_a_signal_while_loading_or_evaluating_ends_at_once(world, tmp_path):
    """There is nothing to be saved then: the process just ends."""
    command = [*world.command("qqp"), *TRAIN, *HARD, "--max_steps", 5]
    for place in ("load_student", "target_report"):
        out = tmp_path / place
        assert run_script(*command, "--output_dir", out, before=("hit", signal.SIGTERM, place, 1)).code == -15
        answer = run_script(*command, "--output_dir", out / "2", before=("hit", signal.SIGINT, place, 1))
        assert answer.code == 130 and "Traceback" not in answer.err


@pytest.fixture
def finished(world, tmp_path, undisturbed):
    """A command, and a copy of the folder that its run left: checkpoints 3, 6, 9 and 12."""
    command = [*world.command("qqp"), *TRAIN, *SOFT, *world.cap("qqp"), "--logging_steps", 5]
    expected, _, _ = undisturbed(command)
    folder = tmp_path / "run"
    shutil.copytree(expected, folder)
    assert checkpoints(folder) == [3, 6, 9, 12]
    (folder / "model.safetensors").unlink()
    return command, folder, outcome(expected)


def test_torn_checkpoints_are_named_and_passed_over(finished):
    command, folder, expected = finished
    weights = folder / "checkpoint-12" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    (folder / "checkpoint-9" / "training_state.safetensors").unlink()
    state = folder / "checkpoint-6" / "state.json"
    state.write_text(state.read_text()[:-20])
    (folder / "checkpoint-5.partial").mkdir()
    resumed = succeed(*command, "--output_dir", folder, "--resume_from_checkpoint", "auto", "--save_total_limit", 1)
    messages = [line for line in resumed.err.splitlines() if "passed over" in line]
    assert [line.split(": passed over, ")[1] for line in messages] == [
        *("state.json is missing or damaged (JSONDecodeError)", "model.safetensors is damaged"),
        "training_state.safetensors is missing",
    ]
    assert checkpoints(folder) == [12] and not (folder / "checkpoint-5.partial").exists()
    assert outcome(folder) == expected


def test_a_damaged_bank_is_noticed(finished):
    command, folder, expected = finished
    (folder / "banks" / "snapshot-1.safetensors").write_bytes(b"")
    resumed = succeed(*command, "--output_dir", folder, "--resume_from_checkpoint", "auto")
    assert resumed.err.count("passed over, snapshot-1.safetensors is damaged") == 3
    assert outcome(folder) == expected


def test_the_step_is_read_from_the_state_not_the_name(finished):
    command, folder, expected = finished
    (folder / "checkpoint-6").rename(folder / "checkpoint-100")
    for name in ("checkpoint-9", "checkpoint-12"):
        shutil.rmtree(folder / name)
    succeed(*command, "--output_dir", folder, "--resume_from_checkpoint", "auto")
    assert outcome(folder) == expected


def test_a_complete_checkpoint_is_kept_while_later_ones_are_damaged(finished):
    """However few checkpoints are kept, a complete one is there at any time."""
    command, folder, expected = finished
    for step in (9, 12):
        (folder / f"checkpoint-{step}" / "training_state.safetensors").write_bytes(b"")
    limited = [*command, "--save_steps", 1, "--save_total_limit", 1, "--resume_from_checkpoint", "auto"]
    killed(limited, folder, "Optimizer.step", 3)
    assert 8 in checkpoints(folder)
    resumed = succeed(*limited, "--output_dir", folder)
    assert resumed.err.count("passed over") == 2
    assert checkpoints(folder) == [12] and outcome(folder) == expected


REFUSED = {
    "another learning rate": (["--learning_rate", 2e-3], "learning_rate was 0.001 and is 0.002"),
    "another seed and temperature": (
        *(["--seed", 1, "--contrastive_temperature", 0.2],),
        "seed was 42 and is 1, contrastive_temperature was 0.1 and is 0.2",
    ),
    "longer": (["--num_train_epochs", 4], "num_train_epochs was 3.0 and is 4.0"),
    "another batch": (["--per_gpu_train_batch_size", 4], "global_batch_size was 8 and is 4"),
    "shorter inputs": (["--max_seq_length", 12], "max_seq_length was 24 and is 12"),
}


@pytest.mark.parametrize("flags, message", REFUSED.values(), ids=REFUSED)
def test_other_arguments_are_refused_by_name(finished, flags, message):
    command, folder, _ = finished
    refused = run_script(*command, "--output_dir", folder, "--resume_from_checkpoint", "auto", *flags)
    assert refused.code == 2 and message in refused.err and len(refused.err.splitlines()) == 1
    assert checkpoints(folder) == [3, 6, 9, 12]


def test_flags_that_do_not_affect_training_may_change(finished):
    command, folder, expected = finished
    shutil.rmtree(folder / "checkpoint-12")
    flags = ["--save_steps", 0, "--resume_from_checkpoint", folder / "checkpoint-9", "--overwrite_cache"]
    succeed(*command, "--output_dir", folder, *flags)
    assert outcome(folder) == expected


def test_other_models_and_folders_are_refused(world, finished, tmp_path):
    command, folder, _ = finished
    elsewhere = ["--output_dir", tmp_path / "new", "--resume_from_checkpoint", folder / "checkpoint-9"]
    refused = run_script(*command, *elsewhere)
    assert refused.code == 2 and "checkpoint-9: not in --output_dir" in refused.err and not (tmp_path / "new").exists()
    still = ["--output_dir", folder, "--resume_from_checkpoint", "auto", "--model_name_or_path", world.still_model]
    refused = run_script(*command, *still)
    assert refused.code == 2 and "model_config was" in refused.err
    assert refused.err.endswith("; without this flag, --overwrite_output_dir starts anew\n")
    train = (world.data("qqp") / "train.tsv").read_text().splitlines()
    flipped = train[-1][:-1] + str(1 - int(train[-1][-1]))  # one label is another
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "train.tsv").write_text("\n".join([*train[:-1], flipped]) + "\n")
    shutil.copy(world.data("qqp") / "dev.tsv", tmp_path / "labels")
    labels = ["--output_dir", folder, "--resume_from_checkpoint", "auto", "--data_dir", tmp_path / "labels"]
    refused = run_script(*command, *labels)
    assert refused.code == 2 and ": data was" in refused.err, refused.err
    other = tmp_path / "other-teacher"
    shutil.copytree(world.teacher("qqp"), other)
    last = ["--output_dir", folder, "--resume_from_checkpoint", "auto", "--teacher_name_or_path", other]
    shutil.rmtree(folder / "checkpoint-12")
    state = folder / "checkpoint-9" / "state.json"
    content = json.loads(state.read_text())
    assert content["arguments"].keys() >= {"model_weights", "teacher_weights"}
    weights = {name: value + 1 for name, value in load_file(other / "model.safetensors").items()}
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    refused = run_script(*command, *last)
    assert refused.code == 2 and "teacher_weights was" in refused.err, refused.err
    from_the_hub = {name: value for name, value in content["arguments"].items() if not name.endswith("_weights")}
    state.write_text(json.dumps(content | {"arguments": from_the_hub}))
    succeed(*command, *last, "--save_steps", 0)
    state.write_text(json.dumps(content))
    (folder / "checkpoint-9" / "config.json").write_text("{}")
    torn = ["--output_dir", folder, "--resume_from_checkpoint", folder / "checkpoint-9"]
    refused = run_script(*command, *torn)
    assert refused.code == 2 and "checkpoint-9: no complete checkpoint, config.json is damaged" in refused.err


@pytest.mark.parametrize("size", [1_000, 3_000, 4_000, 20_000, 200_000])
def test_a_full_disk_gives_one_error_line(finished, tmp_path, size):
    """Whatever does not fit (arguments, banks, log, TensorBoard, model, moments): one clear line, and no hanging."""
    command, out = [*finished[0], "--logging_steps", 1, "--save_steps", 9], tmp_path / "out"
    full = run_script(*command, "--output_dir", out, before=("limit_file_size", size), timeout=60)
    messages = [line for line in full.err.splitlines() if "error:" in line]
    assert full.code == 2 and len(messages) == 1 and "File too large" in messages[0], full.err
    assert "Traceback" not in full.err and not list(tmp_path.rglob("*.partial")) and not checkpoints(out)


def test_a_full_disk_leaves_the_last_good_checkpoint(finished):
    command, folder, expected = finished
    for step in (6, 9, 12):
        shutil.rmtree(folder / f"checkpoint-{step}")
    command = [*command, "--output_dir", folder, "--resume_from_checkpoint", "auto"]
    full = run_script(*command, before=("limit_file_size", 200_000))
    assert full.code == 2 and "checkpoint-6: could not be written" in full.err and "earlier checkpoints are" in full.err
    assert checkpoints(folder) == [3] and not list(folder.rglob("*.partial"))
    succeed(*command)
    assert outcome(folder) == expected


def test_only_the_newest_checkpoints_are_kept(world, tmp_path):
    flags = ["--save_steps", 1, "--save_total_limit", 2, "--output_dir", tmp_path]
    killed([*world.command("qqp"), *TRAIN, *HARD, *flags], tmp_path, "Optimizer.step", 8)
    assert checkpoints(tmp_path) == [6, 7]
    succeed(*world.command("qqp"), *TRAIN, *HARD, *flags, "--resume_from_checkpoint", "auto")
    assert checkpoints(tmp_path) == [11, 12]


@pytest.mark.parametrize("save_steps, step", [(1, 1), (0, 4)])
def test_a_weight_that_no_loss_shows_is_never_saved(world, tmp_path, save_steps, step):
    """The last position, which no text reaches; neither in a checkpoint nor at the end."""
    model = tmp_path / "model"
    shutil.copytree(world.model, model)
    weights = load_file(model / "model.safetensors")
    (name,) = (name for name in weights if name.endswith("position_embeddings.weight"))
    weights[name][-1] = float("nan")
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    flags = ["--model_name_or_path", model, "--save_steps", save_steps, "--max_steps", 4]
    ended = run_script(*world.command("qqp"), *TRAIN, *HARD, *flags, "--output_dir", tmp_path / "out")
    assert ended.code == 2 and f"step {step}: 1 weights are NaN or infinite, the first {name}" in ended.err, ended.err
    assert not checkpoints(tmp_path / "out") and not (tmp_path / "out" / "model.safetensors").exists()


def test_a_nan_loss_ends_the_run_and_keeps_checkpoints(world, tmp_path):
    flags = ["--learning_rate", 1e30, "--max_grad_norm", 1e30, "--save_steps", 1, "--save_total_limit", 1]
    ended = run_script(*world.command("qqp"), *TRAIN, *HARD, *flags, "--output_dir", tmp_path)
    messages = ended.err.splitlines()[-1]
    assert ended.code == 2 and "step " in messages and "earlier checkpoints are kept" in messages, ended.err
    assert len(checkpoints(tmp_path)) == 1 and not (tmp_path / "result.json").exists()
