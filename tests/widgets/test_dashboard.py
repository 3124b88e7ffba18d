"""Training in the background: the same weights, pauses between steps, nothing lost or hidden."""

import html
import io
import re
import sys
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from matplotlib import pyplot
from PIL import Image

from minippo import plots, widgets
from minippo.rollout import respond
from tests import tiny
from tests.shapes import refuses
from tests.soak import until


class Gate:
    """A callback that lets one step pass at a time."""

    def __init__(self):
        self.passes = threading.Semaphore(0)

    def __call__(self, trainer, stats):
        self.passes.acquire()


def started(n_steps, **changes):
    """A dashboard whose every step waits to be let through."""
    gate = Gate()
    trainer = tiny.trainer(callbacks=[gate], **changes)
    return widgets.dashboard(trainer, tiny.PROMPTS, n_steps), trainer, gate


def uninterrupted(n_steps):
    trainer = tiny.trainer()
    trainer.train(tiny.PROMPTS, n_steps, progress=False)
    return trainer


def shown(live):
    """The rows of text above the picture."""
    return re.findall(r"<b>(.*?)</b> (.*?)</p>", live.sample.value)


def same(a, b):
    """To the last bit. Histories as text: NaN (constant returns explain nothing) is not NaN."""
    mine, theirs = tiny.weights(a.policy), tiny.weights(b.policy)
    alike = all(torch.equal(mine[name], theirs[name]) for name in mine)
    return alike and str(a.history) == str(b.history)


def test_the_dashboard_trains_as_the_trainer_does_and_says_so():
    trainer = tiny.trainer()
    live = widgets.dashboard(trainer, tiny.PROMPTS, 4)
    assert live.wait() is trainer.history
    assert same(trainer, uninterrupted(4))
    assert live.sentence.startswith("done, step 4 of 4: score ")
    assert f"score {trainer.history[-1]['score']:.2f}" in live.sentence
    assert live.sentence in html.unescape(live.text.value)
    assert repr(live) == f"dashboard: {live.sentence}."
    assert Image.open(io.BytesIO(live.image.value)).width == 900
    assert "<b>now (step 4)</b>" in live.sample.value
    assert (live.progress.value, live.progress.max, live.progress.bar_style) == (4, 4, "success")
    assert trainer.callbacks == []


def test_a_dashboard_looks_alive_before_its_first_step_ends(monkeypatch):
    asked, picture = [], plots.training_run
    monkeypatch.setattr(
        plots, "training_run", lambda h, **k: asked.append((len(h), k)) or picture(h, **k)
    )
    live, trainer, gate = started(3)
    (before,) = respond(trainer.policy, trainer.tokenizer, ["a b"], max_new_tokens=6)
    wanted = [("prompt", "a b"), ("before training", before.strip()), ("now (step 0)", "…")]
    assert shown(live) == wanted
    assert Image.open(io.BytesIO(live.image.value)).width == 900
    assert asked == [(0, {"n_steps": 3})]
    assert live.sentence == "training, step 0 of 3"
    assert (live.progress.value, live.progress.max) == (0, 3)
    for _ in range(6):
        gate.passes.release()
    live.wait()
    (after,) = respond(trainer.policy, trainer.tokenizer, ["a b"], max_new_tokens=6)
    wanted[-1] = ("now (step 3)", after.strip())
    assert shown(live) == wanted
    assert asked[-1] == (3, {"n_steps": 3})


def test_the_text_is_above_the_picture_and_the_state_is_in_the_row_of_the_buttons():
    live = widgets.dashboard(tiny.trainer(), tiny.PROMPTS, 0)
    live.wait()
    row, text, picture = live.box.children
    assert row.children == (live.toggle, live.halt, live.progress, live.text)
    assert (text, picture) == (live.sample, live.image)


def test_one_button_pauses_and_goes_on_and_buttons_that_do_nothing_are_disabled():
    live, _, gate = started(3)

    def looks():
        return live.toggle.description, live.toggle.disabled, live.halt.disabled

    assert looks() == ("pause", False, False)
    live.toggle.click()
    assert looks() == ("resume", False, False)
    live.toggle.click()  # before the step ended: it does not pause after all
    assert live.sentence.startswith("training")
    live.toggle.click()
    gate.passes.release()
    until(lambda: live.sentence.startswith("paused"))
    assert looks() == ("resume", False, False)
    assert live.progress.value == 1
    live.toggle.click()
    assert looks() == ("pause", False, False)
    live.halt.click()
    assert live.sentence.startswith("stopping after this step")
    assert looks() == ("pause", True, True)
    gate.passes.release()
    live.wait()
    assert looks() == ("pause", True, True)


def test_a_sentence_never_says_training_while_a_pause_is_asked_for(monkeypatch):
    """A picture takes a while: the reader may click while the training thread draws it."""
    live, _, gate = started(9)
    live.pause()
    monkeypatch.setattr(live, "_answer", lambda: "text")
    live._draw()
    assert live.sentence.startswith("pausing after this step")
    live.stop()
    live._draw()
    assert live.sentence.startswith("stopping after this step")
    gate.passes.release()
    live.wait()


def test_pausing_and_resuming_the_dashboard_changes_no_weight():
    live, trainer, gate = started(4)
    gate.passes.release()
    live.toggle.click()
    assert live.sentence.startswith("pausing after this step, step ")
    gate.passes.release()
    until(lambda: live.sentence.startswith("paused"))
    step = len(trainer.history)
    assert step in (1, 2)
    for _ in range(4):
        gate.passes.release()
    time.sleep(0.1)
    assert len(trainer.history) == step
    live.pause()
    assert live.sentence.startswith("paused")
    live.toggle.click()
    assert live.sentence.startswith("training")
    live.wait()
    assert same(trainer, uninterrupted(4))


def test_the_trainer_can_be_used_while_it_is_paused_and_the_total_is_kept():
    live, trainer, gate = started(3)
    for _ in range(9):
        gate.passes.release()
    live.pause()
    until(lambda: live.sentence.startswith("paused"))
    step = len(trainer.history)
    mine = threading.Thread(target=trainer.step, args=(tiny.PROMPTS,), daemon=True)
    mine.start()  # another thread than the dashboard's: does not wait
    mine.join(10)
    assert not mine.is_alive()
    assert len(trainer.history) == step + 1
    live.resume()
    live.wait()
    assert len(trainer.history) == max(3, step + 1)


@pytest.mark.parametrize("paused", [False, True])
def test_stopping_the_dashboard_leaves_a_usable_trainer(paused):
    live, trainer, gate = started(100)
    if paused:
        live.pause()
        gate.passes.release()
        until(lambda: live.sentence.startswith("paused"))
    live.halt.click()
    assert live.sentence.startswith("stopping after this step, step ")
    gate.passes.release()
    live.wait()
    assert len(trainer.history) == 1
    assert live.sentence.startswith("stopped, step 1 of 100")
    for late in (live.pause, live.resume, live.stop):  # a click on its way
        late()
        assert live.sentence.startswith("stopped")
    gate.passes.release()
    trainer.step(tiny.PROMPTS)
    assert len(trainer.history) == 2
    for _ in range(9):
        gate.passes.release()
    trainer.train(tiny.PROMPTS, 4, progress=False)  # and goes on: nothing of the stop is left
    assert len(trainer.history) == 4


def test_an_error_in_training_is_shown_by_the_dashboard_and_raised_by_wait():
    def score(responses):
        if len(trainer.history) == 2:
            raise RuntimeError("the judge <fell> ill")
        return tiny.good_count(responses)

    trainer = tiny.trainer(score=score)
    live = widgets.dashboard(trainer, tiny.PROMPTS, 5)
    with pytest.raises(RuntimeError, match="the judge <fell> ill"):
        live.wait()
    assert live.sentence.startswith("failed, step 2 of 5: score")
    assert live.sentence.endswith("RuntimeError: the judge <fell> ill")
    assert "<p role='alert'" in live.text.value
    assert (live.progress.value, live.progress.bar_style) == (2, "danger")
    assert live.toggle.disabled
    assert live.halt.disabled
    assert "&lt;fell&gt;" in live.text.value
    assert trainer.callbacks == []


def test_an_interrupt_of_wait_stops_the_training(monkeypatch):
    live, trainer, gate = started(100)

    def interrupted(timeout):
        raise KeyboardInterrupt

    monkeypatch.setattr(live._thread, "join", interrupted)
    with pytest.raises(KeyboardInterrupt):
        live.wait()
    gate.passes.release()
    until(lambda: not live._thread.is_alive())
    assert len(trainer.history) == 1


def test_one_trainer_has_one_dashboard_at_a_time():
    live, trainer, gate = started(2)
    with refuses("dashboard: trainer", "one that another dashboard trains"):
        widgets.dashboard(trainer, tiny.PROMPTS, 2)
    for _ in range(4):
        gate.passes.release()
    live.wait()
    assert len(widgets.dashboard(trainer, tiny.PROMPTS, 4).wait()) == 4
    with refuses("dashboard: prompts", "'a b'"):
        widgets.dashboard(trainer, "a b", 4)


def test_a_dashboard_with_no_steps_to_do_ends_at_once():
    live = widgets.dashboard(tiny.trainer(), tiny.PROMPTS, 0)
    assert live.wait() == []
    assert live.sentence == "done, step 0 of 0"


def test_the_output_stored_while_a_dashboard_runs_is_the_same_every_time():
    live, _, gate = started(2)
    bundle = live._repr_mimebundle_()
    assert bundle["text/plain"] == "dashboard: 2 steps, training in the background"
    assert "application/vnd.jupyter.widget-view+json" in bundle
    gate.passes.release()
    until(lambda: len(live.trainer.history) == 1)
    assert live._repr_mimebundle_() == bundle
    gate.passes.release()
    live.wait()


def test_the_dashboard_draws_at_most_once_per_second(monkeypatch):
    drawn, picture, now = [], plots.training_run, [0.0]
    clock = SimpleNamespace(monotonic=lambda: now[0])
    monkeypatch.setattr(sys.modules["minippo.widgets.dashboard"], "time", clock)
    monkeypatch.setattr(
        plots, "training_run", lambda h, **k: drawn.append(len(h)) or picture(h, **k)
    )

    def a_step_takes(trainer, stats):
        now[0] += 0.4

    widgets.dashboard(tiny.trainer(callbacks=[a_step_takes]), tiny.PROMPTS, 11).wait()
    assert drawn == [0, 3, 6, 9, 11]  # 1.2 seconds apart; the last step is always drawn
    assert pyplot.get_fignums() == []


def test_a_picture_of_ones_own_replaces_the_curves_and_the_words_about_kl():
    drawn = []

    def draw(history):
        drawn.append(len(history))
        return plots.lines({"score": [stats["score"] for stats in history]}, x="step", y="score")

    live = widgets.dashboard(tiny.trainer(), tiny.PROMPTS, 2, draw=draw)
    live.wait()
    assert (drawn[0], drawn[-1]) == (0, 2)
    assert "KL" not in live.sentence
