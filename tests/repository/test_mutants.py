"""The mutants of a source are the planned ones, and a test that fails kills one."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "mutants.py"
tool = runpy.run_path(str(TOOL))


def changed(*lines):
    """Each mutant's new line."""
    return [m.after for m in tool["mutants"]("\n".join(lines) + "\n")]


@pytest.mark.parametrize(
    ("line", "after"),
    [
        ("return a < b", ["return a <= b"]),
        ("return (a) is not b", ["return (a) is b"]),
        ("return a not in b", ["return a in b"]),
        ("return not a", ["return  a"]),
        ("return a and b or c", ["return a and b and c", "return a or b or c"]),
        ("return a + b * c", ["return a + b / c", "return a - b * c"]),
        ("a += b", ["a -= b"]),
        ("return a if b else c", ["return a if not b else c"]),
        ("return 0, 1.0, 0.5, True", ["0.0", "1, 1.0", "1.5", "False"]),
        ("return a.sum(1)", ["return a.mean(1)", "return a.sum(0)"]),
        ("return a[:, -1]", ["return a[:, -0]", "return a[:, -2]"]),
        ("return max(a, minimum(b, c))", ["return max(a, maximum(b", "return min(a, minimum(b"]),
        ("return a.clamp(min=b)", ["return a.clamp(max=b)"]),
        ("a.zero_grad()", ["pass"]),
        ('return "é" * a.detach()', ['return "é" / a.detach()', 'return "é" * a.clone()']),
    ],
)
def test_each_operator_of_a_source_has_its_mutants(line, after):
    found = changed("def f(a, b, c):", f"    {line}")
    assert len(found) == len(after)
    for part in after:
        assert sum(part in x for x in found) == 1


def test_mutants_leave_texts_types_and_error_messages_alone():
    assert (
        changed(
            '"""1 + 1."""',
            "__all__ = ['f'][0:1]",
            "@dataclass(frozen=True)",
            "class C(Base[0]):",
            '    """1 + 1."""',
            "    x: Literal[1]",
            "    def f(a: Literal[1]) -> Literal[0]:",
            "        for x in zip(a, strict=True):",
            "            y = f'{a + 1}'",
            "            return fail(a, a + 1)",
            "        raise ValueError(a[0])",
        )
        == []
    )


def test_a_mutant_differs_on_one_line_and_says_where():
    source = (
        "class C:\n    def f(a):\n        return (\n            a\n            - 1\n        )\n"
    )
    minus, one = tool["mutants"](source)
    assert (minus.scope, minus.line, minus.before, minus.after) == ("C.f", 5, "- 1", "+ 1")
    assert minus.text == source.replace("- 1", "+ 1")
    assert one.text == source.replace("- 1", "- 0")


def test_code_that_moves_keeps_its_place_in_the_sample():
    here = tool["mutants"]("def f(a):\n    return a + b\n")[0]
    there = tool["mutants"]("X = 1\n\n\nclass C:\n    def f(a):\n        return a + b\n")[0]
    assert tool["order"](here, 0) == tool["order"](there, 0) != tool["order"](here, 1)


def test_a_test_kills_a_mutant_and_the_file_stays_as_it_is(tmp_path):
    source = "def largest(a, b):\n    return max(a, b)\n"
    (tmp_path / "tiny.py").write_text(source, encoding="utf-8")
    test = "import tiny\n\n\ndef test_largest():\n    assert tiny.largest(1, 2) == 2\n"
    (tmp_path / "test_tiny.py").write_text(test, encoding="utf-8")
    program = f"""
import runpy
from pathlib import Path
tool = runpy.run_path({str(TOOL)!r})
root, source = Path({str(tmp_path)!r}), {source!r}
[mutant] = tool["mutants"](source)
for text in (source, mutant.text):
    print(tool["passes"](root, ["test_tiny.py"], root / "tiny.py", text), flush=True)
"""
    ran = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
    )
    assert ran.stdout.split() == ["True", "False"], ran.stderr
    assert (tmp_path / "tiny.py").read_text(encoding="utf-8") == source


def test_mutants_names_a_mapped_file_that_is_missing(tmp_path):
    ran = subprocess.run(
        [sys.executable, TOOL, "--package-root", tmp_path], capture_output=True, text=True
    )
    assert ran.stderr.startswith("mutants: TESTS names minippo/advantages.py, and ")
    assert ran.returncode == 1
