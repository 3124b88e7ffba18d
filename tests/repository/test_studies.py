"""The studies: a row a run, none made twice, and what is counted of texts is counted right."""

import json
from math import inf

import pytest
from studies.common import diversity, make_rows, rounded


def test_a_stopped_study_goes_on_with_the_cases_that_have_no_row(tmp_path):
    asked = []

    def run(seed, beta):
        asked.append((seed, beta))
        if beta == 0.2 and len(asked) == 2:
            raise KeyboardInterrupt
        return {"gold": beta / 3}

    cases = [{"seed": seed, "beta": beta} for seed in (0, 1) for beta in (0.1, 0.2)]
    with pytest.raises(KeyboardInterrupt):
        make_rows(tmp_path / "study.jsonl", cases, run)
    make_rows(tmp_path / "study.jsonl", cases, run)
    assert asked == [(0, 0.1), (0, 0.2), (0, 0.2), (1, 0.1), (1, 0.2)]
    rows = [
        json.loads(line)
        for line in (tmp_path / "study.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert [row["case"] for row in rows] == cases
    assert rows[0]["gold"] == 0.03333


def test_diversity_counts_texts_pairs_and_repeated_words():
    counted = diversity(["a b a b", "a b a b", "c"])
    assert counted["distinct"] == 2 / 3
    assert counted["distinct_2"] == 2 / 6  # (a b) and (b a), of three pairs in each of two texts
    assert counted["repeated"] == pytest.approx((0.5 + 0.5 + 0) / 3)


def test_a_number_of_a_study_that_is_not_finite_is_none_on_file():
    assert rounded({"x": [1.23456, inf], "n": 3}) == {"x": [1.235, None], "n": 3}
