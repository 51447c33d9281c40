"""The benchmark runs, and its two ways compute the same; how long they take is not tested."""

import json

import torch

from tests import benchmark


def test_benchmark(tmp_path, monkeypatch):
    for name, value in {"COUNTS": (100, 200, 400), "MEASURED": 200, "QQP": 400}.items():
        monkeypatch.setattr(benchmark, name, value)
    monkeypatch.setattr(benchmark, "machine_rates", lambda device, dtype: (1e11, 1e10))
    shape = (
        "--size tiny --device cpu --examples 160 --batch 4 --length 48 --extra 24 --snapshots 3 --steps 1 --encode 16"
    )
    benchmark.main([*shape.split(), "--growth", "--floor", "--json", str(tmp_path / "speed.json")])
    torch.set_float32_matmul_precision("highest")

    results = json.loads((tmp_path / "speed.json").read_text())
    assert max(results["differences"].values()) < 1e-5
    assert results["step"]["ratio"] > 0 and results["encode"]["ratio"] > 0
    assert results["step"]["released"]["teacher forward"] > 0 and "teacher forward" not in results["step"]["project"]
    assert [cell["extrapolated"] for cell in results["growth"]] == [False] * 4 + [True] * 2
