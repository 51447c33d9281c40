"""Which GPU a process takes."""

import pytest
import torch

from emmental.utils import distributed
from emmental.utils.errors import InputError


def test_a_process_beyond_the_gpus_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda number: None)
    monkeypatch.setattr(distributed.group, "join", lambda backend: None)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert distributed.start(no_cuda=False) == torch.device("cuda", 1)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(InputError, match="process 3 has no GPU of its own: 2 are visible"):
        distributed.start(no_cuda=False)
