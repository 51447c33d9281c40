"""The benchmark runs, and its two ways compute the same; how long they take is not tested."""

import json
from functools import partial

import pytest
import torch

from tests.benchmarks import agreement, engines, growth, sparse, target, training


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny kernels on several threads would wait for one another; what the benchmark sets is set back."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("highest")


def test_both_ways_compute_the_same_and_all_figures_are_written(tmp_path, monkeypatch):
    for name, value in {"COUNTS": (100, 200, 400), "MEASURED": 200, "QQP": 400}.items():
        monkeypatch.setattr(growth, name, value)
    monkeypatch.setattr(growth, "machine_rates", lambda device, dtype: (1e11, 1e10))
    monkeypatch.setattr(growth, "bank_memory", partial(growth.bank_memory, count=500))
    shape = (
        "--size tiny --device cpu --examples 160 --batch 4 --length 48 --extra 24 --snapshots 3 --steps 1 --encode 64"
    )
    training.main([*shape.split(), "--growth", "--floor", "--effects", "--json", str(tmp_path / "speed.json")])

    results = json.loads((tmp_path / "speed.json").read_text())
    assert max(results["differences"].values()) < 1e-5
    assert len(results["effects"]) == 4
    assert all(0 < found["grad_norm"] < 0.05 for found in results["effects"].values())
    for part in ("step", "encode"):
        released, project = (results[part][way]["total"] for way in growth.WAYS)
        assert results[part]["ratio"] == pytest.approx(released / project)
    assert results["step"]["released"]["teacher forward"] > 0
    assert [cell["extrapolated"] for cell in results["growth"]] == [False] * 4 + [True] * 2


def test_more_rows_than_examples_are_refused(capsys):
    with pytest.raises(SystemExit):
        training.parse(["--examples", "200"])
    assert "--extra 4096: more rows than --examples 200" in capsys.readouterr().err


def test_tf32_keeps_ten_bits_after_the_point():
    step = 2.0**-10
    numbers = torch.tensor([1 + 0.4 * step, 1 + 0.6 * step, 1 + 0.5 * step, 1 + 1.5 * step, -3 - 1.2 * step])
    rounded = [1, 1 + step, 1, 1 + 2 * step, -3 - 2 * step]  # ties to even; steps of 2 beyond 2
    assert agreement.RoundedProducts.rounded(numbers).tolist() == rounded
    ones = torch.ones(5, 1)
    with agreement.RoundedProducts():
        assert (numbers[None] @ ones).item() == sum(rounded)
        assert (numbers + 0).tolist() == numbers.tolist()


SPARSE = "--size tiny --density 0.1 --threads 1 --batch 1 3 --length 8 40 --budget 0"


def test_sparse_benchmark_without_engines(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(engines, "missing", lambda: ["onnx", "openvino"])
    sparse.main([*SPARSE.split(), "--json", str(tmp_path / "speed.json")])
    assert "skipped, for onnx, openvino is not installed: pip install onnx==" in capsys.readouterr().out
    cells = json.loads((tmp_path / "speed.json").read_text())["cells"]
    assert [(cell["batch"], cell["length"]) for cell in cells] == [(1, 8), (1, 40), (3, 8), (3, 40)]
    assert all(cell["median"].keys() == {"sparse", "dense"} and cell["rounds"] >= 3 for cell in cells)


@pytest.mark.skipif(bool(engines.missing()), reason=engines.INSTALL)
def test_engines_compute_the_same_logits(tmp_path):
    sparse.main([*SPARSE.split(), "--json", str(tmp_path / "speed.json")])
    for cell in json.loads((tmp_path / "speed.json").read_text())["cells"]:
        difference = cell["difference"]
        assert max(difference[name] for name in ("sparse", "onnx", "openvino")) < 1e-6
        assert 0 < difference["onnx int8"] < 1e-2


@pytest.mark.slow
def test_target_benchmark_reaches_its_targets(tmp_path, monkeypatch, world):
    for name, value in {"BATCH": "8", "EPOCH": "2", "WARMUP": "1", "EXTRA_EXAMPLES": "8"}.items():
        monkeypatch.setenv(name, value)
    places = ["--data_dir", str(world.data("qqp")), "--model", str(world.model), "--output", str(tmp_path)]
    flags = "--task qqp --rows 20 --targets 0.5 --at 0.9 --lambdas 5 --jobs 1 --max_seq_length 24"
    target.main([*places, *flags.split(), "--json", str(tmp_path / "target.json")])

    half, tenth = json.loads((tmp_path / "target.json").read_text())
    assert half["remaining_weights"] == pytest.approx(50, abs=0.1) == half["topk"]["remaining_weights"]
    assert tenth["remaining_weights"] == pytest.approx(10, abs=0.1) == tenth["topk"]["remaining_weights"]
    assert (tenth["start"], tenth["asked"]) == ("5", pytest.approx(10))
    with pytest.raises(SystemExit, match="another command; give another --output"):
        target.main([*places, *flags.split(), "--learning_rate", "1e-4"])
    assert len((tmp_path / "data-20" / "train.tsv").read_text().splitlines()) == 21
