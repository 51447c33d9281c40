"""transformers' own BERT with masked encoder linears and one representation of each text.

The student is masked; with `pruning_method` None the same code is the dense teacher. Of a masked model only the
encoder's matrices are masked: embeddings are frozen, pooler and head stay dense and are trained (arXiv 2005.07683,
section 5). The representation is what the contrastive losses align (arXiv 2112.07198): the anchor comes from `forward`,
the bank rows from `encode`.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.nn.functional import normalize
from transformers import (
    AutoConfig,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    BertConfig,
)
from transformers.modeling_outputs import ModelOutput
from transformers.models.bert.modeling_bert import BertModel, BertPreTrainedModel

from emmental.model.dropout import swap_dropout
from emmental.model.packing import ATTENTION, Packing, first_tokens
from emmental.pruning.masked_linear import MaskedLinear, mask_linears, masked_linears

PADDING_LOGIT = -1e4  # e^-10000 is 0 in every precision, and stays finite through a temperature


class MaskedBertConfig(BertConfig):
    """BERT's config, how its encoder is masked (`pruning_method` None: not at all), and what represents a text.

    `threshold` is None until training; then the final one, at which a loaded model evaluates.
    """

    model_type = "masked_bert"
    OWN: ClassVar = ("model_type", "pruning_method", "mask_init", "mask_scale", "alignrep", "threshold")

    pruning_method: str | None = "topK"
    mask_init: str = "constant"
    mask_scale: float | int = 0.0
    alignrep: str = "cls"
    threshold: float | int | None = None


@dataclass
class ClassificationOutput(ModelOutput):
    """`logits` (batch, labels); `representation` (batch, hidden), the loss's anchor, not normalised."""

    logits: torch.FloatTensor | None = None
    representation: torch.FloatTensor | None = None

    @property
    def classifications(self) -> tuple[torch.Tensor, ...]:
        return (self.logits,)


@dataclass
class SpanOutput(ModelOutput):
    """`start_logits`, `end_logits` (batch, length); `representation` (batch, hidden), not normalised."""

    start_logits: torch.FloatTensor | None = None
    end_logits: torch.FloatTensor | None = None
    representation: torch.FloatTensor | None = None

    @property
    def classifications(self) -> tuple[torch.Tensor, ...]:
        """A span is two classifications over positions."""
        return self.start_logits, self.end_logits


class MaskedEncoderBert(BertModel):
    """BertModel that also initialises scores: from_pretrained asks the innermost model that holds a module."""

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, MaskedLinear) and module.method.scored:
            module.reset_scores()


class MaskedBert(BertPreTrainedModel):
    """What both models share: the masked encoder, packing and the representation."""

    config_class = MaskedBertConfig
    packing = True

    def __init__(self, config: MaskedBertConfig, add_pooling_layer: bool):
        super().__init__(config)
        config._attn_implementation = ATTENTION
        self.bert = MaskedEncoderBert(config, add_pooling_layer=add_pooling_layer)
        if config.pruning_method is not None:
            mask_linears(self.bert.encoder, config.pruning_method, config.mask_init, config.mask_scale)
        swap_dropout(self.bert)
        self.freeze_embeddings()
        for linear in masked_linears(self.bert).values():
            linear.threshold = config.threshold

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        loaded = super().from_pretrained(*args, **kwargs)
        (loaded[0] if isinstance(loaded, tuple) else loaded).freeze_embeddings()
        return loaded

    def freeze_embeddings(self) -> None:
        """Freezes a masked model's embeddings; again after from_pretrained, which makes new parameters."""
        if self.config.pruning_method is not None:
            self.bert.embeddings.requires_grad_(False)

    def hidden_states(
        self, input_ids, attention_mask=None, token_type_ids=None, *, first_alone: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The last layer's output (batch, length, hidden), and the attention mask (batch, length) on its device.

        Padding is zero with packing on. A row without any real token counts its first, so that every row has a
        finite representation. `first_alone` says that only first tokens will be read; with packing on nothing else is
        computed in the last layer, and the length is 1.
        """
        device = self.bert.embeddings.word_embeddings.weight.device
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        attention_mask = (attention_mask != 0).long()
        attention_mask[:, :1] = 1
        positions = torch.arange(input_ids.shape[1], device=device).expand_as(input_ids)
        token_type_ids = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        inputs = [x.to(device, non_blocking=True) for x in (input_ids, token_type_ids, positions)]
        if self.packing:
            packing = Packing(attention_mask, device)
            inputs = [packing.pack(x) for x in inputs]
        attention_mask = attention_mask.to(device, non_blocking=True)
        embedded = self.bert.embeddings(input_ids=inputs[0], token_type_ids=inputs[1], position_ids=inputs[2])
        if self.packing and first_alone:
            *layers, last = self.bert.encoder.layer
            for layer in layers:
                embedded = layer(embedded, packing=packing)
            return first_tokens(last, embedded, packing)[:, None], attention_mask
        if self.packing:
            return packing.unpack(self.bert.encoder(embedded, packing=packing).last_hidden_state), attention_mask
        keys = attention_mask.bool()[:, None, None]
        return self.bert.encoder(embedded, attention_mask=keys).last_hidden_state, attention_mask

    def represent(self, hidden: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """(batch, length, hidden) -> (batch, hidden): `alignrep`'s pooling, before any dropout."""
        if self.config.alignrep == "cls":
            return self.first_token(hidden)
        weights = attention_mask[..., None].to(hidden.dtype)
        return (hidden * weights).sum(1) / weights.sum(1)

    def encode(self, input_ids, attention_mask=None, token_type_ids=None) -> torch.Tensor:
        """The representation as the banks store it, (batch, hidden): of length 1, in the mode the model is in."""
        inputs = input_ids, attention_mask, token_type_ids
        hidden, attention_mask = self.hidden_states(*inputs, first_alone=self.config.alignrep == "cls")
        return normalize(self.represent(hidden, attention_mask).float(), dim=-1)


class MaskedBertForSequenceClassification(MaskedBert):
    """A sentence or sentence pair -> `config.num_labels` logits."""

    def __init__(self, config: MaskedBertConfig):
        super().__init__(config, add_pooling_layer=True)
        p = config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
        self.dropout = nn.Dropout(p)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def first_token(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.bert.pooler(hidden)  # as released: `cls` is the tanh pooler's output here (D6)

    def forward(self, input_ids, attention_mask=None, token_type_ids=None) -> ClassificationOutput:
        inputs = input_ids, attention_mask, token_type_ids
        hidden, attention_mask = self.hidden_states(*inputs, first_alone=self.config.alignrep == "cls")
        pooled = self.dropout(self.bert.pooler(hidden))
        # as released: the cls anchor is taken after dropout, mean-pooling has none of its own (D5)
        anchor = pooled if self.config.alignrep == "cls" else self.represent(hidden, attention_mask)
        return ClassificationOutput(logits=self.classifier(pooled), representation=anchor)


class MaskedBertForQuestionAnswering(MaskedBert):
    """A question and a window of a passage -> logits of the answer's first and last token."""

    def __init__(self, config: MaskedBertConfig):
        super().__init__(config, add_pooling_layer=False)
        self.qa_outputs = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def first_token(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden[:, 0]  # as released: `cls` is the raw hidden state here, there is no pooler (D6)

    def forward(self, input_ids, attention_mask=None, token_type_ids=None) -> SpanOutput:
        """With packing on, padding is no part of the span: its logits are -10000. Off, it is, as released (D37)."""
        hidden, attention_mask = self.hidden_states(input_ids, attention_mask, token_type_ids)
        logits = self.qa_outputs(hidden)
        if self.packing:
            logits = logits.masked_fill(attention_mask[..., None] == 0, PADDING_LOGIT)
        start, end = logits.unbind(-1)
        return SpanOutput(start_logits=start, end_logits=end, representation=self.represent(hidden, attention_mask))


AutoConfig.register("masked_bert", MaskedBertConfig)
AutoModelForSequenceClassification.register(MaskedBertConfig, MaskedBertForSequenceClassification)
AutoModelForQuestionAnswering.register(MaskedBertConfig, MaskedBertForQuestionAnswering)
