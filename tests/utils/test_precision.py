"""--bf16 is autocast; without it nothing is cast."""

import pytest
import torch

from emmental.utils.precision import Precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, None])
def test_products_are_in_the_precision_asked_for(dtype):
    with Precision(torch.device("cpu"), dtype).autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == (dtype or torch.float32)
