"""Each test runs with minippo's annotations enforced, without a network, and from one seed."""

import os
from collections.abc import Iterator
from pathlib import Path

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


# The mathematics, rollout, loss, trainer and checks; the dearest file first, for two processes.
QUICK = """
    checks trainer rollout ppo fuzz advantages alternatives kl log_probs losses masking reward_model
    sft validate checks_advantages checks_alternatives checks_exercises checks_hacking checks_kl
    checks_practice
""".split()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="the units of QUICK alone: a minute")


def pytest_configure(config: pytest.Config) -> None:
    if config.option.quick:  # nothing else is even collected
        config.args = [str(Path(__file__).with_name(f"test_{name}.py")) for name in QUICK]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def without_hook() -> Iterator[None]:
    """As readers run minippo: with its own checks alone."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
