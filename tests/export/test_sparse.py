"""Packed storage gives back the weights, bad files are refused by name, and the fast forward gives the same logits."""

import json
import pickle
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForQuestionAnswering, BertForSequenceClassification

from emmental import MaskedBertConfig, MaskedBertForSequenceClassification, set_threshold
from emmental.export.fold import compact, save_folded, size_table
from emmental.export.sparse_bert import load_sparse
from emmental.export.sparse_format import FILE, pack, read_sparse, save_sparse, unpack
from emmental.export.sparse_layer import faster
from emmental.pruning.masked_linear import masked_linears
from emmental.utils.errors import InputError

NAME = "bert.encoder.layer.0.output.dense.weight"
QUERY = "bert.encoder.layer.0.attention.self.query.weight"


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pruned(model_class=BertForSequenceClassification, density=0.1, **settings):
    """A tiny random BERT, its encoder matrices pruned; matrix sizes that fill no byte and no tile evenly."""
    torch.manual_seed(0)
    labels = 2 if model_class is BertForQuestionAnswering else 3
    sizes = {"hidden_size": 36, "num_attention_heads": 3, "intermediate_size": 52, "num_hidden_layers": 2}
    config = BertConfig(vocab_size=60, num_labels=labels, architectures=[model_class.__name__], **sizes, **settings)
    model = model_class(config).eval()
    for name, weight in model.named_parameters():
        weight.data.normal_(std=0.2)
        if name.startswith("bert.encoder.") and weight.dim() == 2:
            weight.data *= torch.rand_like(weight) < density
    return model


def batch_of(lengths, width):
    torch.manual_seed(1)
    mask = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
    ids, types = torch.randint(1, 60, mask.shape), torch.randint(0, 2, mask.shape)
    return {"input_ids": ids * mask, "attention_mask": mask, "token_type_ids": types * mask}


def save_dense(model, directory):
    (directory / "config.json").write_text(json.dumps(model.config.to_dict()))
    save_file(model.state_dict(), directory / "model.safetensors")


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (7, 700), (64, 96)])
@pytest.mark.parametrize("density", [0.0, 0.002, 0.03, 0.1, 0.125, 0.3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_unpacking_restores_every_weight(shape, density, dtype):
    torch.manual_seed(0)
    weight = torch.randn(shape) * (torch.rand(shape) < density)
    weight[0] = 0 if len(weight) > 1 else weight[0]
    tensors, header = pack({NAME: weight, "classifier.weight": weight + 1}, dtype)
    state = unpack(tensors, json.loads(json.dumps(header)))
    assert torch.equal(state[NAME], weight.to(getattr(torch, dtype)).float())
    assert torch.equal(state["classifier.weight"], (weight + 1).to(getattr(torch, dtype)).float())


@pytest.mark.parametrize("zeros", [0, 1, 254, 255, 256, 509, 510, 511, 765, 2000])
def test_gaps_longer_than_a_byte_are_restored(zeros):
    weight = torch.zeros(1, 4096)
    weight[0, [zeros, 2 * zeros + 1]] = torch.tensor([1.0, 2.0])
    tensors, header = pack({NAME: weight})
    assert header["tensors"][NAME]["index"] == "gaps"
    assert torch.equal(unpack(tensors, header)[NAME], weight)


def test_the_smaller_index_is_taken():
    torch.manual_seed(0)
    chance = torch.rand(64, 96)
    for density, index in ((0.03, "gaps"), (0.3, "bitmask"), (1.0, "dense")):
        _, header = pack({NAME: torch.ones(64, 96) * (chance < density)})
        assert header["tensors"][NAME]["index"] == index


def test_nan_infinity_and_tiny_values_are_restored():
    """NaN and infinity are kept, a zero loses its sign, a value that float16 rounds to zero is not kept."""
    weight = torch.tensor([[float("nan"), float("inf"), -0.0, 1e-9] + [0.0] * 60])
    tensors, header = pack({NAME: weight}, "float16")
    state = unpack(tensors, header)[NAME]
    assert state[0, 0].isnan() and state[0, 1].isinf() and not state[0, 2:].any() and not state.signbit()[0, 2]
    assert tensors[f"{NAME}.values"].numel() == 2
    with pytest.raises(InputError, match=f"float16: {NAME} holds a value too large"):
        pack({NAME: torch.full((2, 2), 1e5)}, "float16")


def test_sizes_at_97_percent_sparsity():
    torch.manual_seed(0)
    layer = {"attention.self.query": (768, 768), "intermediate.dense": (3072, 768), "output.dense": (768, 3072)}
    state = {"bert.embeddings.word_embeddings.weight": torch.randn(100, 768), "classifier.weight": torch.randn(2, 768)}
    for name, shape in layer.items():
        state[f"bert.encoder.layer.0.{name}.weight"] = torch.randn(shape) * (torch.rand(shape) < 0.03)
        state[f"bert.encoder.layer.0.{name}.bias"] = torch.randn(shape[0])
    for dtype, ratio, part in (("float32", 10, 1), ("float16", 16, 2)):
        rows = {row[0]: row[1:] for row in size_table(state, pack(state, dtype)[0])}
        assert rows["encoder"][2] >= ratio
        assert rows["embeddings"] == (100 * 768 * 4, 100 * 768 * 4 // part, part)
        assert rows["head"] == (2 * 768 * 4, 2 * 768 * 4 // part, part)
        assert rows["total"][1] == sum(rows[name][1] for name in ("encoder", "embeddings", "head"))


def test_a_folder_comes_back_and_nothing_is_left_beside(tmp_path, monkeypatch):
    model = pruned()
    save_sparse(model.state_dict(), model.config.to_dict(), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", FILE]
    state = read_sparse(tmp_path)
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    before = (tmp_path / FILE).read_bytes()
    monkeypatch.setattr("emmental.export.sparse_format.json.dumps", lambda value, **format: 1 / 0 if format else "{}")
    with pytest.raises(ZeroDivisionError):
        save_sparse(pruned(density=0.5).state_dict(), {}, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", FILE]
    assert (tmp_path / FILE).read_bytes() == before


def damaged(change):
    """Save a model, apply `change` to (tensors, header), and save that in its place."""

    def apply(path):
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        tensors, header = load_file(path), json.loads(metadata["sparse"])
        change(tensors, header)
        save_file(tensors, path, metadata | {"sparse": json.dumps(header)})

    return apply


def cut(size):
    return lambda path: path.write_bytes(path.read_bytes()[:size])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut(-1), "not a whole one"),
        (cut(100), "not a whole one"),
        (cut(0), "not a whole one"),
        (damaged(lambda t, h: t[f"{QUERY}.gaps"].fill_(254)), f"{QUERY}.gaps has the index .* out of range"),
        (damaged(lambda t, h: t.pop(f"{QUERY}.gaps")), f"{QUERY}.gaps is missing"),
        (damaged(lambda t, h: t.pop(f"{QUERY}.values")), f"{QUERY}.values is missing"),
        (damaged(lambda t, h: t.pop("classifier.bias")), "classifier.bias is missing"),
        (damaged(lambda t, h: t.update({f"{QUERY}.values": torch.ones(3)})), f"{QUERY} has 3 values for"),
        (damaged(lambda t, h: t.update({"classifier.bias": torch.ones(4)})), r"classifier.bias has shape \[4\], not"),
        (damaged(lambda t, h: h["tensors"].pop(QUERY)), f"{QUERY} is missing"),
        (damaged(lambda t, h: h["tensors"][QUERY].update(shape=[72, 18])), rf"{QUERY} has shape \[72, 18\], not"),
        (damaged(lambda t, h: h["tensors"][QUERY].update(index="runs")), "damaged"),
        (damaged(lambda t, h: h.update(version=2)), "format version 2, not 1"),
    ],
)
def test_a_damaged_file_is_refused_by_name(tmp_path, damage, message):
    model = pruned(density=0.05)
    save_sparse(model.state_dict(), model.config.to_dict(), tmp_path)
    damage(tmp_path / FILE)
    with pytest.raises(InputError, match=message) as error:
        load_sparse(tmp_path)
    assert str(error.value).startswith(str(tmp_path / FILE)) and "\n" not in str(error.value)


@pytest.mark.parametrize("model_class", [BertForSequenceClassification, BertForQuestionAnswering])
@pytest.mark.parametrize("density", [0.0, 0.03, 0.5, 1.0])
@pytest.mark.parametrize("kernel", ["sparse", "dense"])
def test_same_logits_as_the_dense_model(tmp_path, monkeypatch, model_class, density, kernel):
    model = pruned(model_class, density)
    monkeypatch.setattr("emmental.export.sparse_bert.faster", lambda weight: kernel)
    save_sparse(model.state_dict(), model.config.to_dict(), tmp_path)
    sparse = load_sparse(tmp_path)
    assert set(sparse.chosen.values()) == {kernel} and len(sparse.chosen) == 2 * 4
    for lengths in ([1], [40], [7, 40, 1, 7, 39], [40] * 6, list(range(1, 41)), [5, 300, 3]):
        batch = batch_of(lengths, max(lengths) + 2)
        with torch.no_grad():
            want, got = model(**batch), sparse(**batch)
        assert want.keys() == got.keys()
        for key in want:
            real = batch["attention_mask"].bool() if key != "logits" else ...
            torch.testing.assert_close(got[key][real], want[key][real], atol=1e-5, rtol=0)
            assert key == "logits" or (got[key][~real] == -1e4).all()


@pytest.mark.parametrize("ratio, kernel", [(0.79, "sparse"), (0.81, "dense")])
def test_the_sparse_kernel_is_taken_where_it_wins_clearly(monkeypatch, ratio, kernel):
    """By a clock that says how long either takes."""

    def clock(run, timer, number):
        return 1.0 if run.func is torch.mm else ratio

    monkeypatch.setattr("emmental.export.sparse_layer.timeit", SimpleNamespace(timeit=clock))
    assert faster(torch.ones(4, 6)) == kernel


def test_mask_and_token_types_default_as_in_bert(tmp_path):
    model = pruned()
    save_dense(model, tmp_path)
    ids = batch_of([9, 9], 9)["input_ids"]
    torch.testing.assert_close(load_sparse(tmp_path)(ids).logits, model(ids).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("settings", [{"hidden_act": "relu"}, {"hidden_act": "gelu_new"}, {"layer_norm_eps": 0.5}])
def test_another_activation_or_epsilon(tmp_path, settings):
    model, batch = pruned(**settings), batch_of([5, 12], 12)
    save_dense(model, tmp_path)
    torch.testing.assert_close(load_sparse(tmp_path)(**batch).logits, model(**batch).logits, atol=1e-5, rtol=0)


def test_a_dense_folder_runs_as_its_sparse_form_does(tmp_path):
    model, batch = pruned(), batch_of([5, 12], 12)
    save_dense(model, tmp_path)
    save_sparse(model.state_dict(), model.config.to_dict(), tmp_path / "sparse")
    results = [load_sparse(folder)(**batch).logits for folder in (tmp_path, tmp_path / "sparse")]
    torch.testing.assert_close(*results, atol=1e-5, rtol=0)


def test_padding_on_the_left_is_refused(tmp_path):
    model = pruned()
    save_dense(model, tmp_path)
    batch = batch_of([5, 12], 12)
    with pytest.raises(ValueError, match="pad on the right"):
        load_sparse(tmp_path)(batch["input_ids"], batch["attention_mask"].flip(1))


def test_compacting_keeps_the_logits(tmp_path):
    """Neurons without input or output weights are removed, as many in each layer as the layer with fewest has."""
    model, batch = pruned(density=0.3), batch_of([5, 12], 12)
    state = model.state_dict()
    for layer, silent, unread in ((0, range(0, 20), range(15, 25)), (1, range(30, 52), range(2, 3))):
        prefix = f"bert.encoder.layer.{layer}."
        state[f"{prefix}intermediate.dense.weight"][list(silent)] = 0
        state[f"{prefix}output.dense.weight"][:, list(unread)] = 0
    with torch.no_grad():
        want = model(**batch).logits
    small, config = compact(state, model.config.to_dict())
    assert 52 - 25 <= config["intermediate_size"] <= 52 - 23
    smaller = BertForSequenceClassification(BertConfig.from_dict(config)).eval()
    smaller.load_state_dict(small)
    with torch.no_grad():
        torch.testing.assert_close(smaller(**batch).logits, want, atol=1e-5, rtol=0)
    save_sparse(small, config, tmp_path)
    torch.testing.assert_close(load_sparse(tmp_path)(**batch).logits, want, atol=1e-5, rtol=0)


def test_compacting_empty_and_full_encoders():
    model = pruned(density=0.0)
    assert compact(model.state_dict(), model.config.to_dict())[1]["intermediate_size"] == 1
    state, config = pruned(density=1.0).state_dict(), model.config.to_dict()
    assert compact(state, config) == (state, config)


@pytest.mark.parametrize(("idle", "form"), [((0,), "sparse"), ((0, 1), "dense"), ((), "dense")])
def test_what_no_plain_bert_can_leave_out_is_packed(tmp_path, idle, form):
    """Half of the neurons of the layers `idle` are read by nothing."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 36, "num_attention_heads": 3, "intermediate_size": 52, "num_hidden_layers": 2}
    model = MaskedBertForSequenceClassification(MaskedBertConfig(vocab_size=60, **sizes)).eval()
    for linear in masked_linears(model).values():
        linear.mask_scores.data.normal_()
    for layer in idle:
        model.bert.encoder.layer[layer].output.dense.mask_scores.data[:, :26] -= 100
    set_threshold(model, 0.5)
    report = save_folded(model, tmp_path, tmp_path / "folded", "dense", "float32", compacted=True)
    assert ("idle neurons by layer: [26, 0]" in report) == (form == "sparse")
    assert (tmp_path / "folded" / FILE).exists() == (form == "sparse")
    batch = batch_of([5, 12], 12)
    with torch.no_grad():
        want = model(**batch).logits
    got = load_sparse(tmp_path / "folded")(**batch).logits
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)


def test_a_dense_value_too_large_for_half_precision_is_refused(tmp_path):
    model = MaskedBertForSequenceClassification(
        MaskedBertConfig(vocab_size=60, hidden_size=12, num_attention_heads=1, intermediate_size=8, num_hidden_layers=1)
    )
    model.classifier.bias.data[0] = 1e6
    with pytest.raises(InputError, match=r"--dtype float16: classifier.bias holds a value too large"):
        save_folded(model, tmp_path, tmp_path / "folded", "dense", "float16", compacted=False)


def test_there_is_nothing_to_train(tmp_path):
    save_dense(pruned(), tmp_path)
    model, batch = load_sparse(tmp_path), batch_of([5, 12], 12)
    assert torch.equal(model.train()(**batch).logits, model(**batch).logits)
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "gelo"}, "gelo"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"num_attention_heads": 5}, "36"),
        ({"model_type": "masked_bert"}, "a masked model; fold it first"),
        ({"model_type": "gpt2"}, "of type gpt2 is none of"),
        ({"architectures": ["BertModel"]}, "BertModel of type bert is none of"),
        ({"architectures": None}, "not the configuration of a model"),
        ({"intermediate_size": 48}, r"intermediate.dense.weight has shape \[52, 36\], not \[48, 36\]"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"num_hidden_layers": 3}, "bert.encoder.layer.2.attention.self.query.weight is missing"),
    ],
)
def test_another_configuration_is_refused(tmp_path, change, message):
    model = pruned()
    save_dense(model, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(model.config.to_dict() | change))
    with pytest.raises(InputError, match=message) as error:
        load_sparse(tmp_path)
    assert "\n" not in str(error.value)


def test_a_folder_with_scores_or_without_a_model_is_refused(tmp_path):
    model = pruned()
    with pytest.raises(InputError, match=r"config\.json: not the configuration"):
        load_sparse(tmp_path)
    save_dense(model, tmp_path)
    save_file(
        model.state_dict() | {QUERY.replace("weight", "mask_scores"): torch.ones(1)}, tmp_path / "model.safetensors"
    )
    with pytest.raises(InputError, match="mask_scores"):
        load_sparse(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"neither model\.sparse\.safetensors nor model\.safetensors"):
        load_sparse(tmp_path)
    with pytest.raises(InputError, match="nowhere: no such folder"):
        load_sparse(tmp_path / "nowhere")


def test_a_packed_model_refuses_what_it_cannot_do(tmp_path):
    """Its encoder is in no state_dict, it is of one device and type; a pickle of it is its folder's path."""
    plain = pruned()
    save_sparse(plain.state_dict(), plain.config.to_dict(), tmp_path)
    model, batch = load_sparse(tmp_path), batch_of([5, 3], 5)
    again = pickle.loads(pickle.dumps(model))
    torch.testing.assert_close(again(**batch).logits, model(**batch).logits)  # kernels are measured anew
    assert model.to("cpu").float().device.type == "cpu"
    for call in (model.state_dict, model.half, lambda: model.to("meta")):
        with pytest.raises(TypeError, match=r"packed model|float32"):
            call()
    with pytest.raises(ValueError, match="513 tokens in a row: the model has 512 positions"):
        model(torch.ones(1, 513, dtype=torch.long))
