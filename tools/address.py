"""Set the repository's address everywhere: `python tools/address.py https://github.com/OWNER/NAME`.

Notebooks get it in their first cell, which then installs minippo where it is missing, and nothing
that Colab has; lessons get a link that opens them there (words, not a picture, because no page of
the course fetches anything); README gets
badges, CITATION.cff and pyproject.toml get URLs. A second address replaces the first; an empty one,
`python tools/address.py ""`, removes everything again.
"""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
ADDRESS = re.compile(r"https://github\.com/(?P<owner>[\w-]+)/(?P<name>[\w.-]+?)")
COLAB = "https://colab.research.google.com/github"
# What the first cell does where minippo is missing, with an address and without one.
INSTALL = """except ImportError:
    %pip install -q --no-deps "minippo @ git+{address}" jaxtyping wadler-lindig
    from minippo import course
"""
REFUSE = """except ImportError as error:  # Colab can install it once it has a published address
    raise SystemExit(f"{error}. In a clone: pip install -r requirements.txt") from None
"""


def stored(code: str) -> str:
    """Lines of a cell as the notebook's file has them."""
    lines = [json.dumps(line, ensure_ascii=False) for line in code.splitlines(keepends=True)]
    return ",\n    ".join(lines)


def notebook(text: str, address: str, link: str) -> str:
    """Return the notebook's text with its first cell's way out and the link below its title."""
    now = re.compile(r'"except ImportError.*?(?=,\s+"MODEL = course)', re.DOTALL)
    way = INSTALL.replace("{address}", address) if address else REFUSE
    text = now.sub(lambda _: stored(way), text, count=1)
    title = re.compile(
        r'^( +)("# \d\d · .*\\n",\n)( +"\\n",\n +"\[Open in Colab\].*\n)?', re.MULTILINE
    )
    line = rf'\1\2\1"\\n",\n\1"[Open in Colab]({link})\\n",\n' if address else r"\1\2"
    return title.sub(line, text, count=1)


def readme(text: str, address: str, site: str, link: str) -> str:
    """Put badges between the title and the first paragraph."""
    badges = (
        f"[![tests]({address}/actions/workflows/tests.yml/badge.svg)]({address}/actions) "
        f"[![open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({link}) "
        f"[the course as a site]({site})\n"
    )
    return re.sub(
        r"\A(# .*\n)(\[!\[tests\].*\n)?", lambda m: m[1] + badges * bool(address), text, count=1
    )


def citation(text: str, address: str, site: str) -> str:
    """Put two fields before the licence."""
    fields = f'repository-code: "{address}"\nurl: "{site}"\n' if address else ""
    return re.sub(r"(repository-code: .*\nurl: .*\n)?(?=license: )", fields, text, count=1)


def pyproject(text: str, address: str, site: str) -> str:
    """Put a table before the scripts."""
    table = f'[project.urls]\nRepository = "{address}"\nDocumentation = "{site}"\n\n'
    return re.sub(
        r"(\[project\.urls\]\n(.+\n)+\n)?(?=\[project\.scripts\])",
        table * bool(address),
        text,
        count=1,
    )


def set_address(root: Path, address: str) -> list[Path]:
    """Rewrite the files of a checkout; return those that changed.

    Raises:
        ValueError: The address is not of the form https://github.com/OWNER/NAME.
    """
    match = ADDRESS.fullmatch(address.removesuffix("/").removesuffix(".git"))
    if address and not match:
        raise ValueError(f"the address must be https://github.com/OWNER/NAME, got {address!r}.")
    owner, name = match.groups() if match else ("", "")
    address = f"https://github.com/{owner}/{name}" if match else ""
    site = f"https://{owner.lower()}.github.io/{name}/"
    notebooks = sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    notebooks += sorted((root / "notebooks" / "homework" / "source").glob("*/*.ipynb"))
    links = {p: f"{COLAB}/{owner}/{name}/blob/main/notebooks/{p.name}" for p in notebooks}
    new = {p: notebook(p.read_text(encoding="utf-8"), address, link) for p, link in links.items()}
    for file, change in (
        ("README.md", lambda text: readme(text, address, site, links[notebooks[0]])),
        ("CITATION.cff", lambda text: citation(text, address, site)),
        ("pyproject.toml", lambda text: pyproject(text, address, site)),
    ):
        new[root / file] = change((root / file).read_text(encoding="utf-8"))
    changed = [path for path, text in new.items() if path.read_text(encoding="utf-8") != text]
    for path in changed:
        path.write_text(new[path], encoding="utf-8")
    return changed


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    try:
        print(*set_address(ROOT, sys.argv[1]), sep="\n")
    except ValueError as error:
        sys.exit(f"address: {error}")
