"""Homework that is drawn: the drawn convention is right, the package's own is a named mistake."""

import json

import pytest
import torch

from minippo.checks import CHECKS
from minippo.checks.engine.variant import variant
from minippo.checks.mistakes import CATALOGUE
from minippo.cli import main
from minippo.grading import homework
from minippo.grading.grade import grade

pytestmark = pytest.mark.usefixtures("without_hook")
CONVENTIONS = [(n, m.name) for n in CHECKS for m in CATALOGUE[n].mistakes if m.convention]


@pytest.mark.parametrize(("name", "drawn"), CONVENTIONS)
def test_the_drawn_convention_is_right_and_the_packages_own_has_a_name(name, drawn):
    check, flawed = CHECKS[name], CATALOGUE[name]
    others = [m.name for m in flawed.mistakes if m.convention and m.name != drawn][:1]
    asked = variant(check, [drawn], {"2026A": others} if others else {})
    assert asked(flawed.version([drawn])).passed
    assert asked(check.reference).mistake == "minippo's own convention"
    if others:
        assert asked(flawed.version(others)).mistake == "the answer to 2026A"


def test_a_mistake_on_top_of_the_drawn_convention_is_named():
    asked = variant(CHECKS["value_loss"], ["half forgotten"])
    version = CATALOGUE["value_loss"].version(["half forgotten", "sign turned"])
    assert asked(version).mistake == "sign turned"


def test_a_convention_by_hand():
    asked = variant(CHECKS["value_loss"], ["half forgotten"])
    case = next(case for case in asked.generate(0) if "old_values" not in case.inputs)
    v, r = case.inputs["values"][0][0], case.inputs["returns"][0][0]
    assert asked.expected(case).value[0][0] == pytest.approx((v - r) ** 2)
    assert asked(lambda values, returns: (values - returns.detach()) ** 2).passed
    leak = asked(lambda values, returns: (values - returns) ** 2)
    assert leak.headline == "right; not yet robust: data not detached."
    assert not asked(lambda values, returns: ((values - returns) ** 2).detach()).passed


def test_whitening_with_bessels_correction_by_torch():
    asked = variant(CHECKS["whiten"], ["Bessel's correction"])
    wide = [c for c in asked.generate(0) if sum(map(sum, c.inputs["mask"])) > 2]
    x, mask = (torch.tensor(wide[0].inputs[k]) for k in ("x", "mask"))
    by_torch = (x - x[mask].mean()) / (x[mask].var() + 1e-8).sqrt()
    expected = torch.tensor(asked.expected(wide[0]).value)
    assert torch.allclose(expected[mask].float(), by_torch[mask], atol=1e-5)


def test_unknown_flags_and_tasks_are_refused(tmp_path, capsys):
    with pytest.raises(
        ValueError, match=r"flags must be mistakes of value_loss, got \['nonsense'\]"
    ):
        variant(CHECKS["value_loss"], ["nonsense"])
    assert main(["homework", "--seed", "a", "--out", str(tmp_path), "--tasks", "nonsense"]) == 1
    assert "tasks must be among token_log_probs" in capsys.readouterr().err


def test_a_homework_is_drawn_written_and_graded(tmp_path, capsys):
    out = tmp_path / "hw"
    tasks = ["value_loss", "kl_k1", "AdaptiveKL"]
    options = ["--seed", "2027A", "--out", str(out), "--tasks", *tasks, "--previous", "2026A"]
    assert main(["homework", *options]) == 0
    key = json.loads((out / "key.json").read_text(encoding="utf-8"))
    assert key["tasks"] == homework.draw("2027A", tasks, ["2026A"])
    assert key["previous"]["2026A"] == homework.draw("2026A", tasks)
    text = (out / "my_ppo.py").read_text(encoding="utf-8")
    flags = key["tasks"]["value_loss"]
    assert f"Here: {CATALOGUE['value_loss'][flags[0]].convention}" in text
    compile(text, "my_ppo.py", "exec")

    unfinished = grade(out / "my_ppo.py", key=key)
    assert not unfinished.passed
    assert {r.finished for r in unfinished.results} == {False}

    (out / "mine.py").write_text(
        "def value_loss(values, returns): return (values - returns) ** 2 / 2\n", encoding="utf-8"
    )
    got = {r.name: r for r in grade(out / "mine.py", key=key).results}
    assert got["value_loss"].mistake == "minippo's own convention"
    assert got["kl_k1"].headline == "not in the file."

    assert main(["homework", *options]) == 1  # what is there is not written over
    assert "a folder without a homework" in capsys.readouterr().err


def test_last_years_convention_does_not_come_again_where_there_is_another():
    tasks = [name for name, _ in CONVENTIONS]
    several = [name for name in set(tasks) if tasks.count(name) > 1]
    for seed in ("a", "b", "c"):
        new, old = homework.draw(seed, several, ["2026A"]), homework.draw("2026A", several)
        assert [name for name in several if new[name] == old[name]] == []
    assert homework.draw("a", ["value_loss"], ["2026A"]) == homework.draw("2026A", ["value_loss"])


def test_a_stub_has_no_trailing_blanks_and_says_the_shapes():
    text = homework.stub("AdaptiveKL", homework.draw("a", ["AdaptiveKL"])["AdaptiveKL"])
    assert not any(line != line.rstrip() for line in text.splitlines())
    assert "rewards: [batch time]" in homework.stub("gae", [])


def test_a_draw_is_its_seed():
    tasks = list(CHECKS)
    assert homework.draw("a", tasks) == homework.draw("a", tasks)
    assert homework.draw("a", tasks) != homework.draw("b", tasks)
    assert homework.draw("a", ["gae"])["gae"] == homework.draw("a", tasks)["gae"]
