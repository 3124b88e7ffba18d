"""Parts of an explorer: a picture, its controls, one sentence and an optional question."""

import html
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import ipywidgets

from minippo.course.told import told
from minippo.plots import Picture, folded

Controls = Mapping[str, ipywidgets.Widget]


class Widget:
    """Show its `box` if there is a kernel, otherwise its `repr`."""

    box: ipywidgets.Box

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        # Made here, not by the box: ipywidgets 7, which Colab uses, has no such method.
        view = {"version_major": 2, "version_minor": 0, "model_id": self.box.model_id}
        return {"application/vnd.jupyter.widget-view+json": view, "text/plain": repr(self)}


class Question(Widget):
    """Predict, then move: the explanation comes after the reader has committed to an answer."""

    def __init__(self, asks: str, options: Sequence[str], right: int, explains: str) -> None:
        self.asks, self.options = asks, list(options)
        self.right, self.explains = options[right], explains
        self.choice = ipywidgets.RadioButtons(
            options=list(options), value=None, description="", layout={"width": "auto"}
        )
        self.answer = ipywidgets.HTML()
        self.choice.observe(self._committed, names="value")
        asked = ipywidgets.HTML(f"<b>What would you expect?</b> {html.escape(asks)}")
        self.box = ipywidgets.VBox([asked, self.choice, self.answer])

    def _committed(self, change: Mapping[str, Any]) -> None:
        word = "Yes." if change["new"] == self.right else f"No: {self.right}."
        self.answer.value = f"<i>{html.escape(f'{word} {self.explains}')}</i>"
        self.choice.disabled = True

    def __repr__(self) -> str:
        return "\n".join([f"What would you expect? {self.asks}", *(f"- {x}" for x in self.options)])

    @property
    def page(self) -> str:
        """What is shown without a kernel: the question, with the answer folded."""
        asks, right, explains = map(html.escape, (self.asks, self.right, self.explains))
        options = "".join(f"<li>{html.escape(option)}</li>" for option in self.options)
        page = f"<p><b>What would you expect?</b> {asks}</p><ul>{options}</ul>"
        return page + folded(f"<p>{right}. {explains}</p>", "The answer")

    def _repr_mimebundle_(self, **more: Any) -> dict[str, Any]:
        return super()._repr_mimebundle_(**more) | {"text/html": self.page}


def ask(key: str) -> Question:
    """Ask a lesson's question: `widgets.ask("05-first")`. The answer is not in the notebook."""
    said = told("ask", "ask", key)
    return Question(said["text"], said["options"], said["right"], said["explains"])


Asked = Question | str | None  # a question, its key, or none


class Explorer(Widget):
    """A picture that follows its controls.

    `settings` are the controls' current values, `sentence` says what the picture shows. Of moves
    that arrive during a drawing, only the last is drawn. Callbacks may come from any thread.
    """

    def __init__(
        self, name: str, picture: Picture, controls: Controls, *, question: Asked = None
    ) -> None:
        question = ask(question) if isinstance(question, str) else question
        self.name, self.picture, self.controls, self.question = name, picture, controls, question
        width, height = picture.figure.get_size_inches() * picture.figure.dpi
        self.image = ipywidgets.Image(
            format="png", width=int(width), height=int(height), layout={"margin": "0"}
        )  # a margin would overflow a narrow page and add a scroll bar
        self.text = ipywidgets.HTML()
        self.sentence = ""
        self._drawing, self._asked = threading.Lock(), 0
        for control in controls.values():
            control.observe(self._moved, names="value")
        top = [] if question is None else [question.box]
        rows = [*top, *controls.values(), self.image, self.text]
        self.box = ipywidgets.VBox(rows)
        self._draw()

    @property
    def settings(self) -> dict[str, Any]:
        """Map the controls' names to their values."""
        return {name: control.value for name, control in self.controls.items()}

    def move(self, **settings: Any) -> str:
        """Set controls as a reader would and return the sentence."""
        for name, value in settings.items():
            self.controls[name].value = value
        return self.sentence

    def _moved(self, _: Mapping[str, Any]) -> None:
        self._asked += 1
        asked = self._asked
        with self._drawing:
            if asked == self._asked:  # no later move has replaced this one
                self._draw()

    def _draw(self) -> None:
        self.sentence = self.picture.move(**self.settings)
        self.image.value = self.picture.png()
        self.text.value = f"<p role='status'>{html.escape(self.sentence)}</p>"

    def _repr_mimebundle_(self, **more: Any) -> dict[str, Any]:
        shown = super()._repr_mimebundle_(**more)
        return shown | ({"text/html": self.question.page} if self.question else {})

    def __repr__(self) -> str:
        return f"{self.name}: {self.sentence}"
