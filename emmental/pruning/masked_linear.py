"""A linear layer whose weight is multiplied by a mask, and the swap of an encoder's linears for it.

Masks are made once, by `set_threshold`, and used until the next call: the scores move once per optimizer step, so
every forward in between, encoding and evaluation included, shares them.
"""

import math
from collections import defaultdict

import torch
from torch import nn

from emmental.pruning.masks import StraightThrough, binary_mask, hard_concrete
from emmental.pruning.methods import METHODS

# --mask_init -> what fills a matrix's scores, given --mask_scale; each looks nn.init up when called, since
# from_pretrained exchanges its functions for ones that leave loaded tensors alone
SCORE_INITS = {
    "constant": lambda scores, scale: nn.init.constant_(scores, scale),
    "uniform": lambda scores, scale: nn.init.uniform_(scores, -scale, scale),
    "kaiming": lambda scores, scale: nn.init.kaiming_uniform_(scores, a=math.sqrt(5)),
}


class MaskedLinear(nn.Linear):
    """`y = x (W * mask)^T + b` (arXiv 2005.07683, section 3), with one score per weight where the method learns them.

    `mask_init`: constant (every score is `mask_scale`), uniform (in +-`mask_scale`) or kaiming. KeyError for another,
    or for a `pruning_method` that METHODS lacks. Before a threshold is set the layer is dense. Scores are float32
    whatever the weights are: masks of rounded scores would be others.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        mask_init: str = "constant",
        mask_scale: float = 0.0,
        pruning_method: str = "topK",
    ):
        super().__init__(in_features, out_features, bias)
        self.method = METHODS[pruning_method]
        self.mask_init, self.mask_scale = mask_init, mask_scale
        self.threshold: float | None = None
        self.mask: torch.Tensor | None = None  # no buffer: a saved model holds scores, from which masks follow
        self.together = None  # products.Together, where its masked weight is made with those of others
        if self.method.scored:
            self.mask_scores = nn.Parameter(torch.empty_like(self.weight, dtype=torch.float32))
            self.reset_scores()

    def reset_scores(self) -> None:
        """Initialises the scores; from_pretrained calls it again, since it builds on a device without memory."""
        SCORE_INITS[self.mask_init](self.mask_scores, self.mask_scale)

    @property
    def ranking(self) -> torch.Tensor:
        """What the method ranks or compares: the scores, or the weight itself, (out_features, in_features)."""
        return self.mask_scores if self.method.scored else self.weight

    def current_mask(self) -> torch.Tensor:
        """The mask at the threshold that is set, of the weight's shape, with its gradient to the scores."""
        if self.method.smooth:
            return hard_concrete(self.mask_scores, sample=self.training).to(self.weight.dtype)
        mask = self.constant_mask()
        return StraightThrough.apply(self.mask_scores, mask) if self.method.scored else mask

    def constant_mask(self) -> torch.Tensor:
        """The binary mask at the threshold that is set, without a gradient; made if a load or a move dropped it."""
        if self.mask is None:
            set_threshold(self, self.threshold)
        return self.mask

    def masked_weight(self) -> torch.Tensor:
        return self.weight if self.threshold is None else self.weight * self.current_mask()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        weight, bias = self.together.products[self] if self.together else (self.masked_weight(), self.bias)
        return nn.functional.linear(inputs, weight, bias)

    def _load_from_state_dict(self, *args, **kwargs):
        super()._load_from_state_dict(*args, **kwargs)
        self.mask = None

    def _apply(self, fn, *args, **kwargs):
        self.mask = None  # a mask of another device or type is of no use
        scores = getattr(self, "mask_scores", None)
        own = [] if scores is None else [id(scores), id(scores.grad)]

        # `fn` is that of to(), half() and the like; scores follow its device alone
        def moved(tensor: torch.Tensor) -> torch.Tensor:
            changed = fn(tensor)
            return tensor.to(changed.device) if id(tensor) in own and changed.dtype != tensor.dtype else changed

        return super()._apply(moved, *args, **kwargs)


def masked_linears(model: nn.Module) -> dict[str, MaskedLinear]:
    """The masked matrices of a model by name, in the order of its modules."""
    return {name: module for name, module in model.named_modules() if isinstance(module, MaskedLinear)}


def mask_linears(encoder: nn.Module, pruning_method: str, mask_init: str, mask_scale: float) -> None:
    """Swaps every nn.Linear in `encoder` for a MaskedLinear of the same shape; weights are not carried over."""
    for parent in list(encoder.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                shape = child.in_features, child.out_features, child.bias is not None
                setattr(parent, name, MaskedLinear(*shape, mask_init, mask_scale, pruning_method))


@torch.inference_mode(False)  # a mask made under inference_mode would be of no use to a later backward
@torch.no_grad()
def set_threshold(model: nn.Module, threshold: float) -> None:
    """Sets the threshold of every MaskedLinear and makes its mask anew from the present scores and weights.

    A masked model's config gets it as well, and is saved with it. Matrices of one size are done together on a device,
    see `equal_sized`.
    """
    linears = list(masked_linears(model).values())
    if linears and hasattr(getattr(model, "config", None), "threshold"):
        model.config.threshold = threshold
    for linear in linears:
        linear.threshold = threshold
    for group in equal_sized([linear for linear in linears if not linear.method.smooth]):
        masks = binary_mask(group[0].method, stack_rows([linear.ranking for linear in group]), threshold)
        for linear, mask in zip(group, masks, strict=True):
            linear.mask = mask.view_as(linear.weight).to(linear.weight.dtype)


def equal_sized(linears: list[MaskedLinear]) -> list[list[MaskedLinear]]:
    """Groups of matrices of one method and as many elements, to be computed as rows of one tensor.

    A device then launches one kernel where it would launch dozens; the CUDA topk also wants more than ten rows at a
    time, since fewer long ones it sorts. A CPU takes each matrix alone and so need not copy them.
    """
    groups = defaultdict(list)
    for number, linear in enumerate(linears):
        alone = number if linear.weight.device.type == "cpu" else None
        groups[linear.method, linear.weight.numel(), alone].append(linear)
    return list(groups.values())


def stack_rows(matrices: list[torch.Tensor]) -> torch.Tensor:
    """Matrices of n elements each as rows, (matrices, n); of a single one no copy is made."""
    return matrices[0].flatten()[None] if len(matrices) == 1 else torch.stack([x.flatten() for x in matrices])


@torch.no_grad()
def kept_weights(linear: MaskedLinear) -> torch.Tensor:
    """The number of weights that the present mask keeps, of `linear.weight.numel()`, a scalar on the layer's device."""
    if linear.threshold is None:
        return torch.tensor(linear.weight.numel(), device=linear.weight.device)
    # deterministic: to count must not consume random numbers
    mask = hard_concrete(linear.mask_scores) if linear.method.smooth else linear.current_mask()
    return torch.count_nonzero(mask)
