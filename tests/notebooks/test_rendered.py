"""What a reader sees of a notebook without a kernel, as a page: no picture without its words."""

from html.parser import HTMLParser
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbconvert import HTMLExporter

from minippo import widgets

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
