"""What makes one of transformers' own encoders a masked model with one representation of each text.

The student is masked; with `pruning_method` None the same code is the dense teacher. Of a masked model only the
encoder's matrices are masked: embeddings are frozen, pooler and head stay dense and are trained (arXiv 2005.07683,
section 5). The representation is what the contrastive losses align (arXiv 2112.07198): the anchor comes from `forward`,
the bank rows from `encode`.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import torch
from torch import nn
from torch.nn.functional import normalize
from transformers.activations import ACT2FN

from emmental.model.dropout import swap_dropout
from emmental.model.families import Family
from emmental.model.packing import ATTENTION, FIRST_TOKENS, Packing
from emmental.pruning.masked_linear import SCORE_INITS, MaskedLinear, mask_linears, masked_linears
from emmental.pruning.products import masked_products
from emmental.utils.errors import InputError
from emmental.utils.transfers import to_device


@dataclass(kw_only=True)
class MaskedConfig:
    """What a masked model's config adds: how its encoder is masked (`pruning_method` None: not at all), and what
    represents a text.

    `threshold` is None until training; then the final one, at which a loaded model evaluates.
    """

    OWN: ClassVar = ("model_type", "pruning_method", "mask_init", "mask_scale", "alignrep", "threshold")

    pruning_method: str | None = "topK"
    mask_init: str = "constant"
    mask_scale: float | int = 0.0
    alignrep: str = "cls"
    threshold: float | int | None = None


@dataclass(frozen=True)
class Hidden:
    """The last layer's output: of each text's first token (batch, hidden), and of all tokens (batch, length, hidden)
    with their mask (batch, length); None where only first tokens were computed."""

    first: torch.Tensor
    tokens: torch.Tensor | None = None
    mask: torch.Tensor | None = None

    def mean(self) -> torch.Tensor:
        """The mean over the real tokens, (batch, hidden)."""
        weights = self.mask[..., None].to(self.tokens.dtype)
        return (self.tokens * weights).sum(1) / weights.sum(1)


POOLER = (".pooler.dense.weight", ".pooler.dense.bias")  # of a span model that the released code saved; nothing read it


def pass_over_pooler(model: nn.Module, state: dict, prefix: str, *_) -> None:
    """Takes a pooler out of a state dict for a model that has none (D67)."""
    own = {prefix + name for name, _ in model.named_parameters()}
    for name in [name for name in state if name.endswith(POOLER) and name not in own]:
        del state[name]


class ScoreInit:
    """Initialises scores with the weights. For the inner model, since from_pretrained calls `_init_weights` of the
    innermost model that contains a module."""

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, MaskedLinear) and module.method.scored:
            module.reset_scores()


@cache
def with_score_init(inner: type) -> type:
    """transformers' inner model with ScoreInit; made on import for every family, so that a pickle finds it by name."""
    made = type(f"Masked{inner.__name__}", (ScoreInit, inner), {"__module__": __name__})
    globals()[made.__name__] = made
    return made


class MaskedModel(ABC):
    """What all masked models share: the masked encoder, packing and the representation.

    To be mixed in before one of transformers' own models with a head, whose modules and names are kept.
    """

    family: ClassVar[Family]
    _keep_in_fp32_modules_strict: ClassVar = ["mask_scores"]  # whatever dtype from_pretrained is asked for
    supports_gradient_checkpointing = False  # a layer computed again would not find its products.Together
    packing = True

    @abstractmethod
    def represent(self, hidden: Hidden) -> torch.Tensor:
        """`alignrep`'s pooling, (batch, hidden), before any dropout of the anchor's own."""

    def __init__(self, config: MaskedConfig):
        if config.alignrep not in ("cls", "mean-pooling"):
            raise InputError(f"alignrep {config.alignrep!r}: cls or mean-pooling")
        if config.mask_init not in SCORE_INITS:
            raise InputError(f"mask_init {config.mask_init!r}: one of {', '.join(SCORE_INITS)}")
        super().__init__(config)
        config._attn_implementation = ATTENTION
        self.base_model.__class__ = with_score_init(type(self.base_model))
        if config.pruning_method is not None:
            mask_linears(self.encoder, config.pruning_method, config.mask_init, config.mask_scale)
            for module in self.encoder.modules():  # once more: some layers initialise their linears themselves
                module._is_hf_initialized = False
            self.post_init()
        swap_dropout(self.base_model)
        self.freeze_embeddings()
        for linear in masked_linears(self.encoder).values():
            linear.threshold = config.threshold
        self.register_load_state_dict_pre_hook(pass_over_pooler)

    @classmethod
    def is_custom_code(cls) -> bool:
        return False  # else from_pretrained passes over layers and heads that initialise the linears in them

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        loaded = super().from_pretrained(*args, **kwargs)
        (loaded[0] if isinstance(loaded, tuple) else loaded).freeze_embeddings()
        return loaded

    @property
    def encoder_name(self) -> str:
        """The path of the encoder, all of whose linears are masked."""
        return f"{self.base_model_prefix}.{self.family.encoder}"

    @property
    def encoder(self) -> nn.Module:
        return self.get_submodule(self.encoder_name)

    @property
    def embeddings(self) -> list[nn.Module]:
        """What makes the first layer's input, in turn; a factorised one ends in a projection to the hidden size."""
        names = (name for name in self.family.embeddings if hasattr(self.base_model, name))
        return [getattr(self.base_model, name) for name in names]

    def freeze_embeddings(self) -> None:
        """Freezes a masked model's embeddings; again after from_pretrained, which makes new parameters."""
        if self.config.pruning_method is not None:
            for module in self.embeddings:
                module.requires_grad_(False)

    def hidden_states(self, input_ids, attention_mask=None, token_type_ids=None, *, first_only: bool = False) -> Hidden:
        """The last layer's output.

        Padding is zero with packing on. The first token of a row counts as real, whatever the mask says of it, so that
        every row has a finite representation (D26). `first_only` says that only first tokens will be read, so that with
        packing on nothing else need be computed in the last layer.
        """
        device = self.base_model.get_input_embeddings().weight.device
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        attention_mask = (attention_mask != 0).long()
        attention_mask[:, :1] = 1
        inputs = {"input_ids": input_ids, "position_ids": self.position_ids(input_ids, device)}
        if self.family.token_types:
            inputs["token_type_ids"] = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        inputs = {name: to_device(x, device) for name, x in inputs.items()}
        packing = Packing(attention_mask, device) if self.packing else None
        attention_mask = to_device(attention_mask, device)
        first_only = first_only and packing is not None and self.family.first_tokens is not None
        with masked_products(self.encoder):
            if packing is None:
                tokens = self.padded_layers(inputs, attention_mask)
                return Hidden(tokens[:, 0], tokens, attention_mask)
            inputs = {name: packing.pack(x) for name, x in inputs.items()}
            hidden = self.packed_layers(inputs, packing, first_only)
        if first_only:
            return Hidden(hidden)
        tokens = packing.unpack(hidden)
        return Hidden(tokens[:, 0], tokens, attention_mask)

    def embed(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """The first layer's input, (batch, length, hidden)."""
        first, *others = self.embeddings
        embedded = first(**inputs)
        for module in others:
            embedded = module(embedded)
        return embedded

    def padded_layers(self, inputs: dict[str, torch.Tensor], attention_mask: torch.Tensor) -> torch.Tensor:
        """The last layer's output, all of (batch, length, hidden) computed."""
        if self.family.rotary:
            return self.base_model(**inputs, attention_mask=attention_mask).last_hidden_state
        keys = attention_mask.bool()[:, None, None]
        return self.encoder(self.embed(inputs), attention_mask=keys).last_hidden_state

    def packed_layers(self, inputs: dict[str, torch.Tensor], packing: Packing, first_only: bool) -> torch.Tensor:
        """The last layer's output, (1, tokens, hidden), or of first tokens alone, (batch, hidden)."""
        if self.family.rotary:
            masks = {"full_attention": None, "sliding_attention": None}  # the packing knows what may be attended to
            return self.base_model(**inputs, attention_mask=masks, packing=packing).last_hidden_state
        hidden = self.embed(inputs)
        if not first_only:
            return self.encoder(hidden, packing=packing).last_hidden_state
        *layers, last = self.encoder.layer
        for layer in layers:
            hidden = layer(hidden, packing=packing)
        return FIRST_TOKENS[self.family.first_tokens](last, hidden, packing)

    def position_ids(self, input_ids: torch.Tensor, device: torch.device) -> torch.Tensor:
        """The position of each token, (batch, length)."""
        if self.family.after_padding:
            embeddings = self.base_model.embeddings
            return embeddings.create_position_ids_from_input_ids(input_ids, embeddings.padding_idx)
        return torch.arange(input_ids.shape[1], device=device).expand_as(input_ids)

    def through(self, steps: tuple[str, ...], x: torch.Tensor) -> torch.Tensor:
        """`x` through some of the head's modules and activations, as the family's entry names them."""
        for step in steps:
            x = (ACT2FN[step] if step in ACT2FN else self.get_submodule(step))(x)
        return x

    def encode(self, input_ids, attention_mask=None, token_type_ids=None) -> torch.Tensor:
        """The representation as the banks store it, (batch, hidden): of length 1, in the mode the model is in."""
        inputs = input_ids, attention_mask, token_type_ids
        hidden = self.hidden_states(*inputs, first_only=self.config.alignrep == "cls")
        return normalize(self.represent(hidden).float(), dim=-1)
