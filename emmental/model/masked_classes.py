"""The masked classes of every family: MaskedBertConfig, MaskedBertForSequenceClassification, and so on.

They are made from the entries of model.families and transformers' own classes, whose heads and names they keep, and
are registered with its AutoConfig and AutoModels.
"""

from dataclasses import dataclass
from functools import cache

import torch
import transformers
from transformers import AutoConfig, AutoModelForQuestionAnswering, AutoModelForSequenceClassification
from transformers.modeling_outputs import ModelOutput

from emmental.model.families import FAMILIES, MASKED
from emmental.model.heads import ANSWERS, CLASSIFIES
from emmental.model.masked_model import Hidden, MaskedConfig, MaskedModel, with_score_init

PADDING_LOGIT = -1e4  # e^-10000 is 0 in every precision, and stays finite through a temperature


@dataclass
class ClassificationOutput(ModelOutput):
    """`logits` (batch, labels); `representation` (batch, hidden), the loss's anchor, not normalised, or None."""

    logits: torch.FloatTensor | None = None
    representation: torch.FloatTensor | None = None

    @property
    def classifications(self) -> tuple[torch.Tensor, ...]:
        return (self.logits,)


@dataclass
class SpanOutput(ModelOutput):
    """`start_logits`, `end_logits` (batch, length); `representation` (batch, hidden), not normalised, or None."""

    start_logits: torch.FloatTensor | None = None
    end_logits: torch.FloatTensor | None = None
    representation: torch.FloatTensor | None = None

    @property
    def classifications(self) -> tuple[torch.Tensor, ...]:
        """A span is two classifications over positions."""
        return self.start_logits, self.end_logits


class MaskedClassifier(MaskedModel):
    """A sentence or sentence pair -> `config.num_labels` logits."""

    def features(self, hidden: Hidden) -> torch.Tensor:
        """What the head's last linear reads, but for the dropout before it, (batch, hidden)."""
        over_all = getattr(self.config, "classifier_pooling", "cls") == "mean"
        return self.through(self.family.features, hidden.mean() if over_all else hidden.first)

    def represent(self, hidden: Hidden) -> torch.Tensor:
        # as released: `cls` is the tanh pooler's output here (D6), in general what the head's last linear reads
        return self.features(hidden) if self.config.alignrep == "cls" else hidden.mean()

    def forward(
        self, input_ids, attention_mask=None, token_type_ids=None, *, with_representation: bool = True
    ) -> ClassificationOutput:
        """The logits, and `with_representation` the anchor; without it first tokens may be all that is computed."""
        inputs, cls = (input_ids, attention_mask, token_type_ids), self.config.alignrep == "cls"
        hidden = self.hidden_states(*inputs, first_only=cls or not with_representation)
        features = self.get_submodule(self.family.dropout)(self.features(hidden))
        output = ClassificationOutput(logits=self.get_submodule(self.family.classifier)(features))
        if with_representation:
            # as released: the cls anchor is taken after dropout, mean-pooling has none of its own (D5)
            output.representation = features if cls else self.represent(hidden)
        return output


class MaskedAnswerer(MaskedModel):
    """A question and a window of a passage -> logits of the answer's first and last token."""

    def represent(self, hidden: Hidden) -> torch.Tensor:
        # as released: `cls` is the raw hidden state here, there is no pooler (D6)
        return hidden.first if self.config.alignrep == "cls" else hidden.mean()

    def forward(
        self, input_ids, attention_mask=None, token_type_ids=None, *, with_representation: bool = True
    ) -> SpanOutput:
        """With packing on, padding is no part of the span: its logits are -10000. Off, it is, as released (D37)."""
        hidden = self.hidden_states(input_ids, attention_mask, token_type_ids)
        logits = self.through(self.family.span_head, hidden.tokens)
        if self.packing:
            logits = logits.masked_fill(hidden.mask[..., None] == 0, PADDING_LOGIT)
        start, end = logits.unbind(-1)
        anchor = self.represent(hidden) if with_representation else None
        return SpanOutput(start_logits=start, end_logits=end, representation=anchor)


HEADS = {
    CLASSIFIES: (MaskedClassifier, AutoModelForSequenceClassification),
    ANSWERS: (MaskedAnswerer, AutoModelForQuestionAnswering),
}


def plain_class(family: str, kind: str) -> type:
    """transformers' own class of a family; `kind` is one of HEADS, "Config", or "Model" without a head."""
    return getattr(transformers, FAMILIES[family].prefix + (kind if kind in ("Config", "Model") else f"For{kind}"))


@cache
def masked_class(family: str, kind: str) -> type:
    """The masked class of a family, named as transformers' own with Masked before it; `kind` as in plain_class."""
    plain = plain_class(family, kind)
    about = {"__module__": __name__, "__qualname__": f"Masked{plain.__name__}"}
    if kind == "Config":
        bases, about["model_type"], about["__doc__"] = (MaskedConfig, plain), MASKED + family, MaskedConfig.__doc__
    else:
        bases, about["__doc__"] = (HEADS[kind][0], plain), HEADS[kind][0].__doc__
        about |= {"family": FAMILIES[family], "config_class": masked_class(family, "Config")}
    return type(about["__qualname__"], bases, about)


for _family in FAMILIES:
    _config = masked_class(_family, "Config")
    globals()[_config.__name__] = _config
    AutoConfig.register(_config.model_type, _config)
    with_score_init(plain_class(_family, "Model"))
    for _kind, (_, _auto) in HEADS.items():
        _model = masked_class(_family, _kind)
        globals()[_model.__name__] = _model
        _auto.register(_config, _model)
