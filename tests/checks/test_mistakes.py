"""The sentences of the catalogue are data: each is used, and each flag is one of them."""

import ast
import tomllib
from pathlib import Path

import pytest

from minippo.checks import mistakes
from minippo.checks.mistakes import ATTACHED, CATALOGUE

FOLDER = Path(mistakes.__file__).parent
TOPICS = sorted(path.stem for path in FOLDER.glob("[a-z]*.py"))


def said(topic):
    return tomllib.loads((FOLDER / f"{topic}.toml").read_text(encoding="utf-8"))


def flags(tree):
    """The strings on the left of `in flags`; names stand for the string constants of any topic."""
    constants = {"ATTACHED": ATTACHED} | {
        node.targets[0].id: node.value.value
        for topic in TOPICS
        for node in ast.parse((FOLDER / f"{topic}.py").read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and ast.unparse(node.comparators[0]) == "flags":
            left = node.left
            yield left.value if isinstance(left, ast.Constant) else constants[ast.unparse(left)]


@pytest.mark.parametrize("topic", TOPICS)
def test_every_flag_of_a_wrong_implementation_is_a_mistake_of_the_catalogue(topic):
    found = set(flags(ast.parse((FOLDER / f"{topic}.py").read_text(encoding="utf-8"))))
    assert found
    assert found <= {mistake.name for flawed in CATALOGUE.values() for mistake in flawed.mistakes}


@pytest.mark.parametrize("topic", [*TOPICS, "shared"])
def test_every_sentence_of_the_catalogue_is_said_of_a_mistake(topic):
    used = {
        (mistake.what, mistake.hint) for flawed in CATALOGUE.values() for mistake in flawed.mistakes
    }
    assert {(entry["what"], entry["hint"]) for entry in said(topic).values()} <= used


def test_another_functions_mistake_of_the_same_name_has_sentences_of_its_own():
    assert CATALOGUE["kl_k1"]["sign turned"].what.startswith("log q - log p was taken")
    assert CATALOGUE["kl_k3"]["sign turned"].what == "The negative of k3 was returned."
