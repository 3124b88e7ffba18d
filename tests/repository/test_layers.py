"""The package is built in layers: an import goes to a lower layer, or within a row to the left."""

import ast
import io
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "minippo"

MATHS = {"torch", "jaxtyping"}
# With transformers come the two libraries that it reads and writes with, and its adapters.
THINGS = MATHS | {"transformers", "datasets", "huggingface_hub", "safetensors", "peft"}
STAGES = THINGS | {"accelerate", "tqdm"}
EDGE = STAGES | {"tokenizers", "matplotlib", "ipywidgets", "IPython", "PIL", "numpy"}
ROWS = [
    ("_validate", MATHS),
    ("log_probs masking advantages losses kl alternatives", MATHS),
    ("__init__", set()),  # `import minippo` is the mathematics
    ("responses texts hub data models", THINGS),
    ("scores rollout sft reward_model", STAGES),
    ("ppo processes checkpoint assumptions trainer", STAGES),
    ("cli __main__", STAGES),
    ("record worlds plots checks grading practice course widgets", EDGE),  # the folders
]
FOLDERS = set(ROWS[-1][0].split())  # the modules of a folder may import each other
IN_A_COMMAND = {"cli"}  # it imports a folder, but only where a command needs it
# Lower, or further to the left, is smaller: a total order, so there can be no cycle.
PLACE = {name: (i, j) for i, (row, _) in enumerate(ROWS) for j, name in enumerate(row.split())}
THIRD_PARTY = {name: allowed for row, allowed in ROWS for name in row.split()}


def imports(source: str, modules: set[str], *, inside: bool = True) -> set[str]:
    """What a module imports: "torch", or "minippo.kl" for one of our own; inside functions, too."""
    found, tree = set(), ast.parse(source)
    for node in ast.walk(tree) if inside else tree.body:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = "minippo" if node.level else ""
            base += ("." if node.level and node.module else "") + (node.module or "")
            own = base == "minippo"
            names = [f"minippo.{a.name}" for a in node.names if own and a.name in modules]
            if not own or len(names) < len(node.names):
                names.append(base)
        else:
            continue
        for name in names:
            top, *rest = name.split(".")
            found.add(f"minippo.{(rest or ['__init__'])[0]}" if top == "minippo" else top)
    return found


def complaints(sources: dict[str, str]) -> list[str]:
    """What is wrong with a package, given the text of each of its modules."""
    wrong = []
    for name, source in sources.items():
        if name not in PLACE:
            wrong.append(f"{name} is in no layer")
            continue
        at_the_top = imports(source, set(sources), inside=False)
        for found in sorted(imports(source, set(sources))):
            if found.startswith("minippo."):
                target = found.removeprefix("minippo.")
                if target not in PLACE:
                    wrong.append(f"{name} imports {target}, which is in no layer")
                elif (target == name and name in FOLDERS) or (
                    target in FOLDERS and name in IN_A_COMMAND and found not in at_the_top
                ):
                    continue
                elif PLACE[target] >= PLACE[name]:
                    wrong.append(f"{name} imports {target}, which is not below it")
                elif name == "__init__" and PLACE[target][0] == 0:
                    wrong.append("__init__ re-exports the mathematics alone")
            elif found not in sys.stdlib_module_names and found not in THIRD_PARTY[name]:
                wrong.append(f"{name} imports {found}, which its layer may not")
    return wrong


def sources() -> dict[str, str]:
    """Module name -> text; a folder counts as the module of its name."""
    found: dict[str, str] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if name != "_data":
            found[name] = found.get(name, "") + "\n" + path.read_text(encoding="utf-8")
    return found


def code_lines(source: str) -> int:
    """Lines that are neither blank, nor comment alone, nor docstring."""
    lines = set()
    silent = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    silent |= {tokenize.ENDMARKER}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in silent:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):  # a field's docstring follows it
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            lines.difference_update(range(node.lineno, (node.end_lineno or 0) + 1))
    return len(lines)


def test_imports_go_down_or_to_the_left():
    assert complaints(sources()) == []


@pytest.mark.parametrize(
    ("name", "source", "complaint"),
    [
        ("losses", "import minippo.kl", "losses imports kl, which is not below it"),
        ("losses", "from minippo import kl", "losses imports kl, which is not below it"),
        ("losses", "from . import kl", "losses imports kl, which is not below it"),
        ("losses", "from .kl import kl_k1", "losses imports kl, which is not below it"),
        ("kl", "def f():\n    import minippo.ppo", "kl imports ppo, which is not below it"),
        ("kl", "from minippo import gae", "kl imports __init__, which is not below it"),
        ("kl", "import minippo.kl", "kl imports kl, which is not below it"),
        ("kl", "from minippo.extra import x", "kl imports extra, which is in no layer"),
        ("kl", "if True:\n    import numpy.linalg", "kl imports numpy, which its layer may not"),
        ("models", "import accelerate", "models imports accelerate, which its layer may not"),
        ("ppo", "from minippo.plots import show", "ppo imports plots, which is not below it"),
        ("ppo", "from matplotlib import cm", "ppo imports matplotlib, which its layer may not"),
        ("plots", "from minippo import widgets", "plots imports widgets, which is not below it"),
        ("trainer", "import minippo.plots", "trainer imports plots, which is not below it"),
        ("cli", "import minippo.plots", "cli imports plots, which is not below it"),
        ("extra", "", "extra is in no layer"),
        ("__init__", "import torch", "__init__ imports torch, which its layer may not"),
        ("__init__", "from minippo.data import x", "__init__ imports data, which is not below it"),
    ],
)
def test_an_import_upwards_is_found(name, source, complaint):
    others = dict.fromkeys(set(PLACE) - {name}, "")
    assert complaints({**others, name: source}) == [complaint]


def test_imports_that_go_down_or_left_are_accepted():
    good = {
        "kl": "import math\nfrom minippo.losses import value_loss\nfrom jaxtyping import Float",
        "trainer": "from minippo import gae, rollout\nimport torch.nn as nn\nimport accelerate",
        "cli": "from minippo.trainer import PPOTrainer\ndef demo():\n    from minippo import plots",
        "__main__": "from minippo import cli",
    }
    assert complaints(good | {"rollout": "", "__init__": "from minippo.kl import kl_k1"}) == []


def said(program: str) -> str:
    """What a fresh Python prints."""
    command = [sys.executable, "-c", program]
    return subprocess.check_output(command, cwd=PACKAGE.parent, text=True)


def test_importing_minippo_loads_torch_when_the_mathematics_is_used_and_never_more():
    heavy = ["torch", "transformers", "datasets", "matplotlib", "ipywidgets", "accelerate"]
    program = f"""
import sys, minippo
loaded = lambda: [name for name in {heavy} if name in sys.modules]
assert {{*minippo.__all__, "kl"}} <= set(dir(minippo))
print(loaded())
assert minippo.gae is minippo.advantages.gae
print(loaded())
assert not hasattr(minippo, "gaee")
"""
    assert said(program).splitlines() == ["[]", "['torch']"]


def test_a_star_imports_what_all_names_and_every_module_of_the_mathematics_is_an_attribute():
    mathematics = ROWS[1][0].split()
    program = f"""
import minippo
print(*[getattr(minippo, name).__name__ for name in {mathematics}])
names = {{}}
exec("from minippo import *", names)
assert names.keys() - {{"__builtins__"}} == set(minippo.__all__)
"""
    assert said(program).split() == [f"minippo.{name}" for name in mathematics]


def test_code_lines_by_hand():
    source = '"""Doc\n\nstring."""\n\n# comment\nx = 1  # counts\n\n\ndef f(\n    a,\n):\n'
    source += '    """Doc."""\n    return """two\nlines"""\n'
    assert code_lines(source) == 6  # x, def, a, ):, and the two of the return


HOUR = "responses models rollout ppo trainer".split() + ROWS[1][0].split()


@pytest.mark.parametrize(
    ("names", "limit"),
    [
        (ROWS[1][0].split(), 450),  # the mathematics
        (HOUR, 1_300),  # what a reader of an hour reads
        ([name for row, _ in ROWS[:-1] for name in row.split()], 2_300),  # all files at the top
        ([*PLACE], 10_750),
    ],
    ids=["mathematics", "hour", "files", "package"],
)
def test_the_package_stays_small(names, limit):
    texts = sources()
    counts = {name: code_lines(texts[name]) for name in names if name in texts}
    assert sum(counts.values()) <= limit, counts


def test_no_body_is_longer_than_a_screen():
    """Forty lines of code at most, without the docstring."""
    long = []
    for path in sorted(PACKAGE.rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef):
                body = ast.Module(node.body, [])
                if (n := code_lines(ast.unparse(body))) > 40:
                    long.append(f"{path.name}:{node.name} has {n}")
    assert long == []
