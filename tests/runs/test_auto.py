"""`--resume_from_checkpoint auto` may stand in every job script: it goes on, or leaves alone, and never destroys."""

import json
import shutil
import signal

import pytest
from tiny import HARD, LIGHT, TRAIN, launcher, log, result, run_script, succeed

from emmental.training.resume import evaluation_folder, find_start, nothing_to_do
from emmental.utils.errors import InputError

AUTO = ["--resume_from_checkpoint", "auto"]


def everything(folder):
    """Every file and folder with its size and time, the folder itself included."""
    return {path: (path.lstat().st_size, path.lstat().st_mtime_ns) for path in (folder, *folder.rglob("*"))}


@pytest.fixture(scope="module")
def command(world):
    return [*world.command("qqp"), *TRAIN, *HARD, *world.cap("qqp"), "--logging_steps", 5, *AUTO]


@pytest.fixture(scope="module")
def expected(world, command):
    """What an undisturbed run leaves: checkpoints 3, 6, 9 and 12."""
    folder = world.folder / "auto"
    succeed(*command, "--output_dir", folder)
    return folder


@pytest.fixture
def folder(expected, tmp_path):
    return shutil.copytree(expected, tmp_path / "run")


def same_outcome(folder, expected):
    weights = ((x / "model.safetensors").read_bytes() for x in (folder, expected))
    return len({*weights}) == 1 and result(folder) == result(expected) and log(folder) == log(expected)


def unfinished(folder):
    (folder / "result.json").unlink()
    (folder / "model.safetensors").unlink()


def refused(command, folder, *flags):
    """The one line with which a command is refused, after which everything is as it was."""
    before = everything(folder)
    answer = run_script(*command, "--output_dir", folder, *flags)
    assert answer.code == 2 and answer.out == "" and len(answer.err.splitlines()) == 1, answer.err
    assert everything(folder) == before
    return answer.err


def test_what_changes_no_number_makes_no_other_run(tmp_path):
    """Of batch and processes the product counts."""
    same = {"model_type": "bert", "teacher_type": "dense", "seed": 1, "global_batch_size": 8, "evaluate_at": "final"}
    saved = {"per_gpu_train_batch_size": 8, "per_gpu_eval_batch_size": 8, "threads": 1, "verbose_logging": False}
    saved |= {"no_cuda": False, "cache_dir": "", "output_dir": "a", "resume_from_checkpoint": ""}
    now = {"per_gpu_train_batch_size": 4, "per_gpu_eval_batch_size": 4, "threads": 2, "verbose_logging": True}
    now |= {"no_cuda": True, "cache_dir": "c", "output_dir": "b", "resume_from_checkpoint": "auto"}
    for name in ("result.json", "model.safetensors"):
        (tmp_path / name).touch()
    (tmp_path / "arguments.json").write_text(json.dumps(same | saved))
    assert nothing_to_do(tmp_path, same | now, {}, overwrite=False, fixed=set())
    with pytest.raises(InputError, match="seed was 1 and is 2"):
        nothing_to_do(tmp_path, same | now | {"seed": 2}, {}, overwrite=False, fixed=set())


def test_a_run_that_knew_less_flags_had_their_defaults(command, expected, folder):
    """It is finished, or goes on; with another value of such a flag it is another run."""
    record = json.loads((folder / "arguments.json").read_text())
    del record["tf32"], record["evaluate_at"]
    (folder / "arguments.json").write_text(json.dumps(record))
    assert "nothing to do" in succeed(*command, "--output_dir", folder).out
    assert "tf32 was False and is True" in refused(command, folder, "--tf32")
    unfinished(folder)
    state = json.loads((folder / "checkpoint-12" / "state.json").read_text())
    del state["arguments"]["tf32"]
    (folder / "checkpoint-12" / "state.json").write_text(json.dumps(state))
    succeed(*command, "--output_dir", folder)
    assert same_outcome(folder, expected)
    unfinished(folder)
    assert "tf32 was False and is True" in run_script(*command, "--output_dir", folder, "--tf32").err


def test_an_evaluation_of_a_packed_model_lies_beside_it(tmp_path):
    assert evaluation_folder(tmp_path) == tmp_path
    (tmp_path / "model.sparse.safetensors").touch()
    assert evaluation_folder(tmp_path) == tmp_path / "evaluation"


SAME = {
    "the same": [],
    "written otherwise": ["--save_steps", 1, "--save_total_limit", 1, "--logging_steps", 1, "--overwrite_cache"],
    "with the flag to overwrite": ["--overwrite_output_dir"],
    "spelt otherwise": ["--task_name", "QQP"],
}


@pytest.mark.parametrize("flags", SAME.values(), ids=SAME)
@pytest.mark.parametrize("left", ["all checkpoints", "one before the end", "a damaged one", "none"])
def test_a_finished_run_is_left_alone(command, folder, flags, left):
    """One line and success, without torch; not even a time changes."""
    if left == "none":
        shutil.rmtree(folder / "banks")
    if left in ("none", "one before the end"):
        for path in sorted(folder.glob("checkpoint-*"))[: None if left == "none" else 1]:  # checkpoint-12 is first
            shutil.rmtree(path)
    if left == "a damaged one":
        (folder / "checkpoint-12" / "model.safetensors").write_bytes(b"")
    before, script = everything(folder), launcher(*LIGHT).start
    ran = script(*command, "--output_dir", folder, *flags, before=("without", "torch")).wait()
    told = f"{folder}: this run is finished, nothing to do; its results are in {folder / 'result.json'}\n"
    assert (ran.code, ran.out, ran.err) == (0, told, "")
    assert everything(folder) == before


def test_a_finished_run_is_the_same_by_other_paths_to_its_models(world, command, folder, tmp_path):
    (tmp_path / "link").symlink_to(world.model)
    ran = succeed(*command, "--output_dir", folder, "--model_name_or_path", tmp_path / "link")
    assert "nothing to do" in ran.out


def test_a_finished_run_from_before_a_flag_is_left_alone(command, folder):
    """Its arguments do not name --evaluate_at: it was evaluated as the default says, and not otherwise."""
    arguments = json.loads((folder / "arguments.json").read_text())
    assert arguments.pop("evaluate_at") == "final"
    (folder / "arguments.json").write_text(json.dumps(arguments))
    assert "nothing to do" in succeed(*command, "--output_dir", folder).out
    line = refused(command, folder, "--evaluate_during_training", "--evaluate_at", "running")
    assert "evaluate_at was 'final' and is 'running'" in line


OTHERS = {
    "another learning rate": (["--learning_rate", 2e-3], "learning_rate was 0.001 and is 0.002"),
    "another batch size": (["--per_gpu_train_batch_size", 4], "global_batch_size was 8 and is 4"),
    "another task": (["--task_name", "mrpc"], "task_name was 'qqp' and is 'mrpc'"),
}


@pytest.mark.parametrize("flags, message", OTHERS.values(), ids=OTHERS)
def test_a_finished_run_with_other_arguments_is_refused(command, folder, flags, message):
    line = refused(command, folder, *flags)
    assert "holds a finished run, of which" in line and message in line and "--overwrite_output_dir starts anew" in line


@pytest.mark.parametrize("flags, message", OTHERS.values(), ids=OTHERS)
def test_an_interrupted_run_does_not_go_on_with_other_arguments(command, folder, flags, message):
    """It is refused at once, without torch, and so before its data are tokenised."""
    unfinished(folder)
    before, script = everything(folder), launcher(*LIGHT).start
    ran = script(*command, "--output_dir", folder, *flags, before=("without", "torch")).wait()
    assert (ran.code, ran.out, len(ran.err.splitlines())) == (2, "", 1)
    assert f"--resume_from_checkpoint {folder / 'checkpoint-12'}: {message}; without this flag" in ran.err
    assert everything(folder) == before


def test_an_overwriting_run_that_stops_early_leaves_nothing_finished(command, folder):
    (folder / "null_odds_.json").touch()
    flags = ["--overwrite_output_dir", "--learning_rate", 2e-3]
    answer = run_script(*command, "--output_dir", folder, *flags, before=("hit", signal.SIGKILL, "encode_epoch", 1))
    assert answer.code == -signal.SIGKILL
    assert not {"result.json", "README.md", "model.safetensors", "null_odds_.json"} & {x.name for x in folder.iterdir()}


def test_other_arguments_may_overwrite(command, folder):
    succeed(*command, "--output_dir", folder, "--overwrite_output_dir", "--learning_rate", 2e-3)
    assert json.loads((folder / "arguments.json").read_text())["learning_rate"] == 2e-3


def lose_banks(folder):
    shutil.rmtree(folder / "banks")
    return "pretrained.safetensors is missing (there is no folder", "checkpoint-12"


def lose_one_bank(folder):
    (folder / "banks" / "finetuned.safetensors").unlink()
    return "finetuned.safetensors is missing", "checkpoint-12"


def tear_all(folder):
    for path in folder.glob("checkpoint-*"):
        (path / "training_state.safetensors").write_bytes(b"x")
    return "training_state.safetensors is damaged", "checkpoint-12"


def lose_states(folder):
    for path in folder.glob("checkpoint-*"):
        (path / "state.json").unlink()
    return "state.json is missing or damaged", "checkpoint-"


@pytest.mark.parametrize("damage", [lose_banks, lose_one_bank, tear_all, lose_states])
@pytest.mark.parametrize("model", [True, False])
def test_checkpoints_none_of_which_is_complete_are_refused(command, expected, folder, damage, model):
    """Whether the model is there or not; only --overwrite_output_dir starts anew."""
    (folder / "result.json").unlink()
    if not model:
        (folder / "model.safetensors").unlink()
    wrong, name = damage(folder)
    line = refused(command, folder)
    assert f"{folder} has no complete checkpoint; {name}" in line and wrong in line
    assert "--overwrite_output_dir starts anew without them" in line
    if damage is lose_banks and not model:
        succeed(*command, "--output_dir", folder, "--overwrite_output_dir")
        assert same_outcome(folder, expected)


@pytest.mark.parametrize("every, kept", [(3, "checkpoint-9.passed-over"), (4, "checkpoint-9")])
def test_a_checkpoint_that_is_passed_over_is_kept(command, expected, folder, every, kept):
    """As it is, or under another name where the run writes one of its step anew; the limit does not count it."""
    unfinished(folder)
    shutil.rmtree(folder / "checkpoint-12")
    (folder / "checkpoint-9" / "model.safetensors").write_bytes(b"torn")
    before = {path.name: path.read_bytes() for path in (folder / "checkpoint-9").iterdir()}
    flags = ["--save_total_limit", 1, "--save_steps", every]
    ran = succeed(*command, "--output_dir", folder, *flags)
    assert f"{folder / 'checkpoint-9'}: passed over, model.safetensors is damaged" in ran.err
    assert f"{folder / 'checkpoint-6'}: training goes on from step 6 of 12\n" in ran.out
    assert {path.name: path.read_bytes() for path in (folder / kept).iterdir()} == before
    assert {path.name for path in folder.glob("checkpoint-*")} == {kept, "checkpoint-12"}
    assert same_outcome(folder, expected)
    unfinished(folder)  # and a second time; a name that is taken is not taken again
    (folder / "checkpoint-12" / "model.safetensors").write_bytes(b"torn")
    line = refused(command, folder)
    assert "has no complete checkpoint; checkpoint-12: model.safetensors is damaged" in line


def test_a_passed_over_checkpoint_s_name_is_never_taken_twice(command, folder):
    for count in (1, 2):
        unfinished(folder)
        (folder / "checkpoint-9" / "model.safetensors").write_bytes(b"torn" * count)
        shutil.rmtree(folder / "checkpoint-12")
        succeed(*command, "--output_dir", folder)
    for count, name in ((1, "checkpoint-9.passed-over"), (2, "checkpoint-9.passed-over.passed-over")):
        assert (folder / name / "model.safetensors").read_bytes() == b"torn" * count


def test_a_folder_of_something_else_is_refused_as_without_auto(world, command, tmp_path):
    folder = shutil.copytree(world.teacher("qqp"), tmp_path / "teacher")
    line = refused(command, folder)
    assert line == refused(command, folder, "--resume_from_checkpoint", "")
    assert f"--output_dir {folder} is not empty; --overwrite_output_dir writes into it all the same" in line


def test_a_trained_teacher_is_no_folder_for_a_student(world, command, tmp_path):
    folder = tmp_path / "teacher"
    succeed(*world.command("qqp"), *TRAIN, "--model_type", "bert", "--save_steps", 0, "--output_dir", folder)
    assert "holds a finished run, of which model_type was 'dense' and is 'masked'" in refused(command, folder)


@pytest.mark.parametrize("left", ["nothing", "an empty folder", "a lock", "a torn file"])
def test_an_empty_folder_is_a_fresh_start(command, expected, tmp_path, left):
    """What a killed process may leave before it has written anything counts as nothing."""
    folder = tmp_path / "run"
    if left != "nothing":
        folder.mkdir()
    if left == "a lock":
        (folder / ".lock").write_text("process 1 on another host")
    if left == "a torn file":
        (folder / "arguments.json.partial").write_text("{")
    succeed(*command, "--output_dir", folder)
    assert same_outcome(folder, expected)


@pytest.mark.parametrize("function, nth", [("fill_from_teacher", 1), ("Optimizer.step", 1), ("Optimizer.step", 11)])
def test_a_run_killed_before_its_first_checkpoint_starts_anew(command, expected, tmp_path, function, nth):
    """A job that is queued again needs nobody's help: there is nothing to lose."""
    command = [*command, "--save_steps", 0, "--output_dir", tmp_path / "run"]
    assert run_script(*command, before=("hit", signal.SIGKILL, function, nth)).code == -signal.SIGKILL
    ran = succeed(*command)
    assert f"{tmp_path / 'run'}: no checkpoint to go on from; training starts anew\n" in ran.out
    assert same_outcome(tmp_path / "run", expected)


def test_a_model_without_results_is_not_given_up(command, tmp_path):
    """Killed while it was evaluated in the end: there is no checkpoint, and a model to lose."""
    command, folder = [*command, "--save_steps", 0], tmp_path / "run"
    killed = run_script(*command, "--output_dir", folder, before=("hit", signal.SIGKILL, "write_results", 1))
    assert killed.code == -signal.SIGKILL
    line = refused(command, folder)
    assert "holds model.safetensors, and no checkpoint to go on from; --do_eval alone evaluates" in line


def test_results_are_the_last_that_a_run_leaves(command, expected, folder):
    """A run that goes back in a finished folder is not finished until its end."""
    resumed = [*command, "--output_dir", folder, "--resume_from_checkpoint", folder / "checkpoint-9"]
    assert run_script(*resumed, before=("hit", signal.SIGKILL, "save_model", 2)).code == -signal.SIGKILL
    assert not (folder / "result.json").exists()
    succeed(*command, "--output_dir", folder)
    assert same_outcome(folder, expected)


def test_what_another_process_left_meanwhile_is_seen_under_the_lock(expected, folder):
    """The folder is looked at once more when it is this run's alone."""
    arguments = json.loads((folder / "arguments.json").read_text())
    with pytest.raises(InputError, match="another process has just finished this run"):
        find_start("auto", folder, arguments, {}, overwrite=False)
    with pytest.raises(InputError, match="is not empty"):
        find_start("", folder, arguments, {}, overwrite=False)
    assert find_start("", folder, arguments, {}, overwrite=True).checkpoint is None
    unfinished(folder)
    assert find_start("auto", folder, arguments, {}, overwrite=False).checkpoint == folder / "checkpoint-12"
