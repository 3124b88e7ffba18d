"""Each test runs with minippo's annotations enforced, without a network, and from one seed."""

import os
from collections.abc import Iterator

import hypothesis
import jaxtyping
import pytest
import torch

import tests.shapes  # noqa: F401  (the hook calls it by name)

os.environ["HF_HUB_OFFLINE"] = "1"
jaxtyping.install_import_hook("minippo", "tests.shapes.check")

# No clock in a test, and the same examples every time, whatever failed before.
hypothesis.settings.register_profile(
    "minippo", deadline=None, derandomize=True, database=None, max_examples=50
)
hypothesis.settings.load_profile("minippo")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def without_hook() -> Iterator[None]:
    """As readers run minippo: with its own checks alone."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
