"""MASK_LR needs no search for the topK methods: from zero scores a factor on it leaves every mask as it is."""

import torch
from safetensors.torch import load_file
from tiny import HARD, TRAIN, succeed

from emmental import MaskedBertForSequenceClassification
from emmental.pruning.masked_linear import masked_linears


def trained(world, folder, rate: float, *flags):
    """The weights and the masks of a short run with contrast and distillation."""
    flags = [*TRAIN, *HARD, *flags, "--save_steps", 0, "--mask_scores_learning_rate", rate, "--output_dir", folder]
    succeed(*world.command("qqp"), *world.cap("qqp"), *flags)
    model = MaskedBertForSequenceClassification.from_pretrained(folder).eval()
    weights = {name: x for name, x in load_file(folder / "model.safetensors").items() if "mask_scores" not in name}
    scores = {name: x for name, x in load_file(folder / "model.safetensors").items() if "mask_scores" in name}
    return weights, scores, {name: linear.current_mask() for name, linear in masked_linears(model).items()}


def test_masks_do_not_depend_on_the_scores_learning_rate(world, tmp_path):
    """A factor of a power of two is exact in floating point; every weight is then the same bit for bit, too."""
    weights, scores, masks = trained(world, tmp_path / "published", 1e-2)
    other_weights, other_scores, other_masks = trained(world, tmp_path / "16 times", 16e-2)
    assert all(torch.equal(masks[name], other_masks[name]) for name in masks)
    assert all(torch.equal(weights[name], other_weights[name]) for name in weights)
    for name in scores:
        assert scores[name].any()
        torch.testing.assert_close(other_scores[name], 16 * scores[name], rtol=1e-6, atol=0)


def test_masks_do_where_scores_do_not_start_from_zero(world, tmp_path):
    """The other side of it: the ranks then mix what was there with what was learnt."""
    start = ("--mask_init", "uniform", "--mask_scale", 0.1)
    _, _, masks = trained(world, tmp_path / "published", 1e-2, *start)
    _, _, others = trained(world, tmp_path / "16 times", 16e-2, *start)
    assert not all(torch.equal(masks[name], others[name]) for name in masks)
