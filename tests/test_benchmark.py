"""The benchmark runs, and its two ways compute the same; how long they take is not tested."""

import json
from functools import partial

import pytest
import torch

from tests import benchmark


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny kernels on several threads would wait for one another; what the benchmark sets is set back."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("highest")


def test_benchmark(tmp_path, monkeypatch):
    for name, value in {"COUNTS": (100, 200, 400), "MEASURED": 200, "QQP": 400}.items():
        monkeypatch.setattr(benchmark, name, value)
    monkeypatch.setattr(benchmark, "machine_rates", lambda device, dtype: (1e11, 1e10))
    monkeypatch.setattr(benchmark, "bank_memory", partial(benchmark.bank_memory, count=500))
    shape = (
        "--size tiny --device cpu --examples 160 --batch 4 --length 48 --extra 24 --snapshots 3 --steps 1 --encode 64"
    )
    benchmark.main([*shape.split(), "--growth", "--floor", "--json", str(tmp_path / "speed.json")])

    results = json.loads((tmp_path / "speed.json").read_text())
    assert max(results["differences"].values()) < 1e-5
    assert results["step"]["ratio"] > 0 and results["encode"]["ratio"] > 0
    assert results["step"]["released"]["teacher forward"] > 0 and "teacher forward" not in results["step"]["project"]
    assert [cell["extrapolated"] for cell in results["growth"]] == [False] * 4 + [True] * 2
