"""The tests follow the package, and the name of a test alone says what it tests."""

import ast
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "tests").rglob("test_*.py"))
LINES = 500
# Words that need a subject from the file's name.
BARE = ("it", "its", "they", "what", "who", "he")


def names_in(path: Path) -> list[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
    return [node.name for node in functions if node.name.startswith("test_")]


NAMES = [name for path in FILES for name in names_in(path)]


def test_no_name_of_a_test_is_used_twice():
    assert len(NAMES) > 700
    assert [name for name, n in Counter(NAMES).items() if n > 1] == []


def test_the_name_of_a_test_begins_with_its_subject():
    assert [name for name in NAMES if name.split("_")[1] in BARE] == []


def test_no_test_file_is_longer_than_500_lines():
    lengths = {p.name: len(p.read_text(encoding="utf-8").splitlines()) for p in FILES}
    assert {name: n for name, n in lengths.items() if n > LINES} == {}


def test_each_test_file_at_the_top_has_its_module_and_each_module_its_tests():
    """A module's tests may be several files: test_ppo.py, test_ppo_loss.py."""
    modules = {p.stem.strip("_") for p in (ROOT / "minippo").glob("[a-z_]*.py")}
    modules -= {"init", "main"}
    tops = [p.stem.removeprefix("test_") for p in FILES if p.parent.name == "tests"]

    def owner(name: str) -> str | None:
        fitting = [m for m in modules if name == m or name.startswith(f"{m}_")]
        return max(fitting, key=len, default=None)

    assert [name for name in tops if owner(name) is None] == []
    assert modules - {owner(name) for name in tops} == set()


def test_each_folder_of_the_package_has_its_folder_of_tests():
    folders = {p.parent.name for p in (ROOT / "minippo").glob("*/__init__.py")}
    assert folders - {p.parent.name for p in FILES} == set()
