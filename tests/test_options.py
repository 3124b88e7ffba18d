"""A dataclass as command-line options."""

from dataclasses import fields

import pytest

from minippo import cli, commands
from minippo.options import documented
from minippo.ppo import PPOConfig


def test_help_explains_every_option_of_the_configuration_in_its_groups(capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    said = capsys.readouterr().out
    titles = ["what to train", "credit", "loss", "KL to", "sampling", "batches", "optimizer"]
    places = [said.index(f"\n{title}") for title in titles]
    assert places == sorted(places)
    lam, clip_range = said.index("\n  --lam "), said.index("\n  --clip_range ")
    assert places[1] < lam < places[2] < clip_range < places[3]
    for kind in (commands.TrainArguments, PPOConfig):
        assert [name for _, name, _ in documented(kind)] == [f.name for f in fields(kind)]
    said = " ".join(said.split())
    assert "GAE's lambda; 0.95 (lm-human-preferences)" in said
    assert "epsilon; 0.2 (Schulman et al. 2017)" in said
