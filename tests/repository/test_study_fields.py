"""The study of PPOConfig's fields: its interval, and that each variant changes something."""

import pytest
from studies import fields

from minippo.ppo import PPOConfig


def test_the_interval_of_a_paired_difference_by_hand():
    # Differences 1, 2, 3, 4, 5: mean 3, deviation sqrt(2.5); 2.776 * sqrt(2.5 / 5) = 1.963.
    mean, half = fields.paired([2.0, 4.0, 6.0, 8.0, 10.0], [1.0, 2.0, 3.0, 4.0, 5.0])
    assert (mean, half) == pytest.approx((3.0, 1.963), abs=1e-3)


def test_each_variant_is_another_configuration():
    made = [PPOConfig(**fields.SIZE, **changes) for changes in fields.VARIANTS.values()]
    assert len(set(made)) == len(made)
