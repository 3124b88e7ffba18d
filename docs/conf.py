"""Build the site: the course as stored, minippo's reference, the cheat sheet (`make site`)."""

import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

import minippo  # noqa: E402

project, author, release = "minippo", "The minippo authors", minippo.__version__
copyright = "The minippo authors. Code: MIT. Text and data: CC BY 4.0"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
# The sources stay where readers of the repository find them: next to this file, not below it.
include_patterns = ["docs/*.md", "notebooks/[0-9][0-9]_*.ipynb", "notebooks/*.md"]
root_doc = "docs/index"

nb_execution_mode = "off"  # outputs are stored, and the tests compare them
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
myst_heading_slug_func = "anchors.of_heading"  # links to lessons' sections, as in Jupyter
# Lessons' headings start at "#" and may skip levels; links to repository files are kept.
suppress_warnings = ["myst.header", "myst.xref_missing", "mystnb.unknown_mime_type"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_use_ivar = True
add_module_names = False

html_theme, pygments_dark_style = "furo", "github-dark"  # the default underlines imports like links
html_title = "minippo"
html_extra_path = ["index.html"]
html_static_path, html_css_files = ["site.css"], ["site.css"]
html_copy_source = html_show_sourcelink = False
urls = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"].get(
    "urls", {}
)
if "Repository" in urls:
    html_theme_options = {
        "source_repository": urls["Repository"],
        "source_branch": "main",
        "source_directory": "",
    }
    html_baseurl = urls["Documentation"]
