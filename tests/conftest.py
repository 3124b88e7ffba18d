"""Each test runs with minippo's annotations enforced, without a network, and from one seed."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import jaxtyping
import pytest
import torch

import tests.shapes  # noqa: F401  (the hook calls it by name)

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MINIPPO_MINE"] = "off"  # lessons read no student's file either
jaxtyping.install_import_hook("minippo", "tests.shapes.check")

# No clock in a test, and the same examples every time, whatever failed before.
hypothesis.settings.register_profile(
    "minippo", deadline=None, derandomize=True, database=None, max_examples=50
)
hypothesis.settings.load_profile("minippo")


# The mathematics, rollout, loss, trainer and checks; the dearest file first, for two processes.
QUICK = """
    checks/test_catalogue test_trainer_invariants test_trainer test_rollout test_ppo_loss
    whole/test_fuzz whole/test_trl test_advantages test_alternatives test_kl test_log_probs
    test_losses test_masking test_ppo test_ppo_config test_ppo_goldens test_responses
    test_reward_model test_scores test_sft test_validate checks/test_engine checks/test_advantages
    checks/test_alternatives checks/test_exercises checks/test_hacking checks/test_kl
    checks/test_practice
""".split()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="the units of QUICK alone: a minute")


def pytest_configure(config: pytest.Config) -> None:
    if config.option.quick:  # nothing else is even collected
        config.args = [str(Path(__file__).parent / f"{name}.py") for name in QUICK]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def without_hook() -> Iterator[None]:
    """As readers run minippo: with its own checks alone."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def lesson_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, without_hook: None
) -> Iterator[None]:
    """A folder in which a lesson makes my_ppo.py; nothing is left of it afterwards."""
    from minippo.checks.engine import result

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delenv("MINIPPO_MINE", raising=False)
    yield
    sys.modules.pop("my_ppo", None)
    result.KEEP.clear()
