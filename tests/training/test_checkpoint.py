"""What is not finite is never saved."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from emmental.training.checkpoint import check_finite
from emmental.training.loop import Progress
from emmental.utils.errors import InputError


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_weight_that_is_not_finite_is_named(value):
    state = SimpleNamespace(model=nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3)), progress=Progress(step=7))
    check_finite(state)
    with torch.no_grad():
        state.model[1].bias[2] = value
    with pytest.raises(InputError, match=r"^step 7: 1 weights are NaN or infinite, the first 1\.bias;"):
        check_finite(state)
