"""Your own text: its tokens and what a language model expects after each."""

import html
from collections.abc import Sequence
from typing import Any

import ipywidgets
import torch

from minippo import plots
from minippo.plots import Picture
from minippo.widgets._explorer import Asked, Explorer

TEXT = "We tried the old bakery by the sea. The"


class _Words(Sequence[str]):
    """The text of each token in the vocabulary; GPT-2 has 50,257, of which few are shown."""

    def __init__(self, tokenizer: Any, size: int) -> None:
        self._tokenizer, self._size = tokenizer, size

    def __getitem__(self, token: Any) -> Any:
        return self._tokenizer.decode([token])

    def __len__(self) -> int:
        return self._size


class OwnText(Picture):
    """The next token's distribution after a token of any text."""

    def __init__(self, policy: Any, tokenizer: Any) -> None:
        self._policy, self._tokenizer = policy, tokenizer
        size = policy.language_model.get_input_embeddings().num_embeddings
        words = _Words(tokenizer, size)
        self._picture = plots.NextToken(torch.zeros(1, size), words, show_entropy=False)
        self._text: str | None = None
        super().__init__(self._picture.figure, self._picture._moving)

    def tokens(self, text: str) -> list[str]:
        """The tokenizer's own tokens and then the text's, truncated to the model's context."""
        return [self._tokenizer.decode([token]) for token in self._ids(text)]

    def _ids(self, text: str) -> list[int]:
        ids = self._tokenizer(text)["input_ids"] or [self._tokenizer.eos_token_id]
        return ids[: self._policy.context_length]

    def move(self, *, text: str = TEXT, position: int = 0, temperature: float = 1.0) -> str:
        """Show what is expected after token `position`, or after the last if there are fewer."""
        ids = self._ids(text)
        if text != self._text:
            device = next(self._policy.parameters()).device
            tokens = torch.tensor([ids], device=device)
            with torch.no_grad():
                logits, _ = self._policy(tokens, torch.ones_like(tokens, dtype=torch.bool))
            self._picture.logits, self._text = logits[0].float().cpu(), text
        position = min(position, len(ids) - 1)
        said = self._picture.move(position=position, temperature=temperature)
        after = self._tokenizer.decode(ids[position : position + 1])
        return f"After {after!r} (token {position} of 0 to {len(ids) - 1}). {said}"


def own_text(policy: Any, tokenizer: Any, *, text: str = TEXT, question: Asked = None) -> Explorer:
    """Type a text: its tokens, and the model's next-token distribution after any of them.

    The text is read when you press Enter or leave the box. Token 0 is the one the tokenizer
    prepends, if any.

    Args:
        policy: A `PolicyWithValue`, as returned by `load_policy`.
        tokenizer: The policy's tokenizer.
        text: The initial text.
        question: A question to answer before moving.
    """
    picture = OwnText(policy, tokenizer)
    style = {"style": {"description_width": "9em"}, "layout": {"width": "44em"}}
    last = len(picture.tokens(text)) - 1
    controls = {
        "text": ipywidgets.Text(
            value=text, description="your text", continuous_update=False, **style
        ),
        "position": ipywidgets.IntSlider(
            value=last, min=0, max=last, description="after token", **style
        ),
        "temperature": ipywidgets.FloatSlider(
            value=1.0, min=0.1, max=3.0, step=0.1, description="temperature", **style
        ),
    }
    row = ipywidgets.HTML()

    def retokenized(_: Any = None) -> None:
        """Before drawing, end the slider at the last token; at the end, it stays there."""
        position = controls["position"]
        at_end = position.value == position.max
        position.max = len(picture.tokens(controls["text"].value)) - 1
        if at_end:
            position.value = position.max

    def show_tokens(_: Any = None) -> None:
        chosen = controls["position"].value
        row.value = _row(picture.tokens(controls["text"].value), chosen)

    controls["text"].observe(retokenized, names="value")
    explorer = Explorer("own_text", picture, controls, question=question)
    for name in ("text", "position"):
        controls[name].observe(show_tokens, names="value")
    show_tokens()
    *above, image, sentence = explorer.box.children
    explorer.box.children = (*above, row, image, sentence)
    return explorer


def _row(tokens: list[str], chosen: int) -> str:
    """Tokens in boxes, the chosen one with a thick frame and spaces as dots."""
    boxes = []
    for number, token in enumerate(tokens):
        width, mark = (3, " aria-current='true'") if number == chosen else (1, "")
        style = f"border: {width}px solid {plots.COLOURS['policy']}; padding: 0 2px; margin: 1px"
        style += "; display: inline-block; white-space: pre; line-height: 1.5"
        boxes.append(f"<code{mark} style='{style}'>{html.escape(token.replace(' ', '·'))}</code>")
    return f"<div>{''.join(boxes)}</div>"
