"""A dataclass as command-line options."""

import argparse
from dataclasses import dataclass, fields
from typing import Literal

import pytest

from minippo import cli
from minippo.ppo import PPOConfig
from minippo.practice.options import add_options, documented, take
from minippo.practice.train import TrainArguments


def test_help_explains_every_option_of_the_configuration_in_its_groups(capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    said = capsys.readouterr().out
    titles = ["what to train", "credit", "loss", "KL to", "sampling", "batches", "optimizer"]
    places = [said.index(f"\n{title}") for title in titles]
    assert places == sorted(places)
    lam, clip_range = said.index("\n  --lam "), said.index("\n  --clip_range ")
    assert places[1] < lam < places[2] < clip_range < places[3]
    for kind in (TrainArguments, PPOConfig):
        assert [name for _, name, _ in documented(kind)] == [f.name for f in fields(kind)]
    said = " ".join(said.split())
    assert "GAE's lambda; 0.95 (lm-human-preferences)" in said
    assert "epsilon; 0.2 (Schulman et al. 2017)" in said


@dataclass
class Own:
    """A dataclass of a reader's own."""

    # ---- numbers: what is counted ----
    n_words: int
    """How many; 100% of them."""
    rate: float | None = 0.5
    """A share, or none
    at all."""

    # ---- switches ----
    loud: bool = False
    """Whether to shout."""
    quiet: bool = True
    """Whether to whisper."""
    kind: Literal["one", "other"] = "one"
    """Which."""


def read(arguments):
    parser = argparse.ArgumentParser(prog="own")
    add_options(parser, Own)
    return take(parser.parse_args(arguments.split()), Own)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("--n_words 3", Own(3, 0.5, False, True, "one")),
        ("--n-words 3 --rate 1e-2 --kind other", Own(3, 0.01, False, True, "other")),
        ("--n_words=-3 --rate none", Own(-3, None, False, True, "one")),
        ("--n_words 3 --rate None --loud --quiet False", Own(3, None, True, False, "one")),
        ("--n_words 3 --loud 1 --quiet 0", Own(3, 0.5, True, False, "one")),
        ("--n_words 3 --loud false --quiet TRUE", Own(3, 0.5, False, True, "one")),
    ],
)
def test_options_make_the_dataclass_that_they_describe(arguments, expected):
    assert read(arguments) == expected


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("", "required: --n_words"),
        ("--n_words three", "--n_words/--n-words: invalid int value: 'three'"),
        ("--n_words none", "invalid int value: 'none'"),
        ("--n_words 3 --rate much", "--rate: invalid float or none value: 'much'"),
        ("--n_words 3 --loud perhaps", "--loud: invalid bool value: 'perhaps'"),
        ("--n_words 3 --kind third", "--kind: invalid choice: 'third'"),
        ("--n_words 3 --volume 11", "unrecognized arguments: --volume 11"),
    ],
)
def test_a_bad_option_is_named_and_exits_2(capsys, arguments, says):
    with pytest.raises(SystemExit) as stopped:
        read(arguments)
    assert stopped.value.code == 2
    assert says in capsys.readouterr().err


def test_help_of_a_dataclass_has_its_groups_and_docstrings(capsys):
    with pytest.raises(SystemExit):
        read("--help")
    said = " ".join(capsys.readouterr().out.split())
    parts = [
        "numbers: what is counted:", "--n_words", "How many; 100% of them.", "--rate",
        "A share, or none at all.", "switches:", "--loud", "Whether to shout.", "--kind", "Which.",
    ]  # fmt: skip
    body = said[said.index(parts[0]) :]
    places = [body.index(part) for part in parts]
    assert places == sorted(places)
    assert documented(Own)[1] == ("numbers: what is counted", "rate", "A share, or none at all.")
