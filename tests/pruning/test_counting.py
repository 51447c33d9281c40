"""What remains, by both definitions, and its picture: a number in every cell, labels that do not touch."""

import itertools

import matplotlib
import pytest
import torch

from emmental import MaskedLinear, set_threshold
from emmental.pruning.counting import Count, heat_map
from emmental.pruning.masked_linear import kept_weights

KINDS = [f"attention.self.{kind}" for kind in ("query", "key", "value")]
KINDS += ["attention.output.dense", "intermediate.dense", "output.dense"]


def counted(layers: int) -> Count:
    """Each matrix keeps another share: from nothing up to all."""
    names = [f"bert.encoder.layer.{layer}.{kind}" for layer in range(layers) for kind in KINDS]
    return Count({name: (1000 * i // (len(names) - 1), 1000) for i, name in enumerate(names)}, unmasked=10)


def test_both_definitions():
    """As released, biases and LayerNorms count as kept and in the total."""
    some = Count({"a.weight": (3, 60), "b.weight": (2, 40)}, unmasked=20)
    assert some.remaining == 5 and some.remaining_released == pytest.approx(100 * 25 / 120)


def test_counting_a_model_in_training_draws_nothing():
    """l0's masks are drawn anew in every forward pass; to count must leave a run's random numbers alone."""
    linear = MaskedLinear(30, 20, pruning_method="l0").train()
    set_threshold(linear, 0.0)
    before = torch.get_rng_state()
    kept_weights(linear)
    assert torch.equal(torch.get_rng_state(), before)
    linear(torch.ones(1, 30))
    assert not torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("layers", [1, 12, 24])
def test_heat_map_shows_every_matrix_share(layers):
    matplotlib.use("agg")
    figure = heat_map(counted(layers))
    figure.savefig("/dev/null", format="png")
    axes, bar = figure.axes
    shares = [100 * kept / total for kept, total in counted(layers).matrices.values()]
    assert sorted(text.get_text() for text in axes.texts) == sorted(f"{share:.3g}" for share in shares)
    for labels in (axes.get_xticklabels(), axes.get_yticklabels(), bar.get_yticklabels(), axes.texts):
        boxes = [label.get_window_extent() for label in labels]
        assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
        assert all(figure.bbox.contains(*corner) for box in boxes for corner in (box.min, box.max))
    assert len(axes.get_yticklabels()) == layers and "logarithmic" in bar.get_ylabel()
