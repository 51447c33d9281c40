"""Packed and padded computation are the same, for any lengths, every method, forward and backward."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from emmental import (
    MaskedBertConfig,
    MaskedBertForQuestionAnswering,
    MaskedBertForSequenceClassification,
    set_packing,
    set_threshold,
)
from emmental.model.dropout import Dropout, dropout
from emmental.model.packing import Packing, attention
from emmental.pruning.masked_linear import masked_linears
from emmental.pruning.methods import METHODS

LENGTH = 12
THRESHOLDS = {"topK": 0.4, "threshold": 0.2, "sigmoied_threshold": 0.6, "magnitude": 0.4, "l0": 0.0}
BOTH = [MaskedBertForSequenceClassification, MaskedBertForQuestionAnswering]


def masked(kind, method: str | None, alignrep: str = "cls", **dropout) -> torch.nn.Module:
    torch.manual_seed(0)
    config = MaskedBertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=LENGTH, num_labels=2, initializer_range=0.3, pruning_method=method, alignrep=alignrep,
        **{"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0} | dropout,
    )  # fmt: skip
    model = kind(config).eval()  # l0's mask is drawn anew at every forward in training mode
    for linear in masked_linears(model).values():
        if linear.method.scored:
            linear.mask_scores.data.normal_()
    if method is not None:
        set_threshold(model, THRESHOLDS[method])
    return model


MODELS = {
    (kind, method, alignrep): masked(kind, method, alignrep)
    for kind in BOTH
    for method in (*METHODS, None)
    for alignrep in ("cls", "mean-pooling")
}


def texts(lengths: list[int], seed: int = 0, width: int = LENGTH) -> dict[str, torch.Tensor]:
    """Padding is filled with other tokens, which must not matter."""
    generator = torch.Generator().manual_seed(seed)
    shape = len(lengths), width
    return {
        "input_ids": torch.randint(0, 50, shape, generator=generator),
        "attention_mask": (torch.arange(width) < torch.tensor(lengths)[:, None]).long(),
        "token_type_ids": torch.randint(0, 2, shape, generator=generator),
    }


def outcome(model: torch.nn.Module, batch: dict, packing: bool) -> tuple[dict, dict]:
    """What the real positions give, and the gradients of a loss over them."""
    set_packing(model, packing)
    model.zero_grad()
    output = model(**batch)
    real = batch["attention_mask"].bool()
    values = {"representation": output.representation, "encoding": model.encode(**batch)}
    if "logits" in output:
        values["logits"] = output.logits
    else:
        values["start"], values["end"] = output.start_logits[real], output.end_logits[real]
    generator = torch.Generator().manual_seed(1)
    sum((value * torch.randn(value.shape, generator=generator)).sum() for value in values.values()).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return values, {name: value for name, value in gradients.items() if not name.endswith("key.bias")}


def assert_same(model: torch.nn.Module, batch: dict) -> None:
    (packed, packed_gradients), (padded, padded_gradients) = (outcome(model, batch, on) for on in (True, False))
    assert packed.keys() == padded.keys() and packed_gradients.keys() == padded_gradients.keys()
    for name, value in padded.items():
        torch.testing.assert_close(packed[name], value, atol=1e-5, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    for name, value in padded_gradients.items():
        atol = 1e-5 * max(1.0, float(value.abs().max()))
        torch.testing.assert_close(packed_gradients[name], value, atol=atol, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("lengths", [[7, 4, 1], [6, 6]], ids=str)
@pytest.mark.parametrize("window", [0, 2, 5, 6])
def test_a_window_holds_the_real_neighbours_and_the_token_itself(lengths, window):
    """By a loop over texts, queries and keys; the mask is made once for all layers of a batch."""
    width = max(lengths)
    mask = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
    for group in Packing(mask, torch.device("cpu")).groups:
        texts, places = group.shape
        near = torch.ones(1) if (made := group.near(window)) is None else made
        near = near.bool().expand(texts, 1, places, places)
        real = torch.ones(1) if group.keys is None else group.keys
        real = real.bool().expand(texts, 1, 1, places)[:, 0, 0]
        for text in range(texts):
            for query in range(int(real[text].sum())):
                expected = [bool(real[text, key]) and abs(query - key) <= window for key in range(places)]
                assert near[text, 0, query].tolist() == expected
        assert near.any(-1).all()  # padding attends to something, else its softmax would be nan
        assert group.near(window) is made


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(sorted(MODELS, key=str)),
    st.lists(st.one_of(st.integers(1, LENGTH), st.sampled_from([1, LENGTH])), min_size=1, max_size=5),
    st.integers(0, 2**31),
)
def test_packed_equals_padded(which, lengths, seed):
    assert_same(MODELS[which], texts(lengths, seed))


@pytest.mark.parametrize("which", MODELS, ids=lambda which: f"{which[0].__name__[13:]}-{which[1]}-{which[2]}")
@pytest.mark.parametrize("lengths", [[5, LENGTH, 1], [LENGTH, LENGTH], [1]], ids=str)
def test_packed_equals_padded_for_every_method(which, lengths):
    assert_same(MODELS[which], texts(lengths))


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("alignrep", ["cls", "mean-pooling"])
@pytest.mark.parametrize("kind", BOTH)
def test_a_row_of_padding_stays_finite_and_alone(kind, alignrep, packing):
    model = MODELS[kind, "topK", alignrep]
    values, gradients = outcome(model, texts([7, 0, 3]), packing)
    for value in (*values.values(), *gradients.values()):
        assert value.isfinite().all()
    torch.testing.assert_close(values["encoding"].norm(dim=-1), torch.ones(3))
    without = {name: value[[0, 2]] for name, value in texts([7, 0, 3]).items()}
    set_packing(model, packing)
    close = {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(model.encode(**without), values["encoding"][[0, 2]], **close)
    assert_same(model, texts([0, 0]))


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("kind", BOTH)
def test_padding_changes_nothing(kind, packing):
    """Neither its tokens nor its amount: the longest text decides how far a batch is padded."""
    model = MODELS[kind, "topK", "mean-pooling"]
    lengths = [4, 6, 1]
    wide, other = texts(lengths), texts(lengths, seed=5)
    real = wide["attention_mask"].bool()
    for name in ("input_ids", "token_type_ids"):
        other[name] = torch.where(real, wide[name], other[name])
    narrow = {name: value[:, :6] for name, value in wide.items()}
    expected = outcome(model, wide, packing)
    for batch in (other, narrow):
        for ours, theirs in zip(outcome(model, batch, packing), expected, strict=True):
            assert ours.keys() == theirs.keys()
            for name in theirs:
                torch.testing.assert_close(ours[name], theirs[name], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("which", MODELS, ids=lambda which: f"{which[0].__name__[13:]}-{which[1]}-{which[2]}")
def test_logits_without_a_representation_are_the_same(which, packing):
    model, batch = MODELS[which].eval(), texts([5, LENGTH, 1])
    set_packing(model, packing)
    with torch.no_grad():
        expected, found = model(**batch), model(**batch, with_representation=False)
    assert found.representation is None and expected.representation is not None
    for ours, theirs in zip(found.classifications, expected.classifications, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)


def test_one_group_as_on_a_gpu_equals_padded(monkeypatch):
    monkeypatch.setattr("emmental.model.packing.GROUPS", 1)
    for which in MODELS:
        assert_same(MODELS[which], texts([5, LENGTH, 1]))


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_attention_masks_of_any_type_give_the_same(dtype):
    model, batch = MODELS[BOTH[0], "topK", "cls"], texts([5, LENGTH, 1])
    for packing in (True, False):
        set_packing(model, packing)
        other = batch | {"attention_mask": batch["attention_mask"].to(dtype)}
        assert torch.equal(model(**other).logits, model(**batch).logits)


def test_optional_inputs_default_to_all_tokens_and_one_segment():
    model, batch = MODELS[BOTH[0], "topK", "cls"], texts([LENGTH, LENGTH])
    batch["token_type_ids"].zero_()
    for packing in (True, False):
        set_packing(model, packing)
        assert torch.equal(model(batch["input_ids"]).logits, model(**batch).logits)


def test_masks_with_gaps_pack_too():
    batch = texts([LENGTH, LENGTH])
    batch["attention_mask"] = torch.tensor([[1, 0, 1, 1, 0, 0, 1, 1, 1, 1, 0, 1], [1, 1, 0] * 4])
    assert_same(MODELS[BOTH[0], "topK", "mean-pooling"], batch)


def test_pack_and_unpack_are_inverse():
    mask = texts([3, LENGTH, 1])["attention_mask"]
    packing = Packing(mask, torch.device("cpu"))
    padded = torch.randn(3, LENGTH, 2, 4)
    packed = packing.pack(padded)
    assert packed.shape == (1, 3 + LENGTH + 1, 2, 4)
    assert torch.equal(packed[0], torch.cat([padded[1], padded[0, :3], padded[2, :1]]))
    assert torch.equal(packed[0, packing.first][packing.inverse], padded[:, 0])
    assert torch.equal(packing.unpack(packed), padded * mask[..., None, None])


@pytest.mark.parametrize("kind", BOTH)
def test_the_inner_bert_heeds_a_padded_batchs_mask(kind):
    model, batch = MODELS[kind, "topK", "cls"], texts([5, LENGTH, 1])
    real = batch["attention_mask"].bool()
    expected = model.hidden_states(**batch).tokens
    torch.testing.assert_close(model.bert(**batch).last_hidden_state[real], expected[real], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.999])
def test_dropout_drops_its_share_and_keeps_the_mean(p):
    torch.manual_seed(0)
    x = torch.ones(1000, 999, requires_grad=True)
    y = dropout(x, p)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())
    dropped, deviation = (y == 0).double(), (p * (1 - p)) ** 0.5
    assert abs(dropped.mean() - p) < 2**-17 + 5 * deviation / 1e3
    assert abs(y.mean() - 1) < 5 * deviation / (1 - p) / 1e3
    for shift in (1, 2, 3, 4, 999):  # neighbours, in a word of bits or across, know nothing of one another
        flat = dropped.flatten() - p
        assert abs((flat[shift:] * flat[:-shift]).mean()) < 5 * deviation**2 / 1e3
    torch.manual_seed(0)
    assert torch.equal(dropout(x, p), y)


def test_dropout_without_packing_equals_torchs():
    layer, x = Dropout(0.1), torch.ones(100)
    for packing in (True, False):
        set_packing(layer, packing)
        torch.manual_seed(0)
        y = layer(x)
        torch.manual_seed(0)
        assert torch.equal(y, torch.nn.functional.dropout(x, 0.1)) != packing


@pytest.mark.parametrize(("p", "kept"), [(0, 1.0), (1, 0.0)])
def test_dropout_of_none_and_of_all(p, kept):
    assert torch.equal(dropout(torch.ones(3, 5), p), torch.full((3, 5), kept))


def test_attention_with_dropout_equals_torchs_on_average():
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 2, 5, 4)
    keys = torch.ones(2, 1, 1, 5, dtype=torch.bool)
    keys[0, ..., 3:] = False
    expected = attention(query, key, value, keys, 0.0, 0.5)
    mean = torch.stack([attention(query, key, value, keys, 0.3, 0.5) for _ in range(4000)]).mean(0)
    torch.testing.assert_close(mean, expected, atol=0.06, rtol=0)


@pytest.mark.parametrize("where", ["hidden", "attention_probs"])
@pytest.mark.parametrize("packing", [True, False])
def test_dropout_acts_while_training_alone(where, packing):
    model, batch = masked(BOTH[1], "topK", **{f"{where}_dropout_prob": 0.5}), texts([5, LENGTH, 1])
    set_packing(model, packing)
    assert torch.equal(model.encode(**batch), model.encode(**batch))
    model.train()
    assert not torch.equal(model.encode(**batch), model.encode(**batch))


def test_dropout_of_attention_acts_in_the_last_layer_too():
    """Of which a sentence task needs the first token alone."""
    model, batch = masked(BOTH[0], "topK", attention_probs_dropout_prob=0.5), texts([5, LENGTH, 1])
    first, last = model.bert.encoder.layer
    first.attention.self.dropout.p = 0.0
    assert last.attention.self.dropout.p == 0.5
    model.train()
    assert not torch.equal(model.encode(**batch), model.encode(**batch))
    last.attention.self.dropout.p = 0.0
    assert torch.equal(model.encode(**batch), model.encode(**batch))


def test_packing_is_on_by_default_and_switches_back():
    model = masked(BOTH[1], "topK")
    batch = texts([5, LENGTH])
    padding = batch["attention_mask"] == 0
    assert (model(**batch).start_logits[padding] == -1e4).all()
    set_packing(model, False)
    assert (model(**batch).start_logits[padding] > -1e3).all()
    set_packing(model, True)
    assert (model(**batch).end_logits[padding] == -1e4).all()
