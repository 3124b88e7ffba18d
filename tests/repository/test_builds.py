"""Every study and every build target runs: its first case, one step, a handful of texts."""

import json
import sys
from dataclasses import replace

import build_data
import pytest
import torch
from studies import alternatives, bugs, common, hacking, limits

from minippo import data
from minippo.data import SHIPPED_STUDIES, load_study, load_texts, read_jsonl
from minippo.models import load_policy, load_reward_model
from minippo.record import load_run
from tests import tiny

# A bug, or a run at a high rate, is seen by its first update.
pytestmark = [pytest.mark.slow, tiny.too_fast]
STUDIES = {"bugs": bugs, "hacking": hacking, "limits": limits, "alternatives": alternatives}
FEW = {"rollout_size": 8, "minibatch_size": 8}
SHORT = FEW | {"epochs": 1, "max_new_tokens": 4}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """One step of eight responses, judged on few and short ones."""
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)  # of the other tests
    for name, least in {"prompts": common.world.PROMPTS_HELD_OUT[:4], "max_new_tokens": 4}.items():
        monkeypatch.setitem(common.judged.__kwdefaults__, name, least)
    for study in STUDIES.values():
        monkeypatch.setattr(study, "STEPS", 1)
    monkeypatch.setattr(bugs, "CONFIG", replace(bugs.CONFIG, **SHORT))
    monkeypatch.setattr(limits, "SIZE", FEW)
    monkeypatch.setattr(hacking, "CONFIG", hacking.CONFIG | SHORT)
    monkeypatch.setattr(hacking, "TIME", 4)
    monkeypatch.setattr(hacking, "SEEDS", range(2))  # two reward models, where the study has five
    monkeypatch.setattr(hacking.judge.__wrapped__, "__defaults__", (64, "", 0.0))  # 64 pairs
    monkeypatch.setattr(alternatives, "ROLLOUT", 8)
    yield
    for kept in vars(hacking).values():
        getattr(kept, "cache_clear", lambda: None)()


def build(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["build_data.py", *map(str, arguments)])
    build_data.main()


@pytest.mark.parametrize("name", SHIPPED_STUDIES)
def test_a_study_makes_the_row_of_its_first_case_as_the_shipped_rows_are(
    name, monkeypatch, tmp_path
):
    def make_one(path, cases, run):
        common.make_rows(path, list(cases)[:1], run)

    monkeypatch.setattr(STUDIES[name], "make_rows", make_one)
    (tmp_path / "manifest.json").write_text("{}", encoding="utf-8")
    build(monkeypatch, "studies", name, "--out", tmp_path)
    (made,) = read_jsonl(tmp_path / "studies" / f"{name}.jsonl.bz2")
    (shipped,) = [row for row in load_study(name) if row["case"] == made["case"]]
    assert made.keys() == shipped.keys()
    listed = json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))["files"]
    assert list(listed) == [f"studies/{name}.jsonl.bz2"]


@pytest.mark.parametrize("bug", bugs.CASES)
def test_each_bug_of_the_zoo_can_be_trained_with(bug):
    row = bugs.run(bug, 0)
    shipped = load_study("bugs")[0]
    assert row.keys() | {"case"} == shipped.keys()
    assert [len(row[part]["score"]) for part in ("curves", "truth")] == [1, 1]
    assert row["truth"].keys() == shipped["truth"].keys()


def test_the_world_and_its_runs_are_built_and_can_be_loaded(monkeypatch, tmp_path):
    sizes = {"N_BASE": 300, "N_HELD_OUT": 20, "N_DEMONSTRATIONS": 16, "N_PAIRS": 16}
    sizes |= {"N_HELD_OUT_PAIRS": 40, "VOCABULARY": 300, "RECORDED_PROMPTS": ["The soup was"]}
    for name, value in sizes.items():
        monkeypatch.setattr(build_data, name, value)
    least = {"n_layer": 1, "n_head": 1, "n_embd": 8, "n_positions": 300}
    monkeypatch.setattr(build_data, "SIZES", build_data.SIZES | least)
    monkeypatch.setattr(build_data.best_gold, "__defaults__", (4,))
    runs = {name: (replace(c, **SHORT), 1, 1) for name, (c, *_) in build_data.RUNS.items()}
    monkeypatch.setattr(build_data, "RUNS", runs)

    build(monkeypatch, "world", "--out", tmp_path)
    build(monkeypatch, "runs", "--out", tmp_path)
    shipped = json.loads((data.DATA / "manifest.json").read_text(encoding="utf-8"))
    made = json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))
    expected = [file for file in shipped["files"] if not file.startswith("studies/")]
    assert list(made["files"]) == expected
    assert made["figures"].keys() == shipped["figures"].keys()
    monkeypatch.setattr(data, "DATA", tmp_path)
    assert [len(load_texts(name)) for name in data.SHIPPED_TEXTS] == [200, 50, 16, 16]
    assert [len(load_run(name).history) for name in data.SHIPPED_RUNS] == [1, 1, 1]
    for name in data.SHIPPED_MODELS:
        load = load_reward_model if name.endswith("reward") else load_policy
        assert load(name)[0].training is not None
        assert (tmp_path / name / "tokenizer.json").read_text(encoding="utf-8").count("\n") == 0
