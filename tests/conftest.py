"""Fixtures that several test files share."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # workers of pytest-xdist share the cores

import pytest
from tiny import World


@pytest.fixture(scope="session", autouse=True)
def cpu_only():
    """On a machine with GPUs the tests are the same; for those of tests/cuda the launcher shows the GPUs again."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> World:
    return World(tmp_path_factory.mktemp("world"))
