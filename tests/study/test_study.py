"""The study: its grids' commands, the runner with kills and failures, and the report from lines written by hand."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import make_glue, make_squad, succeed

from emmental.data import glue, squad
from emmental.study import data, picture, report, results, table
from emmental.study.__main__ import spelled_alike
from emmental.study.cells import Cell, Places, grid_cells
from emmental.study.grids import GRIDS, METHODS, Experiment, Recipe, Row
from emmental.study.runner import acquire
from emmental.utils.errors import InputError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def official(tmp_path_factory) -> Path:
    """A folder of official files, as the user has them."""
    folder = tmp_path_factory.mktemp("official")
    for name in ("QQP", "MNLI"):
        make_glue(folder / name, name.lower(), train=70, dev=20)
    (folder / "SST-2").mkdir()
    for split in ("train", "dev"):
        (folder / "SST-2" / f"{split}.tsv").write_text("sentence\tlabel\n" + "ba be\t1\n" * 30)
    make_squad(folder)
    return folder


# --- The grids


@pytest.mark.parametrize("name", GRIDS)
def test_cells_set_nothing_but_variables_of_their_script(name, official, tmp_path):
    places = Places(tmp_path, str(official), "a model")
    for experiment in GRIDS[name]:
        data.write_subset(experiment, places)
    cells = grid_cells(GRIDS[name], places)
    assert len({cell.name for cell in cells}) == len(cells)
    for cell in cells:
        assert not cell.needs or cell.needs in {other.name for other in cells}
        if cell.about["kind"] == "pruned":
            script = (ROOT / Path(cell.argv[1]).name).read_text()
            known = set(re.findall(r"\$\{(\w+):?-", script)) | {"CL_SUPERVISED_LOSS_WEIGHT"}  # which squad ignores
            assert cell.environment.keys() <= known
            assert "'MODEL=a model'" in cell.command


def test_warm_up_is_a_tenth_of_the_run(official, tmp_path):
    experiment = replace(GRIDS["demo"][0], train_rows=64, rows=(Row("CAP-m", 10, (1,), Recipe(50)),))
    places = Places(tmp_path, str(official), "m")
    data.write_subset(experiment, places)
    (*_, cell) = grid_cells((experiment,), places)
    assert cell.environment["WARMUP"] == str(2 * 50 // 10)  # 64 rows are two batches of 32


def test_a_cell_prunes_to_its_share_with_its_recipe_and_seed(official, tmp_path):
    rows = (Row("CAP-soft", 3, (2,), Recipe(4, "1e-4")), Row("CAP-m", 3, (3,), Recipe(5, "2e-4")))
    experiment = replace(GRIDS["demo"][0], train_rows=64, rows=rows)
    places = Places(tmp_path, str(official), "m")
    data.write_subset(experiment, places)
    soft, hard = (cell.environment for cell in grid_cells((experiment,), places) if cell.about["kind"] == "pruned")
    assert (soft["TARGET_SPARSITY"], soft["SEED"], soft["EPOCH"], soft["LR"]) == ("0.97", "2", "4", "1e-4")
    assert (hard["FINAL_TH"], hard["SEED"], hard["EPOCH"], hard["LR"]) == ("0.03", "3", "5", "2e-4")
    assert "FINAL_TH" not in soft and "TARGET_SPARSITY" not in hard


def test_baselines_are_without_contrast_and_the_others_with_it():
    without = {name for name, method in METHODS.items() if ("CONTRAST", "0") in method.environment}
    assert without == {"magnitude", "movement", "soft movement"}


def test_the_paper_keeps_the_published_warm_up(tmp_path):
    cells = grid_cells(GRIDS["paper"], Places(tmp_path, "", "bert-base-uncased"))
    assert not any("WARMUP" in cell.environment or "DATA_DIR" in cell.environment for cell in cells)


@pytest.mark.parametrize("task, folder", [("qqp", "QQP"), ("squad", "")])
def test_the_first_rows_and_all_of_dev(task, folder, official, tmp_path):
    experiment = Experiment(task, folder, 5, ())
    places = Places(tmp_path, str(official), "m")
    data.write_subset(experiment, places)
    cut, (train, (dev,)) = Path(places.data_of(experiment)), data.splits(task)
    assert (cut / dev).read_bytes() == (official / folder / dev).read_bytes()
    if task == "qqp":
        assert (cut / train).read_text().splitlines() == (official / folder / train).read_text().splitlines()[:6]
    else:
        ids = re.findall(r'"id": "([^"]*)"', (official / train).read_text())
        assert re.findall(r'"id": "([^"]*)"', (cut / train).read_text()) == ids[:5]
    counts = data.described(str(cut), task)
    assert (counts["train"], counts["dev"]) == (5, 20 if task == "qqp" else 12)
    data.write_subset(experiment, places)  # the same rows once more
    data.write_subset(experiment, replace(places, data=""))
    (cut / train).write_bytes((cut / train).read_bytes().replace(b"ba", b"be"))
    with pytest.raises(InputError, match=rf"{train}: not from --data_dir"):
        data.write_subset(experiment, places)


@pytest.mark.parametrize("task, dev", [("mnli", 2), ("squad", 1)])
def test_rows_of_the_hub_are_counted_and_digested(monkeypatch, tmp_path, task, dev):
    """As read; before they can be had a line says their source alone."""

    def no_network(*_, **__):
        raise InputError("no network")

    for module in (glue, squad):
        monkeypatch.setattr(module, "from_hub", no_network)
    assert data.described("", task, str(tmp_path)) == {"source": "Hub"}
    question = squad.Question("q", "Who?", "Ann and Bob", ("Ann",), (0,))
    hub = {"texts": ["a", "b"]}  # as many questions as texts
    monkeypatch.setattr(glue, "from_hub", lambda *_: glue.Rows("hub", hub["texts"], ["c", "d"], [0, 1]))
    monkeypatch.setattr(squad, "from_hub", lambda *_, **__: squad.Questions("hub", [question] * len(hub["texts"])))
    found = data.described("", task, str(tmp_path))
    assert (found["source"], found["train"], found["dev"], len(found["sha256"])) == ("Hub", 2, 2 * dev, 64)
    hub["texts"] = ["a", "e"] if task == "mnli" else ["a"]
    assert data.described("", task, str(tmp_path)) == found  # read once for all cells
    assert data.described("", task, str(tmp_path / "other"))["sha256"] != found["sha256"]


def test_a_missing_file_is_named_before_anything_runs(tmp_path):
    for experiment in GRIDS["paper"]:
        with pytest.raises(InputError, match=r"--data_dir .*: no file .*train"):
            data.write_subset(experiment, Places(tmp_path, str(tmp_path), "m"))
        data.write_subset(experiment, Places(tmp_path, "", "m"))  # from the Hub


def test_a_line_that_does_not_fit_leaves_the_others_whole(tmp_path):
    path = tmp_path / "x.jsonl"
    results.append(path, {"cell": "a"})
    code = f"""
import resource, signal
from pathlib import Path
from emmental.study import results
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (30, 30))
results.append(Path({str(path)!r}), {{"cell": "b" * 30}})
"""
    failed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "InputError" in failed.stderr and "could not be written" in failed.stderr
    results.append(path, {"cell": "c"})
    assert [line["cell"] for line in results.read(path)] == ["a", "c"]


# --- The floors


def floor(guess: str, task: str, folder: Path, output: Path, model: Path | str = "m") -> dict:
    flags = [guess, "--task_name", task, "--data_dir", folder, "--model", model, "--output_dir", output]
    succeed("emmental/study/floors.py", *flags)
    return json.loads((output / "result.json").read_text())


def test_majority_is_the_share_of_trains_most_frequent_label(tmp_path):
    header = "sentence\tlabel\n"
    (tmp_path / "train.tsv").write_text(header + "ba\t1\n" * 3 + "be\t0\n" * 2)
    (tmp_path / "dev.tsv").write_text(header + "ba\t1\n" * 1 + "be\t0\n" * 3)
    assert floor("majority", "sst-2", tmp_path, tmp_path / "o")["acc"] == 0.25


def test_regression_tells_words_apart(world, tmp_path):
    rows = "sentence\tlabel\n" + "ba ba\t1\nbe be\t0\nba\t1\nbe\t0\n" * 5
    for split in ("train", "dev"):
        (tmp_path / f"{split}.tsv").write_text(rows)
    assert floor("embeddings", "sst-2", tmp_path, tmp_path / "o", world.model)["acc"] == 1


def test_each_metric_has_its_best_cut(world, tmp_path):
    """Where words say nothing accuracy is best with the more frequent label, F1 with the other."""
    header = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
    for split in ("train", "dev"):
        rows = "".join(f"{i}\t0\t0\tba\tbe\t{int(i % 3 == 0)}\n" for i in range(30))
        (tmp_path / f"{split}.tsv").write_text(header + rows)
    found = floor("embeddings", "qqp", tmp_path, tmp_path / "o", world.model)
    assert (found["acc"], found["f1"]) == pytest.approx((2 / 3, 1 / 2))


def test_constant_answer_is_found(tmp_path):
    def file(split: str, contexts: list[str]) -> None:
        paragraphs = [
            {"context": text, "qas": [{"id": f"{split}{i}", "question": "?", "answers": [answer(text)]}]}
            for i, text in enumerate(contexts)
        ]
        (tmp_path / f"{split}-v1.1.json").write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))

    def answer(text: str) -> dict:
        words = text.split()
        return {"text": " ".join(words[1:3]), "answer_start": len(words[0]) + 1}

    file("train", ["ba be bi bo", "du da de do"])
    file("dev", ["fu fa fe fi fo"])
    found = floor("constant", "squad", tmp_path, tmp_path / "o")
    assert (found["first_word"], found["last_word"], found["exact"], found["f1"]) == (1, 2, 100, 100)


# --- The runner

TINY = """
import sys
from dataclasses import replace
from emmental.study import __main__ as study
from emmental.study.grids import GRIDS, Recipe, rows
sys.argv[0] = "study"
bad = "-1" if "--bad" in sys.argv else "1e-3"
sys.argv = [word for word in sys.argv if word != "--bad"]
chosen = (*rows(("CAP-m",), (10,), (1,), Recipe(20, "1e-3")), *rows(("movement",), (50,), (1,), Recipe(10, bad)))
environment = (("SAVE_STEPS", "1"), ("EXTRA_EXAMPLES", "16"))
study.GRIDS["demo"] = (replace(GRIDS["demo"][0], train_rows=64, rows=chosen, environment=environment),)
study.run(study.main)
"""


def start(official: Path, world, output: Path, *flags: str) -> subprocess.Popen:
    command = [sys.executable, "-c", TINY, "demo", "--output_dir", output, "--data_dir", official]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [*map(str, command), "--model", str(world.model), *flags],
        cwd=output.parent,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(condition, what: str, seconds: float = 180):
    deadline = time.time() + seconds
    while not (found := condition()):
        assert time.time() < deadline, f"no {what} in {seconds} s"
        time.sleep(0.05)
    return found


def statuses(output: Path) -> list[tuple[str, str]]:
    return [(line["cell"], line["status"]) for line in results.read(output / "demo.jsonl")]


def training_in(run: str) -> list[int]:
    """The processes of masked_run_glue.py that write to the folder `run`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended since
            words = path.read_bytes()
            if run.encode() in words and b"masked_run_glue" in words:
                found.append(int(path.parent.name))
    return found


@pytest.mark.slow
def test_killed_and_started_again_every_cell_ends_once(official, world, tmp_path):
    """Runner and command are killed in the middle of a cell; then two runners at once do the rest."""
    output = tmp_path / "a study"
    cell = output / "cells" / "qqp-64-cap-m-10-e20-lr1e-3-s1"
    started = output / "cells" / "qqp-64-teacher" / "run" / "arguments.json"  # of a run killed at its start
    started.parent.mkdir(parents=True)
    started.write_text("{}")
    first = start(official, world, output)
    wait_for(lambda: [*cell.glob("run/checkpoint-*/state.json")], "checkpoint")
    (orphan,) = training_in(f"{cell.relative_to(output.parent)}/run")
    os.kill(orphan, signal.SIGSTOP)  # else it may end while the cells are listed
    first.kill()
    first.communicate()
    assert acquire(cell / "lock") is None  # the orphan still holds it
    listed = start(official, world, output, "--list").communicate()[0].splitlines()
    assert len(listed) == 2 and all(f"'OUTPUT={output.name}/cells/qqp-64-" in line for line in listed)
    os.kill(orphan, signal.SIGKILL)
    wait_for(lambda: (lock := acquire(cell / "lock")) and not lock.close(), "end of the orphan")

    runners = [start(official, world, output) for _ in range(2)]
    ended = [(runner.communicate(), runner.returncode) for runner in runners]
    assert [code for _, code in ended] == [0, 0], ended
    lines = results.read(output / "demo.jsonl")
    names = ["teacher", "floor-majority", "floor-embeddings", "cap-m-10-e20-lr1e-3-s1", "movement-50-e10-lr1e-3-s1"]
    assert sorted(statuses(output)) == sorted((f"qqp-64-{name}", "finished") for name in names)
    killed = next(line for line in lines if line["cell"] == cell.name)
    assert killed["attempts"] == 2
    assert killed["steps"] == 40
    assert abs(killed["remaining_weights"] - 10) < 0.2 and killed["remaining_weights_released"] > 10
    assert killed["teacher"] == next(line for line in lines if line["kind"] == "teacher")["metrics"]
    assert killed["data"]["train"] == 64 and killed["data"]["dev"] == 20
    assert not [*cell.glob("run/checkpoint-*")]

    assert start(official, world, output, "--list").communicate()[0].strip() == ""
    reported = start(official, world, output, "--report")
    _, wrong = reported.communicate()
    assert reported.returncode == 0, wrong
    assert "| CAP-m | 20 | 1e-3 |" in (output / "demo.md").read_text()
    assert (output / "demo.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_failed_cell_stops_no_other_and_is_still_missing(official, world, tmp_path):
    output = tmp_path / "study"
    runner = start(official, world, output, "--bad", "--jobs", "2")
    said, wrong = runner.communicate()
    assert runner.returncode == 2 and "1 cells failed" in wrong
    failed = "qqp-64-movement-50-e10-lr-1-s1"
    assert f"FAILED: {failed}: masked_run_glue.py: error: --learning_rate -1.0: at least 0" in said
    assert dict(statuses(output))[failed] == "failed"
    assert sum(status == "finished" for _, status in statuses(output)) == 4
    (line,) = [line for line in results.read(output / "demo.jsonl") if line["status"] == "failed"]
    assert "--learning_rate -1.0" in line["error"] and "LR=-1" in line["command"]
    listed = start(official, world, output, "--bad", "--list").communicate()[0]
    assert len(listed.splitlines()) == 1 and "LR=-1" in listed


@pytest.mark.slow
def test_the_demo_grid_runs_as_it_is(tmp_path):
    """With the model and the data that it makes itself."""
    command = [sys.executable, "-m", "emmental.study", "demo", "--output_dir", str(tmp_path)]
    for flags in (["--jobs", "2"], ["--report"]):
        done = subprocess.run([*command, *flags], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    lines = results.read(tmp_path / "demo.jsonl")
    assert [line["status"] for line in lines] == ["finished"] * 7
    (teacher,) = [line for line in lines if line["kind"] == "teacher"]
    assert teacher["metrics"]["acc"] > 0.8
    assert "| CAP-m | 6 |" in (tmp_path / "demo.md").read_text()


def test_the_time_left_goes_with_a_cells_epochs_and_task():
    def cell(task, epochs):
        return Cell(f"{task}-{epochs}", (), {}, "", {"task": task, "epochs": epochs})

    def line(task, epochs, seconds, attempts=1):
        return {"kind": "pruned", "task": task, "epochs": epochs, "seconds": seconds, "attempts": attempts}

    finished = {"a": line("qqp", 10, 900), "b": line("qqp", 20, 2100), "c": line("mnli", 10, 3000)}
    finished["resumed"] = line("qqp", 10, 1, attempts=2)
    left = [cell("qqp", 40), cell("mnli", 5), Cell("floor", (), {}, "", {"task": "qqp"})]
    assert results.time_left(left, finished, {}, jobs=1) == 40 * 100 + 5 * 300
    assert results.time_left(left, finished, {"qqp-40": 1000, "mnli-5": 9999}, jobs=2) == 1500
    assert results.time_left([cell("squad", 4)], finished, {}, jobs=8) == 4 * 150
    assert results.time_left([cell("qqp", 5)], {"resumed": finished["resumed"]}, {}, jobs=1) == 0.5
    assert results.time_left(left, {}, {}, jobs=1) == results.time_left([], finished, {}, jobs=1) == 0


def test_a_folder_given_otherwise_is_the_same_folder(monkeypatch, tmp_path):
    """A command is told by its words, and a study that is gone on with may be named from the root."""
    (tmp_path / "here").mkdir()
    (tmp_path / "study").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for given in ("../study", str(tmp_path / "study"), "../here/../study/"):
        assert spelled_alike(given) == "../study"
    assert spelled_alike("bert-base-uncased") == "bert-base-uncased"


# --- The report

TEACHER = {"acc": 0.8, "f1": 0.7}


def line(cell: str, kind: str = "pruned", status: str = "finished", method: str = "CAP-m", **more) -> dict:
    found = {"cell": cell, "status": status, "kind": kind, "method": method, "task": "qqp", "seed": 1}
    found |= {"keep": 10, "epochs": 10, "learning_rate": 2e-4, "data": {"train": 4000, "dev": 7600, "sha256": "x"}}
    if status == "finished":
        found |= {"remaining_weights": 10.0, "remaining_weights_released": 10.4, "steps": 1250, "teacher": TEACHER}
    return found | more


LINES = [
    line("t", "teacher", method="teacher", metrics=TEACHER, teacher={}),
    line("m", "floor", method="majority", metrics={"acc": 0.627, "f1": 0.0}),
    line("e", "floor", method="embeddings", metrics={"acc": 0.76, "f1": 0.66}),
    line("a1", status="failed", error="out of memory"),
    line("a1", metrics={"acc": 0.77, "f1": 0.68}),
    line("a2", seed=2, metrics={"acc": 0.78, "f1": 0.69}),
    line("a3", seed=3, metrics={"acc": 0.79, "f1": 0.70}),
    line("b1", method="movement", metrics={"acc": 0.63, "f1": 0.003}),
    line("b2", method="movement", seed=2, status="failed", error="killed"),
    line("d1", method="magnitude", metrics={"acc": 0.63, "f1": 0.7}),
    line("c1", keep=50, remaining_weights=50.0, remaining_weights_released=50.2, metrics={"acc": 0.75, "f1": 0.6}),
]


@pytest.fixture
def lines_file(tmp_path) -> Path:
    path = tmp_path / "grid.jsonl"
    for found in LINES:
        results.append(path, found)
    return path


def reported(path: Path) -> list[list[str]]:
    """The cells of the report's table, row by row."""
    report.write(path)
    lines = path.with_suffix(".md").read_text().splitlines()
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def test_report_gives_means_spreads_and_floors(lines_file):
    rows = reported(lines_file)
    by_method = {(row[0], row[3]): row for row in rows if row}
    assert by_method["CAP-m", "10.0 %"][1:] == [
        *("10", "2e-4", "10.0 %", "10.4 %", "78.0 ± 1.0", "69.0 ± 1.0", "3", "97.5 ± 1.2 %", "1250", "")
    ]
    movement = by_method["movement", "10.0 %"]
    assert movement[5:8] == ["63.0", "0.3", "1"]
    assert movement[-1] == "at the majority class; below regression on frozen word embeddings; 1 failed"
    guesses = "at the majority class in accuracy alone; below regression on frozen word embeddings in accuracy alone"
    assert by_method["magnitude", "10.0 %"][-1] == guesses
    assert by_method["CAP-m", "50.0 %"][-1] == "below regression on frozen word embeddings"
    assert by_method["teacher", "100 %"][5:7] == ["80.0", "70.0"]
    assert by_method["floor: the majority class", ""][5:7] == ["62.7", "0.0"]
    titles = next(row for row in rows if row and row[0] == "method")
    assert all(len(row) == len(titles) for row in rows if row and len(row) > 1)


def test_report_says_where_a_teacher_was_another(lines_file):
    """One trained anew, say; the share that is kept is of the line's own."""
    own = {"acc": 0.7, "f1": 0.65}
    results.append(lines_file, line("o", method="CAP-soft", metrics={"acc": 0.63, "f1": 0.6}, teacher=own))
    remarks = {(row[0], row[3]): (row[8], row[-1]) for row in reported(lines_file) if len(row) > 8}
    kept, said = remarks.pop(("CAP-soft", "10.0 %"))
    assert kept == "90.0 %" and said.endswith("; another teacher, 70.0 / 65.0")
    assert not any("another teacher" in said for _, said in remarks.values())


@pytest.mark.parametrize("accuracy, alone", [(0.7, ""), (0.63, " in accuracy alone")])
def test_report_counts_the_seeds_at_a_floor(lines_file, accuracy, alone):
    """Where others are not: in accuracy or, as guesses of another class, in F1."""
    results.append(lines_file, line("b2", method="movement", seed=2, metrics={"acc": accuracy, "f1": 0.5}))
    results.append(lines_file, line("b1", method="movement", metrics={"acc": 0.63, "f1": 0.003}))
    (said,) = [row[-1] for row in reported(lines_file) if row and row[0] == "movement"]
    counted = "1 of 2 seeds at the majority class; below regression on frozen word embeddings"
    assert said == (f"at the majority class{alone}; {counted}" if alone else counted)


@pytest.mark.parametrize("task, value", [("squad", 47.5), ("qqp", 0.475)])
def test_squads_metrics_are_in_per_cent_already(task, value):
    assert table.percent({"task": task, "metrics": {"f1": value}}, "f1") == 47.5


def test_groups_order_recipes_and_keep_the_methods_order():
    runs = [("CAP-m", 20, 2e-4), ("movement", 10, 1e-4), ("magnitude", 10, 2e-4), ("CAP-m", 10, 2e-4)]
    found = table.groups([line(m, method=m, epochs=epochs, learning_rate=r) for m, epochs, r in runs])
    assert [(group.method, group.epochs, group.learning_rate) for group in found] == [
        *(("CAP-m", 10, 2e-4), ("magnitude", 10, 2e-4), ("movement", 10, 1e-4), ("CAP-m", 20, 2e-4))
    ]


@pytest.mark.parametrize("text", ["2e-4", "1.5e-4", "3e-5", "1e0"])
def test_report_writes_learning_rates_as_recipes_do(text):
    assert table.rate(float(text)) == text


def test_report_draws_every_seed(lines_file):
    from matplotlib import pyplot

    figure, axis = pyplot.subplots()
    picture.panel(axis, [found for found in results.latest(results.read(lines_file)).values() if "metrics" in found])
    labels = axis.get_legend_handles_labels()[1]
    assert labels == [
        "CAP-m",
        "movement",
        "magnitude",
        "teacher",
        *(table.FLOORS[name] for name in ("majority", "embeddings")),
    ]
    dots = sorted(round(float(y), 6) for points in axis.collections for _, y in points.get_offsets())
    assert dots == [63.0, 63.0, 75.0, 77.0, 78.0, 79.0]
    pyplot.close(figure)
    report.write(lines_file)
    assert lines_file.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("methods", [["CAP-m", "movement", "magnitude"], ["CAP-m"]], ids=len)
def test_report_names_the_methods_where_nothing_else_differs(methods):
    from matplotlib import pyplot

    figure, axis = pyplot.subplots()
    others = [found for found in LINES if "metrics" in found and found["kind"] != "pruned"]
    pruned = [found for found in LINES if "metrics" in found and found["kind"] == "pruned" and found["keep"] == 10]
    picture.panel(axis, [*(found for found in pruned if found["method"] in methods), *others])
    assert [text.get_text() for text in axis.get_xticklabels()] == methods
    assert axis.get_legend().get_texts()[0].get_text() == "teacher"
    assert sorted({float(x) for dots in axis.collections for x, _ in dots.get_offsets()}) == [*range(len(methods))]
    pyplot.close(figure)


def test_report_names_learning_rates_where_methods_differ_in_them():
    from matplotlib import pyplot

    figure, axis = pyplot.subplots()
    runs = [("CAP-m", 2e-4), ("movement", 1e-4)]
    picture.panel(axis, [line("run", method=m, learning_rate=r, metrics={"acc": 0.7}) for m, r in runs])
    assert [text.get_text() for text in axis.get_xticklabels()] == ["CAP-m\nat 2e-4", "movement\nat 1e-4"]
    pyplot.close(figure)


def test_report_gives_a_method_one_colour_and_a_learning_rate_one_dot():
    from matplotlib import pyplot

    figure, axis = pyplot.subplots()
    runs = [(method, rate, 10) for rate in (2e-4, 1e-4) for method in ("CAP-m", "movement")] + [("CAP-m", 2e-4, 20)]
    picture.panel(axis, [line("run", method=m, learning_rate=r, epochs=e, metrics={"acc": 0.7}) for m, r, e in runs])
    named = {drawn.get_label(): drawn for drawn in axis.get_lines() if " at " in drawn.get_label()}
    looks = {name: (drawn.get_color(), drawn.get_marker()) for name, drawn in named.items()}
    assert list(looks) == ["CAP-m at 2e-4", "movement at 2e-4", "CAP-m at 1e-4", "movement at 1e-4"]
    (blue, dot), (orange, _), (_, square), _ = looks.values()
    assert blue != orange and dot != square
    assert list(looks.values()) == [(blue, dot), (orange, dot), (blue, square), (orange, square)]
    drawn = [tuple(points.get_facecolor()[0]) for points in axis.collections]
    assert drawn[0] == drawn[2] != drawn[1] == drawn[3]
    pyplot.close(figure)


def test_report_of_nothing_is_refused(tmp_path):
    with pytest.raises(InputError, match="no result line"):
        report.write(tmp_path / "grid.jsonl")
    (tmp_path / "grid.jsonl").write_text('{"cell": 1}\n{')
    with pytest.raises(InputError, match=r"grid.jsonl, line 2: not JSON"):
        results.read(tmp_path / "grid.jsonl")
