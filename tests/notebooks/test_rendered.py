"""What a reader sees of a notebook without a kernel, as a page: no picture without its words."""

import re
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbconvert import HTMLExporter
from nbconvert.filters import markdown2html

from minippo import widgets
from tests.notebooks.test_notebooks import NOTEBOOKS, cells

ROOT = Path(__file__).parents[2]
CELLS = [
    "from minippo import plots, widgets",
    "widgets.clipping()",
    "widgets.replay('healthy')",
    "plots.show(plots.clipping_panels(), alt='Four <panels>.', caption='Two regions are flat.')",
    "pairs = [{'prompt': 'Hi.', 'rejected': 'no', 'chosen': 'yes'}]\nwidgets.compare(pairs)",
    "widgets.compare_panels(pairs)",
]


class Reader(HTMLParser):
    """Collects pictures with their alternative texts, and all text that is shown."""

    def __init__(self):
        super().__init__()
        self.pictures, self.text, self._hidden = [], "", 0

    def handle_starttag(self, tag, attributes):
        if tag == "img":
            self.pictures.append(dict(attributes).get("alt") or "")
        self._hidden += tag in ("script", "style")

    def handle_endtag(self, tag):
        self._hidden -= tag in ("script", "style")

    def handle_data(self, data):
        if not self._hidden:
            self.text += data


def test_a_page_without_a_kernel_has_a_text_for_every_picture():
    cells = [nbformat.v4.new_code_cell(source) for source in CELLS]
    notebook = nbformat.v4.new_notebook(cells=cells)
    where = {"metadata": {"path": str(ROOT)}}
    NotebookClient(notebook, timeout=120, resources=where, store_widget_state=False).execute()
    reader = Reader()
    reader.feed(HTMLExporter(exclude_input=True).from_notebook_node(notebook)[0])
    assert reader.pictures == ["Four <panels>."]
    for explorer in (widgets.clipping(), widgets.replay("healthy")):
        assert repr(explorer) in reader.text
        assert explorer.sentence in repr(explorer)
    for words in ("Two regions are flat.", "compare: Pair 1 of 1: 0 answered.", "choose first"):
        assert words in reader.text


def test_a_picture_without_words_would_be_found():
    reader = Reader()
    reader.feed("<p>so</p><img src='x'/><img src='y' alt=''/><script>const no = 1</script>")
    assert (reader.pictures, reader.text) == (["", ""], "so")


class Numbers(HTMLParser):
    """Collects the numbers that a page's ordered lists show."""

    def __init__(self):
        super().__init__()
        self.shown, self._next = [], []

    def handle_starttag(self, tag, attributes):
        if tag in ("ol", "ul"):
            start = int(dict(attributes).get("start") or 1)
            self._next.append(start if tag == "ol" else None)
        if tag == "li" and self._next[-1] is not None:
            self.shown.append(self._next[-1])
            self._next[-1] += 1

    def handle_endtag(self, tag):
        if tag in ("ol", "ul"):
            self._next.pop()


def numbers(text: str) -> tuple[list[int], list[int]]:
    """The numbers of ordered lists as written, also within a line, and as rendered."""
    reader = Numbers()
    reader.feed(str(markdown2html(text)))
    found = re.findall(r"(?:^ *|; )(\d+)[.)] (?=\S)", text, re.MULTILINE)
    return [int(n) for n in found], reader.shown


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem[:2])
def test_every_ordered_list_shows_the_numbers_of_its_source(path):
    for cell in cells(path, "markdown"):
        written, shown = numbers(cell["source"])
        assert not shown or shown == written, cell["source"]


def test_items_that_share_a_line_would_be_found():
    joined = "1. act; 2. score; 3. measure\n4. ratio; 5. clip"
    assert numbers(joined) == ([1, 2, 3, 4, 5], [1, 2])
    assert numbers("1. act\n2. score\n\nText.\n\n3. measure") == ([1, 2, 3], [1, 2, 3])
