"""Fixtures that several test files share."""

import pytest
from tiny import World


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> World:
    return World(tmp_path_factory.mktemp("world"))
