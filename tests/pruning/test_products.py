"""All masked weights at once are what each is alone, and so are their gradients."""

import pytest
import torch
from torch import nn

from emmental import MaskedLinear, set_threshold
from emmental.pruning.products import Together, masked_products
from emmental.utils import distributed


class Elsewhere(torch.Tensor):
    """A CPU tensor that says it is on a GPU."""

    device = property(lambda self: torch.device("cuda"))


def linears(method: str) -> list[MaskedLinear]:
    torch.manual_seed(0)
    made = [MaskedLinear(*shape, pruning_method=method) for shape in ((6, 5), (5, 6, False), (4, 4))]
    for linear in made:
        if linear.method.scored:
            nn.init.normal_(linear.mask_scores)
        set_threshold(linear, 0.4)
    return made


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("method", ["topK", "sigmoied_threshold", "magnitude"])
def test_products_give_what_plain_autograd_gives(method, dtype):
    together, plain = linears(method), linears(method)
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        products = Together(together).products
        for ours, theirs in zip(together, plain, strict=True):
            inputs = torch.randn(3, ours.in_features)
            scores = theirs.mask_scores if theirs.method.scored else torch.zeros_like(theirs.weight)
            straight_through = theirs.mask + scores - scores.detach()
            expected = nn.functional.linear(inputs, theirs.weight * straight_through, theirs.bias)
            output = nn.functional.linear(inputs, *products[ours])
            assert {x.dtype for x in products[ours] if x is not None} == {dtype or torch.float32}
            assert output.dtype == expected.dtype
            torch.testing.assert_close(output, expected)
            output.float().square().sum().backward(retain_graph=True)
            expected.float().square().sum().backward()
    for ours, theirs in zip(together, plain, strict=True):
        for (name, one), (_, other) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
            assert one.grad.dtype == torch.float32
            torch.testing.assert_close(one.grad, other.grad, msg=lambda message, n=name: f"{n}: {message}")


@pytest.mark.parametrize("processes", [1, 2])
def test_gradients_of_upper_layers_come_first_among_processes(monkeypatch, processes):
    """A layer's scores have theirs before the LayerNorm below; in one process, where all are made at once, after."""
    monkeypatch.setattr(distributed, "world_size", lambda: processes)
    encoder, order = nn.Module(), []
    encoder.layer = nn.ModuleList(nn.Sequential(MaskedLinear(4, 4), nn.LayerNorm(4)) for _ in range(2))
    for layer in encoder.layer:
        layer[0].weight = nn.Parameter(layer[0].weight.detach().as_subclass(Elsewhere))
    for name, parameter in encoder.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda _, name=name: order.append(name))
    set_threshold(encoder, 0.5)
    with masked_products(encoder):
        hidden = torch.randn(3, 4)
        for layer in encoder.layer:
            hidden = layer(hidden)
        hidden.square().sum().backward()
    assert len(order) == 10 and all(layer[0].together is None for layer in encoder.layer)
    upper, lower = order.index("layer.1.0.mask_scores"), order.index("layer.0.1.weight")
    assert (upper < lower) == (processes > 1)
