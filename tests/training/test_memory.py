"""The memory plan: what it estimates against what is there; banks in the same places on a first and a resumed run."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from emmental import (
    MaskedBertConfig,
    MaskedBertForQuestionAnswering,
    MaskedBertForSequenceClassification,
    set_threshold,
)
from emmental.contrast import bank as bank_module
from emmental.contrast.bank import Bank, DeviceRoom
from emmental.data.batches import Plan
from emmental.data.examples import Examples
from emmental.pruning.masked_linear import masked_linears
from emmental.training import memory
from emmental.training.memory import activation_bytes, largest_batch, plan_memory

GIB = 1 << 30
QQP = 363_846
BANKS = ("pretrained", "finetuned", "snapshots")


def examples_of(lengths: np.ndarray) -> Examples:
    offsets = np.append(0, lengths.cumsum())
    return Examples(np.empty(0), np.empty(0), offsets, labels=())


def test_largest_batch_is_that_of_a_loop_over_the_plan():
    lengths = np.random.default_rng(0).integers(3, 60, 101)
    plan = Plan(examples=101, batch_size=8, accumulation=2, epochs=3, seed=5)
    batches = [batch for step in range(plan.total_steps) for batch in plan.micro_batches(step)]
    real, padded = largest_batch(examples_of(lengths), plan, 3)
    assert real == max(lengths[batch].sum() for batch in batches)
    assert padded == max(8 * lengths[batch].max() for batch in batches)


@pytest.mark.parametrize("kind", [MaskedBertForSequenceClassification, MaskedBertForQuestionAnswering])
@pytest.mark.parametrize("lengths", [[40, 30, 20, 64], [64, 64, 64]], ids=["padded", "full"])
def test_activations_are_about_what_autograd_keeps(monkeypatch, kind, lengths):
    monkeypatch.setattr("emmental.model.packing.GROUPS", 1)  # as on a GPU
    monkeypatch.setattr(memory, "TOKENS", {"cuda": 0})
    sizes = {"hidden_size": 96, "intermediate_size": 384, "num_attention_heads": 2, "vocab_size": 50}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # a CPU keeps it in another form
    config = MaskedBertConfig(**sizes, **dropout, num_hidden_layers=6, alignrep="mean-pooling")
    model = kind(config).train()
    set_threshold(model, 0.5)
    weights = {x.untyped_storage().data_ptr() for x in model.parameters()}
    weights |= {linear.mask.untyped_storage().data_ptr() for linear in masked_linears(model).values()}
    kept = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        if (place := x.untyped_storage().data_ptr()) not in weights:
            kept[place] = x  # so that its memory is not used again
        return x

    real = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        model(real.long(), real.long())
    products = sum(linear.weight.numel() * 4 for linear in masked_linears(model).values())
    measured = sum(x.untyped_storage().nbytes() for x in kept.values()) - products
    estimated = activation_bytes(model, sum(lengths), max(lengths) * len(lengths))
    assert 0.95 * measured < estimated < 1.5 * measured


@pytest.fixture(scope="module")
def base() -> torch.nn.Module:
    with torch.device("meta"):
        return MaskedBertForSequenceClassification(MaskedBertConfig())


@pytest.fixture(scope="module")
def qqp() -> Examples:
    """A set of QQP's size, and lengths like its own: 30 tokens in the mean, 128 at most."""
    lengths = np.random.default_rng(0).lognormal(math.log(27), 0.4, QQP).astype(np.int64).clip(5, 128)
    return examples_of(lengths)


def planned(monkeypatch, base, qqp, card: float, dtype: torch.dtype, batch_size: int = 32):
    free = int((card - 1.2) * GIB)  # what the driver takes, and the student
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, int(card * GIB)))
    plan = Plan(QQP, batch_size, accumulation=1, epochs=10, seed=0)
    return plan_memory(base, qqp, plan, BANKS, dtype, torch.device("cuda"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("card", [11, 16, 24, 80])
def test_banks_leave_room_for_training_and_lie_alike_after_resuming(monkeypatch, tmp_path, base, qqp, card, dtype):
    plan = planned(monkeypatch, base, qqp, card, dtype)
    column = QQP * 768 * (2 if dtype == torch.float16 else 4)
    trained, masked = sum(p.numel() for p in base.parameters() if p.requires_grad) * 4, 12 * 12 * 768**2 * 4
    assert plan.columns == 11 and plan.column_bytes == column
    assert plan.training > 3 * trained + 3 * masked
    assert plan.on_device * column + plan.training <= plan.free
    assert plan.on_device == 11 or (plan.on_device + 1) * column + plan.training > plan.free
    assert plan.on_device == 11 or card < 24

    rows = torch.zeros(1, 768, dtype=dtype).expand(QQP, 768)
    names = {"finetuned": 1, "pretrained": 1, "snapshots": 9}  # in the order in which they are filled

    def banks() -> dict[str, Bank]:
        room = DeviceRoom(plan.on_device)
        return {name: Bank(tmp_path, torch.device("meta"), dtype, room=room) for name in names}

    first, resumed = banks(), banks()
    monkeypatch.setattr(bank_module, "load_file", lambda path: {"rows": rows})
    for name, count in names.items():
        for number in range(count):
            first[name].add(f"{name}-{number}", rows, write=False)
        resumed[name].restore({f"{name}-{number}": [0, 0] for number in range(count)})
    places = [[x.device.type for bank in run.values() for x in bank.columns] for run in (first, resumed)]
    assert places[0] == places[1] == ["meta"] * plan.on_device + ["cpu"] * (11 - plan.on_device)


@pytest.mark.parametrize("processes, copies, apart", [(1, 3, 1.0), (4, 4, 1.5)])
def test_processes_exchange_gradients_in_memory_of_their_own(monkeypatch, base, qqp, processes, copies, apart):
    monkeypatch.setattr("emmental.utils.distributed.world_size", lambda: processes)
    plan = Plan(QQP, 32, 1, 10, 0)
    parts = plan_memory(base, qqp, plan, (), torch.float32, torch.device("cpu")).parts
    trained = sum(4 * parameter.numel() for parameter in base.parameters() if parameter.requires_grad)
    assert parts["gradients and moments"] == copies * trained and parts["other"] == apart * GIB


def test_lines_say_where_banks_lie_and_when_it_may_not_fit(monkeypatch, base, qqp):
    plan = planned(monkeypatch, base, qqp, 11, torch.float32)
    first, second = plan.lines()
    assert "9.8 GiB are free on cuda" in first
    assert (
        second
        == f"memory: bank columns of 1.04 GiB each: {plan.on_device} on cuda, {11 - plan.on_device} in host memory"
    )
    plan = planned(monkeypatch, base, qqp, 6, torch.float32, batch_size=256)
    assert plan.on_device == 0
    assert plan.lines()[-1] == "memory: this may not fit; a smaller --per_gpu_train_batch_size takes less"
    on_cpu = plan_memory(base, qqp, Plan(QQP, 32, 1, 10, 0), (), torch.float32, torch.device("cpu"))
    assert on_cpu.on_device == 0 and len(on_cpu.lines()) == 1 and "free" not in on_cpu.lines()[0]
    on_cpu = plan_memory(base, qqp, Plan(QQP, 32, 1, 10, 0), ("snapshots",), torch.float32, torch.device("cpu"))
    assert on_cpu.lines()[1] == "memory: bank columns of 1.04 GiB each: 9 in memory"


@pytest.mark.parametrize("every, limit, count", [(30_000, 0, 3), (30_000, 1, 2), (0, 0, 0)])
def test_a_disk_too_small_for_banks_and_checkpoints_is_named(monkeypatch, tmp_path, base, every, limit, count):
    """The published QQP recipe; a checkpoint has every parameter, and two moments of those that are trained."""
    banks, model = 11 * QQP * 768 * 4, sum(4 * x.numel() for x in base.parameters())
    trained = sum(4 * x.numel() for x in base.parameters() if x.requires_grad)
    needed = banks + model + count * (model + 2 * trained)
    for lacking in (0, 1):
        usage = SimpleNamespace(free=needed - lacking)
        monkeypatch.setattr(memory.shutil, "disk_usage", lambda place, usage=usage: {tmp_path: usage}[place])
        lines = memory.disk_lines(tmp_path / "a" / "b", base, 113_710, banks, every, limit)
        assert len(lines) == lacking
    assert f"{needed / GIB:.2f} GiB (banks 11.45, {count} checkpoints of 2.0" in lines[0]
