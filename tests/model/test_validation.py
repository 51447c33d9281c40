"""Folders are checked before anything is loaded."""

import pytest
from tiny import make_model

from emmental.model.validation import check_config
from emmental.utils.errors import InputError


def test_positions_up_to_the_padding_tokens_are_lost(tmp_path):
    """Roberta counts from behind the padding token's number, 1: of 66 positions 64 are left."""
    folder = str(make_model(tmp_path / "roberta", family="roberta"))
    check_config(folder, "--model_name_or_path", 64)
    with pytest.raises(InputError, match=r"--max_seq_length 65: .* has 64 positions"):
        check_config(folder, "--model_name_or_path", 65)
