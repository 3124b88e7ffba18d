"""Questions and captions come by key; what reveals is folded."""

import pytest
from matplotlib.figure import Figure

from minippo import course, widgets
from minippo.course import told

TEXTS = """
[ask.first]
text = "What do all ratios read?"
options = ["0", "1 < 2", "it depends"]
right = 1
explains = "The policy is divided by itself."

[show.bugs]
alt = "Bars of the largest distance of a ratio from one, for four bugs."
caption = "Each bug shows."
fold = "What the bugs do"

[show.plain]
alt = "Bars of the largest distance of a ratio from one, for four bugs."
caption = "Each bug shows."
"""


@pytest.fixture(autouse=True)
def _lesson(monkeypatch, tmp_path):
    (tmp_path / "99.toml").write_text(TEXTS, encoding="utf-8")
    monkeypatch.setattr(told, "FOLDER", tmp_path)
    told._lesson.cache_clear()
    yield
    told._lesson.cache_clear()


def test_a_question_keeps_its_answer_until_the_reader_has_chosen():
    question = widgets.ask("99-first")
    assert question.answer.value == ""
    question.choice.value = "0"
    assert "No: 1 &lt; 2. The policy is divided by itself." in question.answer.value
    assert question.choice.disabled


def test_without_a_kernel_the_question_is_read_and_its_answer_is_folded():
    bundle = widgets.ask("99-first")._repr_mimebundle_()
    assert bundle["text/plain"] == (
        "What would you expect? What do all ratios read?\n- 0\n- 1 < 2\n- it depends"
    )
    before, folded = bundle["text/html"].split("<details>")
    assert "divided" not in before
    assert "<p>1 &lt; 2. The policy is divided by itself.</p></details>" in folded


def test_an_explorer_takes_its_question_by_key():
    explorer = widgets.clipping(question="99-first")
    assert explorer.question.right == "1 < 2"


@pytest.mark.parametrize(("key", "summary"), [("99-bugs", "What the bugs do"), ("99-plain", "")])
def test_a_picture_takes_its_words_by_key_and_is_folded_if_it_reveals(key, summary):
    page = course.show(Figure(figsize=(1, 1)), key)._repr_mimebundle_()["text/html"]
    assert 'alt="Bars of the largest' in page
    assert "<figcaption>Each bug shows.</figcaption>" in page
    assert page.startswith("<details><summary>What the bugs do</summary>") == bool(summary)


@pytest.mark.parametrize("key", ["99-frist", "98-first", "first"])
def test_a_key_that_is_not_known_is_refused_with_those_that_are(key):
    with pytest.raises(ValueError, match="ask: key must be one of ") as error:
        widgets.ask(key)
    assert ("99-first" in str(error.value)) == key.startswith("99")


def test_revealed_lines_are_folded_and_stay_whole_for_those_who_compare(monkeypatch):
    shown = []
    monkeypatch.setattr(told, "display", shown.append)
    course.reveal("ratio <1>", 2.5, label="By how much")
    bundle = shown[0]._repr_mimebundle_()
    assert bundle["text/plain"] == "ratio <1>\n2.5"
    lines = "<pre style='font-family: monospace'>ratio &lt;1&gt;\n2.5</pre>"  # columns stay columns
    assert bundle["text/html"] == f"<details><summary>By how much</summary>{lines}</details>"


def test_every_text_of_the_lessons_is_whole():
    """Each question has one right option and says why; each caption its alternative text."""
    told._lesson.cache_clear()
    folder = told.Path(told.__file__).with_name("lessons")
    for path in sorted(folder.glob("*.toml")):
        lesson = told.tomllib.loads(path.read_text(encoding="utf-8"))
        assert set(lesson) <= {"ask", "show"}
        for said in lesson.get("ask", {}).values():
            assert set(said) == {"text", "options", "right", "explains"}
            assert 0 <= said["right"] < len(said["options"]) == len(set(said["options"]))
        for said in lesson.get("show", {}).values():
            assert {"alt", "caption"} <= set(said) <= {"alt", "caption", "fold"}
            assert len(said["alt"]) >= 40
