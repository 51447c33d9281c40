"""The encoder families that can be pruned, one entry each: what the method must know of transformers' own models.

The masked classes, their loading, folding and counting are made from these entries; to add a family is to add an entry
and its tests. No torch here: a model's folder is checked against them before torch is imported.
"""

from dataclasses import dataclass, field

from emmental.utils.errors import InputError

MASKED = "masked_"  # before a family's name: the model_type of its masked model


@dataclass(frozen=True)
class Family:
    """One family, by transformers' names; a module's name is its path in the model, or in the inner model.

    A classifier's logits come from its first token by way of `features`, `dropout` and `classifier` in turn, a span's
    from every token by way of `span_head`; a step is a module's path or the name of an activation. What the last
    linear of a classifier reads is what `--alignrep cls` aligns; a span's is the first token's last hidden state.
    """

    prefix: str  # of the class names, as in RobertaForSequenceClassification
    features: tuple[str, ...]
    dropout: str
    classifier: str
    new_weights: tuple[str, ...]  # what a pre-trained model may lack: prefixes of names
    span_head: tuple[str, ...] = ("qa_outputs",)
    embeddings: tuple[str, ...] = ("embeddings",)  # of the inner model, frozen while it is pruned
    encoder: str = "encoder"  # of the inner model; every linear in it is masked
    feed_forward: tuple[str, str] | None = ("intermediate.dense", "output.dense")  # of a layer; None: not of this kind
    token_types: bool = True
    offset_positions: bool = False  # position ids begin after the padding token's id
    packing: bool = True
    first_tokens: str | None = "bert"  # a key of packing.FIRST_TOKENS: how a layer computes its first tokens alone
    # sizes in its config, and what they are where it says nothing
    sizes: dict[str, int] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)  # sizes that its config names otherwise than BERT's

    def size(self, config: dict, name: str) -> object:
        """A size by BERT's name for it, as the config has it, or else the default."""
        return config.get(self.renamed.get(name, name), self.sizes[name])


BERT_SIZES = {
    "hidden_size": 768,
    "vocab_size": 30522,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
}

FAMILIES = {
    "bert": Family(
        prefix="Bert",
        features=("bert.pooler.dense", "bert.pooler.activation"),
        dropout="dropout",
        classifier="classifier",
        new_weights=("bert.pooler.", "classifier.", "qa_outputs."),
        sizes=BERT_SIZES,
    ),
}


def family_of(model_type: object) -> str | None:
    """The family of a config's model_type, masked or not; None where it is none of those above."""
    name = str(model_type).removeprefix(MASKED)
    return name if name in FAMILIES else None


def is_masked(model_type: str) -> bool:
    return model_type.startswith(MASKED)


def check_family(where: str, model_type: object) -> str:
    """The family of a model_type; InputError, which lists those that can be pruned, for any other."""
    if (name := family_of(model_type)) is None:
        raise InputError(f"{where}: model_type is {model_type!r}, not one of {', '.join(FAMILIES)}")
    return name
