"""The encoder families that can be pruned, one entry each: what the method must know of transformers' own models.

The masked classes, their loading, folding and counting are made from these entries; to add a family is to add an entry
and its tests. No torch here: a model's folder is checked against them before torch is imported.
"""

from dataclasses import dataclass, field

from emmental.utils.errors import InputError

LAYER = r"\.layers?\.(\d+)\."  # in the name of a weight of the encoder, every family's, with the layer's number
MASKED = "masked_"  # before a family's name: the model_type of its masked model


HIDDEN, INTERMEDIATE = "hidden_size", "intermediate_size"
BERT_MATRICES = (*4 * ((1, HIDDEN, HIDDEN),), (1, INTERMEDIATE, HIDDEN), (1, HIDDEN, INTERMEDIATE))


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
    feed_forward: tuple[str, str] = ("intermediate.dense", "output.dense")  # of a layer, the two matrices
    gated: bool = False  # the first has a second half, each of whose rows is multiplied into a neuron of the first half
    token_types: bool = True
    after_padding: bool = False  # positions are counted from the id of the padding token on, which comes first
    rotary: bool = False  # positions turn queries and keys in every layer, and some layers attend to neighbours alone
    first_tokens: str | None = "bert"  # a key of packing.FIRST_TOKENS: how a layer computes its first tokens alone
    # BERT's names for a layer's modules -> this family's, for load_sparse, which has another kind of layer if rotary
    layer_names: dict[str, str] = field(default_factory=dict)
    matrices: tuple[tuple[int, str, str], ...] = BERT_MATRICES  # of a layer: factor * one size by another
    sizes: dict[str, int] = field(default_factory=dict)  # in its config, and what they are where it says nothing
    renamed: dict[str, str] = field(default_factory=dict)  # BERT's name of a setting -> this family's

    def key(self, name: str) -> str:
        """The name in this family's config of what BERT's calls `name`."""
        return self.renamed.get(name, name)

    def size(self, config: dict, name: str) -> int:
        """A size by BERT's name for it, as the config has it, or else the default."""
        return config.get(self.key(name), self.sizes[self.key(name)])

    def matrix_sizes(self, config: dict) -> list[int]:
        """How many weights each masked matrix of a model has."""
        layer = [factor * self.size(config, x) * self.size(config, y) for factor, x, y in self.matrices]
        return layer * self.size(config, "num_hidden_layers")


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
    "roberta": Family(
        prefix="Roberta",
        features=("classifier.dropout", "classifier.dense", "tanh"),
        dropout="classifier.dropout",
        classifier="classifier.out_proj",
        new_weights=("classifier.", "qa_outputs."),
        after_padding=True,
        sizes=BERT_SIZES | {"vocab_size": 50265},
    ),
    "electra": Family(
        prefix="Electra",
        features=("classifier.dropout", "classifier.dense", "classifier.activation"),
        dropout="classifier.dropout",
        classifier="classifier.out_proj",
        new_weights=("classifier.", "qa_outputs."),
        embeddings=("embeddings", "embeddings_project"),
        sizes=BERT_SIZES | {"hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024},
    ),
    "distilbert": Family(
        prefix="DistilBert",
        features=("pre_classifier", "relu"),
        dropout="dropout",
        classifier="classifier",
        new_weights=("pre_classifier.", "classifier.", "qa_outputs."),
        span_head=("dropout", "qa_outputs"),
        encoder="transformer",
        feed_forward=("ffn.lin1", "ffn.lin2"),
        token_types=False,
        first_tokens="distilbert",
        layer_names={
            "attention.self.query": "attention.q_lin",
            "attention.self.key": "attention.k_lin",
            "attention.self.value": "attention.v_lin",
            "attention.output.dense": "attention.out_lin",
            "attention.output.LayerNorm": "sa_layer_norm",
            "intermediate.dense": "ffn.lin1",
            "output.dense": "ffn.lin2",
            "output.LayerNorm": "output_layer_norm",
        },
        sizes={"dim": 768, "n_layers": 6, "n_heads": 12, "hidden_dim": 3072}
        | {name: BERT_SIZES[name] for name in ("vocab_size", "max_position_embeddings")},
        renamed={
            "hidden_size": "dim",
            "num_hidden_layers": "n_layers",
            "num_attention_heads": "n_heads",
            "intermediate_size": "hidden_dim",
            "hidden_act": "activation",
        },
    ),
    "modernbert": Family(
        prefix="ModernBert",
        features=("head",),
        dropout="drop",
        classifier="classifier",
        new_weights=("head.", "classifier."),
        span_head=("head", "drop", "classifier"),
        encoder="layers",
        feed_forward=("mlp.Wi", "mlp.Wo"),
        gated=True,
        matrices=((3, HIDDEN, HIDDEN), (1, HIDDEN, HIDDEN), (2, INTERMEDIATE, HIDDEN), (1, HIDDEN, INTERMEDIATE)),
        token_types=False,
        rotary=True,
        first_tokens=None,
        renamed={"hidden_act": "hidden_activation"},
        sizes={
            "hidden_size": 768,
            "vocab_size": 50368,
            "num_hidden_layers": 22,
            "num_attention_heads": 12,
            "intermediate_size": 1152,
            "max_position_embeddings": 8192,
        },
    ),
}


# what --model_type and --teacher_type may be: "masked" and "dense" leave the family to the folder's config
TYPES = ("masked", "dense", *(MASKED + name for name in FAMILIES), *FAMILIES)


def is_masked(model_type: str) -> bool:
    """Whether one of TYPES, or a config's model_type, is of a masked model."""
    return model_type.startswith("masked")


def family_of(model_type: object) -> str | None:
    """The family of a config's model_type, masked or not; None where it is none of those above."""
    name = str(model_type).removeprefix(MASKED)
    return name if name in FAMILIES else None


def check_family(where: str, model_type: object) -> str:
    """The family of a model_type; InputError, which lists those that can be pruned, for any other."""
    if (name := family_of(model_type)) is None:
        raise InputError(f"{where}: model_type is {model_type!r}, not one of {', '.join(FAMILIES)}")
    return name


def full_type(asked: str, family: str) -> str:
    """One of TYPES with the family's name: "masked" -> "masked_roberta", "dense" -> "roberta"."""
    return {"masked": MASKED + family, "dense": family}.get(asked, asked)
