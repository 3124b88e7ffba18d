"""The configuration: what each field may be, and what goes together."""

import dataclasses
from dataclasses import fields

import pytest

from minippo.ppo import PPOConfig
from tests.shapes import refuses

INF, NAN = float("inf"), float("nan")

WHOLE = [(0, "0"), (-1, "-1"), (1.0, "1.0"), (True, "True"), ("4", "'4'")]
SHARE = [(-0.1, "-0.1"), (1.1, "1.1"), (NAN, "nan"), ("1", "'1'"), (True, "True")]
LEAST_0 = [(-0.1, "-0.1"), (INF, "inf"), (NAN, "nan"), ("1", "'1'"), (True, "True")]
ABOVE_0 = [(0.0, "0.0"), *LEAST_0]
SWITCH = [(1, "1"), (0.0, "0.0"), ("yes", "'yes'")]
WORD = [("other", "'other'"), (1, "1")]
BAD = {
    "advantage_level": WORD,
    "ratio_level": WORD,
    "ratio_to": WORD,
    "policy_loss": WORD,
    "clip_range": SHARE,
    "clip_range_high": LEAST_0,
    "gamma": SHARE,
    "lam": SHARE,
    "value_coef": LEAST_0,
    "value_clip_range": ABOVE_0,
    "entropy_coef": LEAST_0,
    "kl_coef": LEAST_0,
    "kl_estimator": [*WORD, ("k4", "'k4'")],
    "kl_loss_coef": LEAST_0,
    "kl_loss_estimator": [*WORD, ("k1", "'k1'")],  # its expected gradient is zero
    "kl_target": ABOVE_0,
    "kl_horizon": WHOLE,
    "penalty_target": ABOVE_0,
    "reference_update_every": WHOLE,
    "whiten_advantages": SWITCH,
    "missing_eos_penalty": LEAST_0,
    "dual_clip": [*ABOVE_0, (1.0, "1.0"), (1, "1")],
    "loss_mean": WORD,
    "lam_critic": SHARE,
    "lam_alpha": ABOVE_0,
    "critic_warmup": [(-1, "-1"), (1.0, "1.0"), (True, "True")],
    "temperature": ABOVE_0,
    "max_new_tokens": WHOLE,
    "rollout_size": WHOLE,
    "epochs": WHOLE,
    "minibatch_size": WHOLE,
    "micro_batch_size": WHOLE,
    "learning_rate": LEAST_0,
    "warmup_steps": [(-1, "-1"), (1.0, "1.0"), (True, "True")],
    "total_steps": WHOLE,
    "max_grad_norm": ABOVE_0,
    "target_kl_stop": ABOVE_0,
    "gradient_checkpointing": SWITCH,
    "mixed_precision": [*WORD, ("fp16", "'fp16'")],
    "seed": [(-1, "-1"), (0.5, "0.5"), (True, "True")],
}
SEQUENCE = {"advantage_level": "sequence", "ratio_level": "sequence"}
OPTIONAL = {
    "clip_range_high", "value_clip_range", "kl_target", "reference_update_every",
    "micro_batch_size", "total_steps", "max_grad_norm", "target_kl_stop", "dual_clip",
    "loss_mean", "lam_critic", "lam_alpha",
    "learning_rate",
}  # fmt: skip


def test_every_field_of_the_configuration_is_in_the_table():
    assert set(BAD) == {field.name for field in fields(PPOConfig)}


@pytest.mark.usefixtures("without_hook")
@pytest.mark.parametrize(
    ("name", "value", "came"), [(name, *bad) for name, bads in BAD.items() for bad in bads]
)
def test_a_field_out_of_range_is_refused(name, value, came):
    with refuses(f"PPOConfig: {name}", came):
        PPOConfig(**{name: value})


@pytest.mark.usefixtures("without_hook")
@pytest.mark.parametrize("name", BAD)
def test_none_is_for_optional_fields_only(name):
    if name in OPTIONAL:
        assert getattr(PPOConfig(**{name: None}), name) is None
    else:
        with refuses(f"PPOConfig: {name}", "None"):
            PPOConfig(**{name: None})


@pytest.mark.parametrize(
    "edge",
    [
        {"gamma": 0.0, "lam": 0.0, "clip_range": 0.0, "clip_range_high": 0.0},
        {"gamma": 1, "lam": 1, "clip_range": 1},
        {"learning_rate": 0.0, "value_coef": 0.0, "kl_coef": 0.0, "warmup_steps": 0, "seed": 0},
        {"rollout_size": 1, "minibatch_size": 1, "micro_batch_size": 1, "max_new_tokens": 1},
        {"clip_range_high": 5.0},
    ],
)
def test_the_edges_of_the_fields_ranges_are_allowed(edge):
    config = PPOConfig(**edge)
    assert all(getattr(config, name) == value for name, value in edge.items())


@pytest.mark.parametrize(
    ("changes", "name", "came"),
    [
        ({"rollout_size": 8, "minibatch_size": 9}, "minibatch_size", "9"),
        ({"ratio_level": "sequence"}, "advantage_level", "'token'"),
        (SEQUENCE | {"loss_mean": "tokens"}, "loss_mean", "'tokens'"),
        (
            {"advantage_level": "sequence", "lam_critic": 0.0},
            "lam_critic and lam_alpha",
            "(0.0, None)",
        ),
        (
            {"advantage_level": "sequence", "lam_alpha": 1.0},
            "lam_critic and lam_alpha",
            "(None, 1.0)",
        ),
        ({"policy_loss": "penalty", "dual_clip": 3.0}, "dual_clip", "3.0"),
        ({"kl_target": 6.0, "kl_coef": 0.0}, "kl_coef or kl_loss_coef", "0"),
        ({"kl_target": 6.0, "rollout_size": 500, "kl_horizon": 100}, "kl_horizon", "100"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(changes, name, came):
    with refuses(f"PPOConfig: {name}", came):
        PPOConfig(**changes)


def test_a_horizon_just_beyond_a_fifth_of_the_rollout_is_allowed():
    PPOConfig(kl_target=6.0, rollout_size=499, kl_horizon=100)


def test_the_configuration_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PPOConfig().gamma = 0.5


def test_the_textbook_sketch_is_a_set_of_choices():
    # docs/seed_ppo_for_llms.txt: A = r - V, ratio to a renewed reference, c1 value, c2 entropy, c3.
    config = PPOConfig.textbook(learning_rate=0.5, entropy_coef=0.0)
    assert (config.advantage_level, config.ratio_level) == ("sequence", "sequence")
    assert (config.ratio_to, config.reference_update_every) == ("reference", 4)
    assert (config.kl_coef, config.kl_loss_coef > 0, config.value_coef > 0) == (0.0, True, True)
    assert (config.learning_rate, config.entropy_coef) == (0.5, 0.0)
    assert PPOConfig.textbook().entropy_coef > 0


def test_the_defaults_are_those_of_the_sources_that_they_name():
    sources = {
        "Schulman et al. 2017": {"policy_loss": "clip", "clip_range": 0.2, "ratio_to": "old"},
        "Schulman et al. 2017, penalty": {"penalty_target": 0.01},
        "lm-human-preferences": {
            "gamma": 1.0, "lam": 0.95, "value_clip_range": 0.2, "entropy_coef": 0.0,
            "kl_estimator": "k1", "whiten_advantages": True, "value_coef": 0.1,
        },
    }  # fmt: skip
    for source, values in sources.items():
        assert {name: getattr(PPOConfig(), name) for name in values} == values, source


def test_the_textbook_sketch_has_the_coefficients_that_are_quoted():
    # c1 "0.5 to 1", c2 and c3 "0.01 to 0.1"; nothing is clipped but the ratio.
    config = PPOConfig.textbook()
    assert config.value_coef == 0.5
    assert 0.01 <= config.entropy_coef <= 0.1
    assert 0.01 <= config.kl_loss_coef <= 0.1
    assert (config.value_clip_range, config.kl_loss_estimator) == (None, "k2")
