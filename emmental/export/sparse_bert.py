"""A pruned and folded model made fast on a CPU: its encoder runs on the layers of `sparse_layer`.

Which matrices gain from the sparse product is measured when a model is loaded.
"""

import json
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import BertConfig, PreTrainedConfig
from transformers.modeling_outputs import QuestionAnsweringModelOutput, SequenceClassifierOutput
from transformers.models.modernbert.modeling_modernbert import ModernBertRotaryEmbedding

from emmental.export.sparse_format import FILE, read_sparse, read_tensors
from emmental.export.sparse_layer import KERNELS, TILE, Kernel, Layer, faster, join, make_tiles
from emmental.export.sparse_modernbert import RotaryLayer, turns
from emmental.model.families import FAMILIES, Family, family_of, is_masked
from emmental.model.heads import ANSWERS, CLASSIFIES
from emmental.model.masked_classes import (
    PADDING_LOGIT,
    ClassificationOutput,
    MaskedClassifier,
    SpanOutput,
    masked_class,
    plain_class,
)
from emmental.model.masked_model import Hidden
from emmental.model.validation import usable_positions
from emmental.utils.errors import InputError

# architecture -> family and head
MODELS = {plain_class(family, head).__name__: (family, head) for family in FAMILIES for head in (CLASSIFIES, ANSWERS)}


def _share_tiles(lengths: list[int], most: int) -> list[list[int]]:
    """Lengths of consecutive rows that share a tile of `most` tokens; a longer row is alone."""
    groups, used = [], most
    for length in lengths:
        if used + length > most:
            groups.append([])
            used = 0
        groups[-1].append(length)
        used += length
    return groups


class SparseModel(nn.Module):
    """A folded model for evaluation on a CPU in float32, made from the plain model's whole `state_dict`.

    `chosen` names each matrix's kernel, sparse or dense: measured once for each shape and percent of density. Its
    weights are in `folder`, from which a copy by pickle is loaded. TypeError for state_dict, another device or type.
    """

    device = torch.device("cpu")

    def __init__(self, config: PreTrainedConfig, state_dict: dict[str, Tensor], folder: Path):
        super().__init__()
        self.folder = folder
        self.config, self.layers, self.chosen, measured = config, [], {}, {}
        family, head = MODELS[config.architectures[0]]
        self.family = FAMILIES[family]
        # Embeddings, pooler and head stay transformers' own, as the masked model without layers has them.
        # One is made of ModernBERT's, whose initialisation divides by their number, and taken away.
        none = {self.family.key("num_hidden_layers"): int(self.family.rotary), "pruning_method": None}
        around = masked_class(family, "Config").from_dict(config.to_dict() | none)
        self.plain = masked_class(family, head)(around).eval().requires_grad_(False)
        if self.family.rotary:
            del self.plain.encoder[:]
            self.rotary = ModernBertRotaryEmbedding(config)
        self.plain.load_state_dict({name: state_dict[name] for name in self.plain.state_dict()}, assign=True)

        def choose(layer: str, name: str, weight: Tensor) -> Kernel:
            bucket = (*weight.shape, round(float((weight != 0).float().mean()), 2))
            if bucket not in measured:
                measured[bucket] = faster(weight)
            self.chosen[layer + name] = measured[bucket]
            return KERNELS[measured[bucket]]

        self.positions = usable_positions(self.family, config.to_dict())
        shape = bert_config(config)
        self.norm = torch.ones(shape.hidden_size), torch.zeros(shape.hidden_size)
        layers = self.plain.encoder_name + ("" if self.family.rotary else ".layer")
        for number in range(shape.num_hidden_layers):
            prefix = f"{layers}.{number}."
            weights = layer_weights(state_dict, prefix, self.family)
            if self.family.rotary:
                self.layers.append(RotaryLayer(weights, config, config.layer_types[number], partial(choose, prefix)))
            else:
                self.layers.append(Layer(weights, self.norm, shape, partial(choose, prefix)))
                self.norm = self.layers[-1].norm
        self.tile = TILE["sparse" if "sparse" in self.chosen.values() else "dense"]

        self.eval()

    def train(self, mode: bool = True) -> "SparseModel":
        return super().train(False)  # there is nothing to train

    def __reduce__(self):
        return load_sparse, (self.folder,)

    def state_dict(self, *args, **kwargs):
        raise TypeError(f"a packed model has no state_dict: its weights are in {self.folder}; copy that folder")

    def _apply(self, fn, *args, **kwargs):
        moved = fn(torch.zeros(1))
        if moved.device.type != "cpu" or moved.dtype != torch.float32:
            raise TypeError(f"load_sparse computes on a CPU in float32, not on {moved.device} in {moved.dtype}")
        return self

    @torch.no_grad()
    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None):
        """Padded inputs, each (batch, length) -> transformers output with logits | start_logits, end_logits.

        Only real tokens are computed; padding gets the span logit -1e4. ValueError where a row begins with padding, or
        is longer than the model's positions.
        """
        attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        positions = self.plain.position_ids(input_ids, input_ids.device)
        inputs = {"input_ids": input_ids} | ({} if self.family.rotary else {"position_ids": positions})
        if self.family.token_types:
            inputs["token_type_ids"] = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        real = attention_mask.bool()
        if not real[:, 0].all():
            raise ValueError("each row must begin with a real token: pad on the right")
        if input_ids.shape[1] > self.positions:
            raise ValueError(f"{input_ids.shape[1]} tokens in a row: the model has {self.positions} positions")
        row, column = real.nonzero(as_tuple=True)
        x = self.plain.embed({name: value[row, column][None] for name, value in inputs.items()})[0].T

        classifies = isinstance(self.plain, MaskedClassifier)
        groups = _share_tiles(real.sum(1).tolist(), self.tile)
        tiles = [make_tiles(part, self.tile) for part in x.split([sum(lengths) for lengths in groups], dim=1)]
        if self.family.rotary:
            hidden = self.rotary_layers(tiles, groups, positions[row, column])
        else:
            hidden = self.bert_layers(tiles, groups, classifies)
        if classifies:
            if self.family.rotary:
                padded = hidden.new_zeros(*input_ids.shape, hidden.shape[1])
                padded[row, column] = hidden
                last = Hidden(padded[:, 0], padded, attention_mask)
            else:
                last = Hidden(hidden)
            features = self.plain.features(last)
            return SequenceClassifierOutput(logits=self.plain.through((self.family.classifier,), features))
        logits = torch.full((*input_ids.shape, 2), PADDING_LOGIT)
        logits[row, column] = self.plain.through(self.family.span_head, hidden)
        start, end = logits.unbind(-1)
        return QuestionAnsweringModelOutput(start_logits=start, end_logits=end)

    def bert_layers(self, tiles: list[list[Tensor]], groups: list[list[int]], classifies: bool) -> Tensor:
        """The last layer's output, (tokens, hidden); where the model `classifies`, of the rows' first tokens alone."""
        for layer in self.layers:
            first = classifies and layer is self.layers[-1]  # the classifier reads nothing else
            tiles = [layer(*group, first) for group in zip(tiles, groups, strict=True)]
        counts = [len(lengths) if classifies else sum(lengths) for lengths in groups]
        return side_by_side(tiles, counts).T * self.norm[0] + self.norm[1]

    def rotary_layers(self, tiles: list[list[Tensor]], groups: list[list[int]], positions: Tensor) -> Tensor:
        """The same of ModernBERT's layers and its final LayerNorm, of all tokens, at these `positions` (tokens,)."""
        counts = [sum(lengths) for lengths in groups]
        for group, lengths, places in zip(tiles, groups, positions.split(counts), strict=True):
            turned = turns(self.rotary, places)
            for layer in self.layers:
                layer(group, lengths, places, turned)
        return self.plain.base_model.final_norm(side_by_side(tiles, counts).T)


class EvaluatedSparse(nn.Module):
    """A SparseModel as evaluation calls a masked model: without masks, and with its logits as classifications."""

    def __init__(self, model: SparseModel):
        super().__init__()
        self.model, self.config = model, model.config
        self.config.pruning_method = None

    def forward(self, *, with_representation: bool, **inputs: Tensor) -> ClassificationOutput | SpanOutput:
        with torch.autocast("cpu", enabled=False):
            output = self.model(**inputs)
        if "logits" in output:
            return ClassificationOutput(logits=output.logits)
        return SpanOutput(start_logits=output.start_logits, end_logits=output.end_logits)


def side_by_side(tiles: list[list[Tensor]], counts: list[int]) -> Tensor:
    """The columns of every group's tiles, as many as its count, (hidden, tokens)."""
    return join([join([tile[:-1] for tile in group])[:, :n] for group, n in zip(tiles, counts, strict=True)])


def layer_weights(state_dict: dict[str, Tensor], prefix: str, family: Family) -> dict[str, Tensor]:
    """The weights of the layer whose names begin with `prefix`, by BERT's names for its modules where it has them."""
    names, weights = {theirs: ours for ours, theirs in family.layer_names.items()}, {}
    for name, value in state_dict.items():
        if name.startswith(prefix):
            module, _, part = name.removeprefix(prefix).rpartition(".")
            weights[f"{names.get(module, module)}.{part}"] = value
    return weights


def bert_config(config: PreTrainedConfig) -> BertConfig:
    """The sizes of a family's layers by BERT's names for them."""
    family, eps = FAMILIES[family_of(config.model_type)], getattr(config, "layer_norm_eps", 1e-12)  # DistilBERT's
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act")
    return BertConfig(layer_norm_eps=eps, **{name: getattr(config, family.key(name)) for name in names})


def load_sparse(directory: str | Path) -> SparseModel:
    """The folded model in `directory`, in dense or sparse form, ready to run; InputError if there is none in it."""
    directory = Path(directory)
    if not directory.is_dir():
        raise InputError(f"{directory}: no such folder")
    path = directory / "config.json"
    try:
        values = json.loads(path.read_text())
        kind, (architecture, *_) = values["model_type"], values["architectures"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not the configuration of a model ({error!r})") from None
    if is_masked(str(kind)):
        raise InputError(f"{directory}: a masked model; fold it first, with bertarize.py")
    if kind != MODELS.get(architecture, ("",))[0]:
        raise InputError(f"{path}: {architecture} of type {kind} is none of {', '.join(MODELS)}")
    try:
        config = plain_class(kind, "Config").from_dict(values)
        with torch.device("meta"):
            expected = plain_class(*MODELS[architecture])(config).state_dict()
    except Exception as error:  # its checks raise errors of many kinds
        raise InputError(f"{path}: {' '.join(str(error).split())[:120]}") from None
    if not config.num_hidden_layers:
        raise InputError(f"{path}: num_hidden_layers is 0, so nothing is pruned")
    path = directory / FILE
    if path.exists():
        state = read_sparse(directory)
    else:
        path = directory / "model.safetensors"
        if not path.exists():
            raise InputError(f"{directory}: neither {FILE} nor {path.name} is there")
        state = {name: value.float() for name, value in read_tensors(path).items()}
    if any(name.endswith("mask_scores") for name in state):
        raise InputError(f"{path}: it holds mask_scores, so it is a masked model; fold it first, with bertarize.py")
    for name, value in expected.items():
        if name not in state:
            raise InputError(f"{path}: {name} is missing")
        if state[name].shape != value.shape:
            raise InputError(f"{path}: {name} has shape {list(state[name].shape)}, not {list(value.shape)}")
    return SparseModel(config, state, directory.resolve())
