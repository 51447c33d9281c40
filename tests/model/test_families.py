"""Every family's masked model is transformers' own model, packed or not, and folds back into it."""

import json

import pytest
import torch
import transformers
from matplotlib.figure import Figure
from test_packing import assert_same
from tiny import OWN_SIZES, SIZES
from torch import nn
from torch.nn.functional import normalize

import emmental
from emmental import set_packing, set_threshold
from emmental.export.fold import compact, fold, save_folded
from emmental.model import loading
from emmental.model.families import FAMILIES
from emmental.model.heads import ANSWERS, CLASSIFIES
from emmental.model.masked_classes import masked_class
from emmental.pruning.counting import count, heat_map
from emmental.pruning.masked_linear import masked_linears
from emmental.training.optimizer import Optimizer
from emmental.utils.errors import InputError

LENGTH = 20
BOTH = [CLASSIFIES, ANSWERS]
OTHERS = [name for name in FAMILIES if name != "bert"]
MATRICES = {"bert": 6, "roberta": 6, "electra": 6, "distilbert": 6, "modernbert": 4}  # of a layer


def plain_model(family: str, head: str, seed: int = 0, **settings) -> nn.Module:
    """transformers' own model, of random weights, without dropout."""
    entry, own = FAMILIES[family], OWN_SIZES[family][1]
    sizes = {entry.key(name): value for name, value in (SIZES | own | {"vocab_size": 60, "num_labels": 2}).items()}
    config = getattr(transformers, f"{entry.prefix}Config")(**sizes | settings)
    off = [name for name in config.to_dict() if "dropout" in name and name != "classifier_dropout"]
    for name in [*off, *(["classifier_dropout"] if family == "modernbert" else [])]:
        setattr(config, name, settings.get(name, 0.0))
    torch.manual_seed(seed)
    return getattr(transformers, f"{entry.prefix}For{head}")(config).eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_that_a_config_leaves_out_are_transformers_own(family):
    config = getattr(transformers, f"{FAMILIES[family].prefix}Config")().to_dict()
    assert {name: config[name] for name in FAMILIES[family].sizes} == FAMILIES[family].sizes


def masked_model(folder, family: str, head: str, method: str | None = "topK", **settings) -> nn.Module:
    """The masked model of a plain one's folder, with random scores."""
    masks = {"pruning_method": method, "mask_init": "uniform", "mask_scale": 1.0}
    return loading.load(head, str(folder), trained=False, **masks | settings).eval()


def texts(model: nn.Module, lengths: list[int], seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.arange(LENGTH) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(3, 60, mask.shape, generator=generator)
    batch = {"input_ids": ids * mask + (1 - mask) * model.config.pad_token_id, "attention_mask": mask}
    types = getattr(model.config, "type_vocab_size", 1)
    return batch | ({"token_type_ids": torch.randint(0, types, mask.shape, generator=generator)} if types > 1 else {})


def assert_same_logits(ours, theirs, real: torch.Tensor) -> None:
    close = {"atol": 1e-6, "rtol": 1e-5}
    if "logits" in theirs:
        torch.testing.assert_close(ours.logits, theirs.logits, **close)
    else:
        for name in ("start_logits", "end_logits"):
            torch.testing.assert_close(ours[name][real], theirs[name][real], **close)


@pytest.mark.parametrize("head", BOTH)
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_transformers_own_model_where_nothing_is_pruned(tmp_path, family, head):
    plain = plain_model(family, head)
    plain.save_pretrained(tmp_path)
    for method in ("topK", None):
        model = masked_model(tmp_path, family, head, method)
        set_threshold(model, 1.0)
        for lengths in ([7, LENGTH, 1], [LENGTH, LENGTH], [3]):
            batch = texts(plain, lengths)
            with torch.no_grad():
                expected = plain(**batch)
                for packing in (True, False):
                    set_packing(model, packing)
                    assert_same_logits(model(**batch), expected, batch["attention_mask"].bool())


@pytest.mark.parametrize("head", BOTH)
@pytest.mark.parametrize("family", FAMILIES)
def test_has_the_plain_models_weights_and_a_score_for_each_of_the_encoders(tmp_path, family, head):
    plain = plain_model(family, head)
    plain.save_pretrained(tmp_path)
    model = masked_model(tmp_path, family, head)
    state = model.state_dict()
    assert [name for name in state if not name.endswith("mask_scores")] == list(plain.state_dict())
    layers = [name for name, x in plain.named_modules() if isinstance(x, nn.Linear) and ".layer" in name]
    assert [name.removesuffix(".mask_scores") for name in state if name.endswith("mask_scores")] == layers
    assert len(layers) == MATRICES[family] * model.config.num_hidden_layers
    sizes = FAMILIES[family].matrix_sizes(json.loads((tmp_path / "config.json").read_text()))
    assert sorted(sizes) == sorted(linear.weight.numel() for linear in masked_linears(model).values())
    for name in layers:
        scores = state[f"{name}.mask_scores"]
        assert scores.shape == state[f"{name}.weight"].shape and 0 < scores.abs().max() <= 1
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name in plain.state_dict() if ".embeddings" in name}
    assert model.config.model_type == f"masked_{family}" and type(model) is getattr(emmental, type(model).__name__)
    assert type(model).__name__ == f"Masked{type(plain).__name__}"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_new_masked_models_weights_are_drawn_as_the_plain_models(family):
    plain = plain_model(family, CLASSIFIES)
    model = masked_class(family, CLASSIFIES)(masked_class(family, "Config").from_dict(plain.config.to_dict()))
    for name in masked_linears(model):
        drawn, expected = model.get_submodule(name), plain.get_submodule(name)
        assert 0.8 < drawn.weight.std() / expected.weight.std() < 1.25, name
        assert drawn.bias is None or not drawn.bias.any()


@pytest.mark.parametrize("alignrep", ["cls", "mean-pooling"])
@pytest.mark.parametrize("head", BOTH)
@pytest.mark.parametrize("family", OTHERS)
def test_packed_equals_padded_gradients_too(tmp_path, family, head, alignrep):
    plain_model(family, head).save_pretrained(tmp_path)
    for method in ("topK", None):
        model = masked_model(tmp_path, family, head, method, alignrep=alignrep)
        set_threshold(model, 0.4)
        for lengths in ([5, LENGTH, 1], [LENGTH, LENGTH], [2]):
            assert_same(model, texts(model, lengths))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_anchor_is_what_the_last_linear_reads(tmp_path, family):
    """In training after its dropout; a bank's row is the same before it."""
    plain_model(family, CLASSIFIES).save_pretrained(tmp_path)
    model, read = masked_model(tmp_path, family, CLASSIFIES), []
    batch = texts(model, [5, LENGTH, 1])
    last = [module for module in model.modules() if type(module) is nn.Linear][-1]
    if family == "distilbert":
        last = model.classifier
    last.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    with torch.no_grad():
        torch.testing.assert_close(model.encode(**batch), normalize(model(**batch).representation, dim=-1))
        model.train().get_submodule(FAMILIES[family].dropout).p = 0.5
        anchor = model(**batch).representation
    assert torch.equal(anchor, read[-1]) and last.out_features == 2
    assert (anchor == 0).float().mean() > 0.2 or family == "distilbert"  # whose ReLU leaves zeros of its own


@pytest.mark.parametrize("family", FAMILIES)
def test_a_spans_anchor_is_the_first_tokens_last_hidden_state(tmp_path, family):
    plain = plain_model(family, ANSWERS)
    plain.save_pretrained(tmp_path)
    model, batch = masked_model(tmp_path, family, ANSWERS, None), texts(plain, [5, LENGTH, 1])
    with torch.no_grad():
        expected = plain.base_model(**batch).last_hidden_state[:, 0]
        torch.testing.assert_close(model(**batch).representation, expected, atol=1e-5, rtol=1e-5)


def test_a_classifier_may_pool_by_the_mean(tmp_path):
    plain = plain_model("modernbert", CLASSIFIES, classifier_pooling="mean")
    plain.save_pretrained(tmp_path)
    model, batch = masked_model(tmp_path, "modernbert", CLASSIFIES, None), texts(plain, [5, LENGTH, 1])
    with torch.no_grad():
        assert_same_logits(model(**batch), plain(**batch), None)
        encoded, anchor = model.encode(**batch), model(**batch).representation
    torch.testing.assert_close(encoded, normalize(anchor, dim=-1))


@pytest.mark.parametrize("head", BOTH)
@pytest.mark.parametrize("family", FAMILIES)
def test_folds_into_the_plain_model_with_the_same_logits(tmp_path, family, head):
    plain_model(family, head).save_pretrained(tmp_path)
    model = masked_model(tmp_path, family, head)
    set_threshold(model, 0.3)
    fold(model).save_pretrained(tmp_path / "folded")
    auto = {CLASSIFIES: transformers.AutoModelForSequenceClassification}
    auto[ANSWERS] = transformers.AutoModelForQuestionAnswering
    folded = auto[head].from_pretrained(tmp_path / "folded").eval()
    assert type(folded) is getattr(transformers, f"{FAMILIES[family].prefix}For{head}")
    batch = texts(folded, [5, LENGTH, 1])
    with torch.no_grad():
        assert_same_logits(model(**batch), folded(**batch), batch["attention_mask"].bool())
    for name in masked_linears(model):
        weight = folded.get_submodule(name).weight
        assert int((weight != 0).sum()) == int(0.3 * weight.numel())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_masked_model_comes_back_by_its_own_name_and_by_auto(tmp_path, family):
    plain_model(family, CLASSIFIES).save_pretrained(tmp_path)
    model = masked_model(tmp_path, family, CLASSIFIES)
    model.config.threshold = 0.3
    model.save_pretrained(tmp_path / "masked")
    set_threshold(model, 0.3)
    batch = texts(model, [5, LENGTH, 1])
    loaded = loading.load_masked(str(tmp_path / "masked"))
    auto = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "masked").eval()
    with torch.no_grad():
        for other in (loaded, auto):
            assert type(other) is type(model) and torch.equal(other(**batch).logits, model(**batch).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_counts_and_draws_every_matrix(tmp_path, family):
    plain = plain_model(family, CLASSIFIES)
    plain.save_pretrained(tmp_path)
    model = masked_model(tmp_path, family, CLASSIFIES)
    set_threshold(model, 0.25)
    counted = count(model)
    layers = {name: x for name, x in plain.state_dict().items() if ".layer" in name}
    weights = {name: x.numel() for name, x in layers.items() if x.dim() == 2}
    assert {name: total for name, (_, total) in counted.matrices.items()} == weights
    assert counted.kept == sum(int(0.25 * total) for total in weights.values())
    assert counted.unmasked == sum(x.numel() for x in layers.values() if x.dim() == 1)
    figure = heat_map(counted)
    assert isinstance(figure, Figure) and len(figure.axes[0].texts) == len(weights)
    assert not any("." in label.get_text() for label in figure.axes[0].get_xticklabels())


def test_positions_of_roberta_count_as_transformers_do(tmp_path):
    """From the padding token's id on, whatever fills the padding, up to the last position there is."""
    plain = plain_model("roberta", CLASSIFIES, max_position_embeddings=LENGTH + 2)
    plain.save_pretrained(tmp_path)
    model = masked_model(tmp_path, "roberta", CLASSIFIES, None)
    batch = texts(plain, [5, LENGTH, 1])
    with torch.no_grad():
        expected = plain(**batch).logits
        batch["input_ids"][0, 5:] = 7
        for packing in (True, False):
            set_packing(model, packing)
            torch.testing.assert_close(model(**batch).logits, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_layernorms_and_biases_do_not_decay(tmp_path, family):
    plain_model(family, CLASSIFIES).save_pretrained(tmp_path)
    model = masked_model(tmp_path, family, CLASSIFIES)
    rates = {"learning_rate": 1.0, "mask_scores_learning_rate": 1.0, "warmup_steps": 0, "total_steps": 2}
    optimizer = Optimizer(model, **rates, weight_decay=0.1, epsilon=1e-8, max_grad_norm=1.0)
    decayed = {id(x) for group in optimizer.adamw.param_groups if group["decay"] for x in group["params"]}
    linears = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    assert decayed == {id(weight) for weight in linears if weight.requires_grad}
    moved = {id(x) for group in optimizer.adamw.param_groups for x in group["params"]}
    assert moved == {id(x) for x in model.parameters() if x.requires_grad}


def test_another_family_is_refused_with_those_there_are(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(InputError, match="model_type is 'gpt2', not one of bert, roberta, electra, distilbert, modern"):
        loading.load(CLASSIFIES, str(tmp_path))


@pytest.mark.parametrize("form", ["sparse", "dense"])
@pytest.mark.parametrize("head", BOTH)
@pytest.mark.parametrize("family", FAMILIES)
def test_load_sparse_has_the_masked_models_logits(tmp_path, monkeypatch, family, head, form):
    plain_model(family, head).save_pretrained(tmp_path)
    model = masked_model(tmp_path, family, head)
    set_threshold(model, 0.3)
    report = save_folded(model, tmp_path, tmp_path / "folded", form, "float32", compacted=True)
    assert (tmp_path / "folded" / "model.sparse.safetensors").exists() == (form == "sparse") and "encoder" in report
    for kernel in ("sparse", "dense"):
        monkeypatch.setattr("emmental.export.sparse_bert.faster", lambda weight, kernel=kernel: kernel)
        loaded = emmental.load_sparse(tmp_path / "folded")
        for lengths in ([5, LENGTH, 1], [LENGTH, LENGTH], [1]):
            batch = texts(model, lengths)
            with torch.no_grad():
                expected, got = model(**batch), loaded(**batch)
            for name in got:
                torch.testing.assert_close(got[name], expected[name], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_idle_neurons_are_removed_with_the_same_logits(tmp_path, family):
    """Those that nothing reads, half of every layer's."""
    plain_model(family, CLASSIFIES).save_pretrained(tmp_path)
    model, half = masked_model(tmp_path, family, CLASSIFIES), SIZES["intermediate_size"] // 2
    for name, linear in masked_linears(model).items():
        if name.endswith(FAMILIES[family].feed_forward[1]) and "attention" not in name:
            linear.mask_scores.data[:, :half] -= 100
    set_threshold(model, 0.45)
    save_folded(model, tmp_path, tmp_path / "folded", "dense", "float32", compacted=True)
    folded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "folded").eval()
    assert getattr(folded.config, FAMILIES[family].key("intermediate_size")) <= half
    batch = texts(folded, [5, LENGTH, 1])
    with torch.no_grad():
        torch.testing.assert_close(folded(**batch).logits, model(**batch).logits, atol=1e-5, rtol=1e-5)


LONG = [[5, LENGTH, 1], [LENGTH, LENGTH], [2], [LENGTH] * 9]  # beyond a window, and more than a tile holds


@pytest.mark.parametrize("kernel", ["sparse", "dense"])
@pytest.mark.parametrize(
    "settings",
    [
        *({}, {"norm_bias": False}, {"mlp_bias": True, "attention_bias": True}, {"classifier_pooling": "mean"}),
        *({"local_attention": 2, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},),
        *({"hidden_activation": "silu", "norm_eps": 0.5, "classifier_activation": "relu"},),
    ],
    ids=str,
)
def test_load_sparse_runs_modernberts_own_ways(tmp_path, monkeypatch, settings, kernel):
    """With random biases and LayerNorms, beside transformers' own model; also texts with holes."""
    plain = plain_model("modernbert", CLASSIFIES, **settings)
    for name, parameter in plain.named_parameters():
        noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
        parameter.data += 0.2 * noise
        if ".layers." in name and parameter.dim() == 2:
            parameter.data *= noise.abs() > 0.5
    plain.save_pretrained(tmp_path)
    monkeypatch.setattr("emmental.export.sparse_bert.faster", lambda weight: kernel)
    loaded = emmental.load_sparse(tmp_path)
    assert len(loaded.chosen) == MATRICES["modernbert"] * 3
    for lengths in LONG:
        batch = texts(plain, lengths)
        for hole in (False, True):
            batch["attention_mask"][0, 2:4] &= not hole
            with torch.no_grad():
                torch.testing.assert_close(loaded(**batch).logits, plain(**batch).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("act", "idle"), [("gelu", True), ("sigmoid", False)])
def test_a_gated_neuron_goes_where_it_is_constant(act, idle, bias):
    """One without input weights is act(bias) times its gate: zero by GELU without a bias, a half by a sigmoid."""
    settings = {"hidden_activation": act, "mlp_bias": bias}
    plain, inner = plain_model("modernbert", CLASSIFIES, **settings), SIZES["intermediate_size"]
    batch = texts(plain, [5, LENGTH, 1])
    removed = {"unread": 6, "without both": 6, "without gate": 0 if bias else 6}
    removed["without input"] = 6 if idle and not bias else 0
    for layer in plain.model.layers:
        rows = layer.mlp.Wi.weight.data
        layer.mlp.Wo.weight.data[:, :6] = 0
        rows[6:12], rows[inner + 6 : inner + 12] = 0, 0
        rows[inner + 12 : inner + 18] = 0
        rows[18:24] = 0
        if bias:
            for linear in (layer.mlp.Wi, layer.mlp.Wo):
                linear.bias.data.normal_()
    with torch.no_grad():
        expected = plain(**batch).logits
    state, config = compact(plain.state_dict(), plain.config.to_dict())
    assert config["intermediate_size"] == inner - sum(removed.values())
    smaller = type(plain)(type(plain.config)(**config)).eval()
    smaller.load_state_dict(state)
    with torch.no_grad():
        torch.testing.assert_close(smaller(**batch).logits, expected, atol=1e-5, rtol=1e-5)


def test_what_no_plain_modernbert_can_leave_out_is_packed(tmp_path):
    """One layer's idle neurons, which a plain model of one size for all layers cannot lose."""
    plain_model("modernbert", CLASSIFIES).save_pretrained(tmp_path)
    model = masked_model(tmp_path, "modernbert", CLASSIFIES)
    model.model.layers[1].mlp.Wo.mask_scores.data[:, :10] -= 100
    set_threshold(model, 0.5)
    report = save_folded(model, tmp_path, tmp_path / "folded", "dense", "float32", compacted=True)
    assert "idle neurons by layer: [0, 10, 0]" in report
    batch = texts(model, [5, LENGTH, 1])
    with torch.no_grad():
        got, expected = emmental.load_sparse(tmp_path / "folded")(**batch), model(**batch)
    torch.testing.assert_close(got.logits, expected.logits, atol=1e-5, rtol=1e-5)
