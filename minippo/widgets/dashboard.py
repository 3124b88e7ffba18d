"""Train while you watch: live curves and a sample text; pause and stop between steps."""

import html
import threading
import time
from collections.abc import Sequence
from typing import Any

import ipywidgets

from minippo import plots
from minippo._validate import fail
from minippo.widgets._explorer import Widget

REDRAW = 1.0  # minimum seconds between two pictures


class Dashboard(Widget):
    """A training run in a separate thread; made by `dashboard`.

    A busy kernel cannot handle button clicks; a thread leaves the kernel free. Pause and stop take
    effect between steps, when the trainer's state is consistent: while it is paused, or after
    training, you may call its methods.

    Attributes:
        sentence: The current state, with numbers.
        error: The exception that ended the training, if any.
    """

    def __init__(self, trainer: Any, prompts: Sequence[str], n_steps: int) -> None:
        if any(isinstance(callback, Dashboard) for callback in trainer.callbacks):
            fail("dashboard", "trainer", "not be in training", "one that another dashboard trains")
        if isinstance(prompts, str) or not prompts:
            fail("dashboard", "prompts", "be a list of at least one text", repr(prompts)[:60])
        self.trainer, self.prompts, self.n_steps = trainer, list(prompts), n_steps
        self.sentence = ""
        self.error: BaseException | None = None
        self._state, self._drawn = threading.Condition(), 0.0
        self._paused = self._stopped = self._ended = False
        acts = {"pause": self.pause, "resume": self.resume, "stop": self.stop}
        self.buttons = {name: ipywidgets.Button(description=name) for name in acts}
        for name, button in self.buttons.items():
            button.on_click(lambda _, act=acts[name]: act())
        self.image = ipywidgets.Image(format="png", width=900, layout={"margin": "0"})
        self.sample, self.text = ipywidgets.HTML(), ipywidgets.HTML()
        self._first = self._respond()
        row = ipywidgets.HBox(list(self.buttons.values()))
        self.box = ipywidgets.VBox([row, self.image, self.sample, self.text])
        trainer.callbacks.append(self)
        self._thread = threading.Thread(target=self._train, daemon=True)
        self._say("training")
        self._thread.start()

    # ---- from the reader's side ----------------------------------------------------------------

    def pause(self) -> None:
        """Pause after the current step until `resume` or `stop`."""
        with self._state:
            if not (self._paused or self._stopped or self._ended):
                self._paused = True
                self._say("pausing after this step")

    def resume(self) -> None:
        """Continue training."""
        with self._state:
            if self._paused and not (self._stopped or self._ended):
                self._paused = False
                self._say("training")
                self._state.notify_all()

    def stop(self) -> None:
        """Stop after the current step; what was learned is kept."""
        with self._state:
            if not self._ended:
                self._stopped = True
                self._say("stopping after this step")
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
            if self._paused and not self._stopped:
                self._draw("paused")
                self._state.wait_for(lambda: self._stopped or not self._paused)
            stopped = self._stopped
        if not stopped and time.monotonic() - self._drawn > REDRAW:
            self._draw("training")
        return stopped

    def _train(self) -> None:
        try:
            self.trainer.train(self.prompts, self.n_steps, progress=False)
        except BaseException as error:  # of any kind: in a thread nobody else would see it
            self.error = error
        finally:
            self.trainer.callbacks.remove(self)
        with self._state:
            self._ended = True
        try:
            self._draw("stopped" if self._stopped else "done")
        except Exception as error:
            self.error = self.error or error
        if self.error is not None:
            self._say("failed")
        for button in self.buttons.values():
            button.disabled = True

    def _respond(self) -> str:
        """Return the policy's answer to the first prompt, with fixed random numbers."""
        from minippo.rollout import respond  # lazy: loads transformers, which takes seconds

        config = self.trainer.config
        (text,) = respond(
            self.trainer.policy,
            self.trainer.tokenizer,
            self.prompts[:1],
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
        )
        return text.strip()

    def _draw(self, state: str) -> None:
        history, self._drawn = self.trainer.history, time.monotonic()
        if history:
            self.image.value = plots.png(plots.training_run(history))
            rows = {
                "prompt": self.prompts[0],
                "at first": self._first,
                f"step {len(history)}": self._respond(),
            }
            self.sample.value = "".join(
                f"<p><b>{name}</b> {html.escape(text)}</p>" for name, text in rows.items()
            )
        self._say(state)

    def _say(self, state: str) -> None:
        history = self.trainer.history
        self.sentence = f"{state}, step {len(history)} of {self.n_steps}"
        if history:
            now = history[-1]
            self.sentence += f": score {now['score']:.2f}, KL {abs(now['kl']):.1f} nats"
        if self.error is not None:
            self.sentence += f"; {type(self.error).__name__}: {self.error}"
        role = "status" if self.error is None else "alert"
        self.text.value = f"<p role='{role}'>{html.escape(self.sentence)}.</p>"

    def __repr__(self) -> str:
        # Numbers change from moment to moment during a run, so a stored page has none.
        if self._thread.is_alive():
            return f"dashboard: {self.n_steps} steps, training in the background"
        return f"dashboard: {self.sentence}."


def dashboard(trainer: Any, prompts: Sequence[str], n_steps: int) -> Dashboard:
    """Train in the background, with live curves and an answer to the first prompt.

    `n_steps` is the total, as in `PPOTrainer.train`, and the training is the same: pausing,
    drawing and sampling change no weights. Before you use the trainer, pause or `wait()`.
    """
    return Dashboard(trainer, prompts, n_steps)
