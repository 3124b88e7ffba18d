"""The symbols' colours, told apart by everybody."""

import itertools
import math

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from minippo import plots

# Machado, Oliveira and Fernandes 2009, severity 1.0, for linear RGB.
BLIND = {
    "nobody": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
         [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
         [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
         [0.004733, 0.691367, 0.303900]]
    ),
}  # fmt: skip


def lab(colour: str, eyes: np.ndarray) -> np.ndarray:
    """CIE Lab (D65) of a colour as these eyes see it."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(eyes @ linear, 0, 1)
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    x, y, z = (
        t ** (1 / 3) if t > (6 / 29) ** 3 else t / (3 * (6 / 29) ** 2) + 4 / 29
        for t in to_xyz @ seen / np.array([0.95047, 1.0, 1.08883])
    )
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_lab_of_white_and_red_by_the_book():
    assert lab("#FFFFFF", BLIND["nobody"]) == pytest.approx([100, 0, 0], abs=0.05)
    assert lab("#FF0000", BLIND["nobody"]) == pytest.approx([53.24, 80.09, 67.20], abs=0.05)


@pytest.mark.parametrize("eyes", BLIND)
def test_no_two_symbols_look_alike_in_colour_and_style(eyes):
    """A difference of 10 in Lab is plain to see; what comes nearer differs in its line style."""
    for (a, first), (b, second) in itertools.combinations(plots.COLOURS.items(), 2):
        distance = math.dist(lab(first, BLIND[eyes]), lab(second, BLIND[eyes]))
        assert distance > 10 or plots.STYLES[a] != plots.STYLES[b], (a, b, distance)
