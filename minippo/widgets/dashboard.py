"""Train while you watch: a text before and after, live curves; pause and stop between steps."""

import html
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import ipywidgets
from matplotlib.figure import Figure

from minippo import plots
from minippo._validate import fail
from minippo.widgets._explorer import Widget

REDRAW = 1.0  # minimum seconds between two pictures
NARROW = {"width": "7em"}  # a button's layout
Draw = Callable[[Sequence[Any]], Figure]
# Five lines of text: where an answer gets longer, the picture below does not jump.
TEXTS = "<div style='line-height: 1.5; min-height: 9em'>{}</div>"


class Dashboard(Widget):
    """A training run in a separate thread; made by `dashboard`.

    A busy kernel cannot handle button clicks; a thread leaves the kernel free. Pause and stop take
    effect between steps, when the trainer's state is consistent: while it is paused, or after
    training, you may call its methods.

    Attributes:
        sentence: The current state, with numbers.
        error: The exception that ended the training, if any.
    """

    def __init__(
        self, trainer: Any, prompts: Sequence[str], n_steps: int, draw: Draw | None = None
    ) -> None:
        if any(isinstance(callback, Dashboard) for callback in trainer.callbacks):
            fail("dashboard", "trainer", "not be in training", "one that another dashboard trains")
        if isinstance(prompts, str) or not prompts:
            fail("dashboard", "prompts", "be a list of at least one text", repr(prompts)[:60])
        self.trainer, self.prompts, self.n_steps = trainer, list(prompts), n_steps
        self.plain = draw is not None
        self.draw = draw or partial(plots.training_run, n_steps=n_steps)
        self.sentence = ""
        self.error: BaseException | None = None
        self._state, self._drawn = threading.Condition(), 0.0
        self._paused = self._waiting = self._stopped = self._ended = False
        self.toggle = ipywidgets.Button(description="pause", icon="pause", layout=NARROW)
        self.toggle.on_click(lambda _: self.resume() if self._paused else self.pause())
        self.halt = ipywidgets.Button(description="stop", icon="stop", layout=NARROW)
        self.halt.on_click(lambda _: self.stop())
        self.progress = ipywidgets.IntProgress(max=n_steps, layout={"width": "12em"})
        self.image = ipywidgets.Image(format="png", width=900, layout={"margin": "0"})
        self.sample, self.text = ipywidgets.HTML(), ipywidgets.HTML()
        self._before = len(trainer.history), self._answer()
        row = [self.toggle, self.halt, self.progress, self.text]
        flow = {"flex_flow": "row wrap", "align_items": "center"}
        self.box = ipywidgets.VBox([ipywidgets.HBox(row, layout=flow), self.sample, self.image])
        self._draw()  # before the first step: a cell without anything would look dead
        trainer.callbacks.append(self)
        self._thread = threading.Thread(target=self._train, daemon=True)
        self._thread.start()

    # ---- from the reader's side ----------------------------------------------------------------

    def pause(self) -> None:
        """Pause after the current step until `resume` or `stop`."""
        with self._state:
            if not (self._paused or self._stopped or self._ended):
                self._paused = True
                self._say()

    def resume(self) -> None:
        """Continue training."""
        with self._state:
            if self._paused:
                self._paused = False
                self._say()
                self._state.notify_all()

    def stop(self) -> None:
        """Stop after the current step; what was learned is kept."""
        with self._state:
            if not self._ended:
                self._stopped, self._paused = True, False
                self._say()
                self._state.notify_all()

    def wait(self) -> list[dict[str, float]]:
        """Block until training has ended and return the history. Ctrl-C (interrupt) stops it.

        Raises:
            Exception: Any exception that the training raised.
        """
        try:
            while self._thread.is_alive():
                self._thread.join(0.2)  # short, so that an interrupt gets through
        except KeyboardInterrupt:
            self.stop()
            raise
        if self.error is not None:
            raise self.error
        return self.trainer.history

    # ---- from the training's side --------------------------------------------------------------

    def __call__(self, trainer: Any, stats: dict[str, float]) -> bool:
        """Update the dashboard after each step of its own training."""
        if threading.current_thread() is not self._thread:
            return False  # you called trainer.step while it was paused
        with self._state:
            if self._paused:
                self._waiting = True
                self._draw()
                self._state.wait_for(lambda: not self._paused)
                self._waiting = False
            stopped = self._stopped
        if not stopped and time.monotonic() - self._drawn > REDRAW:
            self._draw()
        return stopped

    def _train(self) -> None:
        try:
            self.trainer.train(self.prompts, self.n_steps, progress=False)
        except BaseException as error:  # of any kind: in a thread nobody else would see it
            self.error = error
        finally:
            self.trainer.callbacks.remove(self)
        with self._state:
            self._ended, self._paused = True, False
        try:
            self._draw()
        except Exception as error:
            self.error = self.error or error
            self._say()

    def _answer(self) -> str:
        from minippo.practice.samples import answer  # lazy: loads transformers, takes seconds

        return answer(self.trainer, self.prompts[0])

    def _draw(self) -> None:
        """Show the text before and now, the curves and the state."""
        step, self._drawn = len(self.trainer.history), time.monotonic()
        self.image.value = plots.png(self.draw(self.trainer.history))
        first, before = self._before
        rows = {
            "prompt": self.prompts[0],
            "before training" if first == 0 else f"at first (step {first})": before,
            f"now (step {step})": self._answer() if step > first else "…",
        }
        lines = [f"<b>{name}</b> {html.escape(text)}" for name, text in rows.items()]
        paragraphs = "".join(f"<p style='margin: 0 0 0.4em'>{line}</p>" for line in lines)
        self.sample.value = TEXTS.format(paragraphs)
        self._say()

    def _now(self) -> str:
        """Return the state in words."""
        if self._ended:
            return "failed" if self.error else "stopped" if self._stopped else "done"
        if self._stopped:
            return "stopping after this step"
        if self._paused:
            return "paused" if self._waiting else "pausing after this step"
        return "training"

    def _say(self) -> None:
        """Show the state beside the buttons that do something in it."""
        with self._state:
            history = self.trainer.history
            self.sentence = f"{self._now()}, step {len(history)} of {self.n_steps}"
            if history:
                now = history[-1]
                kl = "" if self.plain else f", KL {abs(now['kl']):.1f} nats"
                self.sentence += f": score {now['score']:.2f}{kl}"
            if self.error is not None:
                self.sentence += f"; {type(self.error).__name__}: {self.error}"
            role = "status" if self.error is None else "alert"
            self.text.value = (
                f"<p role='{role}' style='margin: 0'>{html.escape(self.sentence)}.</p>"
            )
            self.progress.value = len(history)
            self.progress.bar_style = "danger" if self.error else "success" if self._ended else ""
            self.toggle.description = "resume" if self._paused else "pause"
            self.toggle.icon = "play" if self._paused else "pause"
            self.toggle.disabled = self.halt.disabled = self._stopped or self._ended

    def __repr__(self) -> str:
        # Numbers change from moment to moment during a run, so a stored page has none.
        if self._thread.is_alive():
            return f"dashboard: {self.n_steps} steps, training in the background"
        return f"dashboard: {self.sentence}."


def dashboard(
    trainer: Any, prompts: Sequence[str], n_steps: int, *, draw: Draw | None = None
) -> Dashboard:
    """Train in the background, with live curves and an answer to the first prompt.

    `n_steps` is the total, as in `PPOTrainer.train`, and the training is the same: pausing,
    drawing and sampling change no weights. Before you use the trainer, pause or `wait()`. `draw`
    makes another picture of the history, for readers who do not know all the curves yet.
    """
    return Dashboard(trainer, prompts, n_steps, draw)
