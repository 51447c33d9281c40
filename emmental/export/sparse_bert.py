"""A pruned and folded model made fast on a CPU: its encoder runs on compressed sparse rows.

Activations are (features, tokens) from the first layer to the last, cut into tiles by token, because a sparse matrix
times such a tile reads and writes whole rows. Which matrices gain from it is measured when a model is loaded.
"""

import json
import math
import time
import timeit
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig, BertForQuestionAnswering, BertForSequenceClassification
from transformers.activations import ACT2FN
from transformers.modeling_outputs import QuestionAnsweringModelOutput, SequenceClassifierOutput

from emmental.export.sparse_format import FILE, read_sparse, read_tensors
from emmental.model.masked_model import PADDING_LOGIT
from emmental.utils.errors import InputError

MODELS = {model.__name__: model for model in (BertForSequenceClassification, BertForQuestionAnswering)}

# The most tokens of a tile. A sparse product reads whole rows of its input, which should stay in the cache, and 96
# floats are the 12 AVX2 registers that hold one row of its result; a dense product likes wider tiles.
TILE = {"sparse": 96, "dense": 192}


def _sparse(starts: Tensor, columns: Tensor, values: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    # A weighted bag of rows of x is the product with compressed sparse rows, and 2 to 4 times as fast as torch's own.
    return torch.embedding_bag(x, columns, starts, False, 0, False, values, True)[0].add_(bias)


def _to_sparse(weight: Tensor, bias: Tensor) -> Callable:
    row, column = weight.nonzero(as_tuple=True)
    starts = torch.searchsorted(row, torch.arange(len(weight) + 1))
    return partial(_sparse, starts.int(), column.int(), weight[row, column], bias[:, None])


def _to_dense(weight: Tensor, bias: Tensor) -> Callable:
    return partial(torch.addmm, bias[:, None], weight)


# Makers of the function x -> weight @ x + bias.
KERNELS = {"sparse": _to_sparse, "dense": _to_dense}


def _faster(weight: Tensor, bias: Tensor) -> str:
    """The name of the faster kernel for this matrix on this machine; sparse must win clearly."""
    runs = {name: partial(make(weight, bias), torch.ones(len(weight[0]), TILE[name])) for name, make in KERNELS.items()}
    seconds = {name: [] for name in runs}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # timed by one thread's own clock, so that a busy machine does not decide
    try:
        for _ in range(6):
            for name, run in runs.items():
                seconds[name].append(timeit.timeit(run, timer=time.thread_time, number=1) / TILE[name])
    finally:
        torch.set_num_threads(threads)
    return "sparse" if min(seconds["sparse"]) < 0.8 * min(seconds["dense"]) else "dense"


class _Layer:
    """One encoder layer on tiles; query, key and value are one matrix."""

    def __init__(self, weights: dict[str, Tensor], config: BertConfig, linear: Callable):
        self.heads, self.eps, self.act = config.num_attention_heads, config.layer_norm_eps, ACT2FN[config.hidden_act]
        scale = (config.hidden_size // self.heads) ** -0.5
        for part in ("weight", "bias"):
            query, key, value = (weights[f"attention.self.{name}.{part}"] for name in ("query", "key", "value"))
            weights[f"attention.self.{part}"] = torch.cat([query * scale, key, value])
        self.qkv, self.attended, self.intermediate, self.output = (
            linear(name, weights[f"{name}.weight"], weights[f"{name}.bias"])
            for name in ("attention.self", "attention.output.dense", "intermediate.dense", "output.dense")
        )
        self.norms = [
            [weights[f"{name}.LayerNorm.{part}"][:, None] for part in ("weight", "bias")]
            for name in ("attention.output", "output")
        ]

    def __call__(self, tiles: list[Tensor], lengths: list[int]) -> list[Tensor]:
        qkv = torch.cat([self.qkv(x) for x in tiles], dim=1)
        context = torch.cat([self._attend(row) for row in qkv.split(lengths, dim=1)], dim=1)
        context = context.split(tiles[0].shape[1], dim=1)
        return [self._feed_forward(x, c.contiguous()) for x, c in zip(tiles, context, strict=True)]

    def _attend(self, qkv: Tensor) -> Tensor:
        """Attention within one row of the batch: (3 * features, tokens) -> (features, tokens)."""
        query, key, value = qkv.view(3, self.heads, -1, qkv.shape[1])
        return (value @ torch.softmax(query.mT @ key, dim=-1).mT).flatten(0, 1)

    def _feed_forward(self, x: Tensor, context: Tensor) -> Tensor:
        x = self._norm(0, self.attended(context).add_(x))
        return self._norm(1, self.output(self.act(self.intermediate(x))).add_(x))

    def _norm(self, which: int, x: Tensor) -> Tensor:
        # Batch statistics over the features are LayerNorm's mean and variance, and fast in this layout.
        weight, bias = self.norms[which]
        return torch.addcmul(bias, F.batch_norm(x, None, None, training=True, eps=self.eps), weight)


class SparseBert(nn.Module):
    """A folded BERT for evaluation on a CPU in float32, made from the plain model's whole `state_dict`.

    `chosen` names each matrix's kernel, sparse or dense: measured once for each shape and percent of density.
    """

    def __init__(self, config: BertConfig, state_dict: dict[str, Tensor]):
        super().__init__()
        self.config, self.layers, self.chosen, measured = config, [], {}, {}
        # Embeddings, pooler and head stay transformers' own.
        around = BertConfig.from_dict(config.to_dict() | {"num_hidden_layers": 0})
        self.plain = MODELS[config.architectures[0]](around).eval().requires_grad_(False)
        self.plain.load_state_dict({name: state_dict[name] for name in self.plain.state_dict()}, assign=True)

        def linear(layer: str, name: str, weight: Tensor, bias: Tensor) -> Callable:
            bucket = (*weight.shape, round(float((weight != 0).float().mean()), 2))
            if bucket not in measured:
                measured[bucket] = _faster(weight, bias)
            self.chosen[layer + name] = measured[bucket]
            return KERNELS[measured[bucket]](weight, bias)

        for layer in (f"bert.encoder.layer.{i}." for i in range(config.num_hidden_layers)):
            weights = {name[len(layer) :]: value for name, value in state_dict.items() if name.startswith(layer)}
            self.layers.append(_Layer(weights, config, partial(linear, layer)))
        self.tile = TILE["sparse" if "sparse" in self.chosen.values() else "dense"]

        self.eval()

    def train(self, mode: bool = True) -> "SparseBert":
        return super().train(False)  # there is nothing to train

    @torch.no_grad()
    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None):
        """Padded inputs, each (batch, length) -> transformers output with logits | start_logits, end_logits.

        Only real tokens are computed; padding gets the span logit -1e4. ValueError where a row begins with padding.
        """
        attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        token_type_ids = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        real = attention_mask.bool()
        if not real[:, 0].all():
            raise ValueError("each row must begin with a real token: pad on the right")
        row, column = real.nonzero(as_tuple=True)
        lengths = real.sum(1).tolist()
        ids, types = input_ids[row, column], token_type_ids[row, column]
        x = self.plain.bert.embeddings(ids[None], types[None], position_ids=column[None])[0].T
        width = len(ids) / math.ceil(len(ids) / self.tile)
        tiles = [tile.contiguous() for tile in x.split(8 * math.ceil(width / 8), dim=1)]
        for layer in self.layers:
            tiles = layer(tiles, lengths)
        hidden = torch.zeros(*input_ids.shape, len(x))
        hidden[row, column] = torch.cat(tiles, dim=1).T

        if isinstance(self.plain, BertForSequenceClassification):
            return SequenceClassifierOutput(logits=self.plain.classifier(self.plain.bert.pooler(hidden)))
        start, end = self.plain.qa_outputs(hidden).masked_fill(~real[..., None], PADDING_LOGIT).unbind(-1)
        return QuestionAnsweringModelOutput(start_logits=start, end_logits=end)


def load_sparse(directory: str | Path) -> SparseBert:
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
    if kind == "masked_bert":
        raise InputError(f"{directory}: a masked model; fold it first, with bertarize.py")
    if kind != "bert" or architecture not in MODELS:
        raise InputError(f"{path}: {architecture} of type {kind} is none of {', '.join(MODELS)}")
    try:
        config = BertConfig.from_dict(values)
        with torch.device("meta"):
            expected = MODELS[architecture](config).state_dict()
    except Exception as error:  # its checks raise errors of many kinds
        raise InputError(f"{path}: {' '.join(str(error).split())[:120]}") from None
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
    return SparseBert(config, state)
