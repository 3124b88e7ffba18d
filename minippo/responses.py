"""Records of sampling: prompts with their responses, and what was measured on them.

Prompts are padded on the LEFT and responses on the RIGHT, so that response token t is in
column t of every row. The padding token is EOS (GPT-2 has no other), so nothing here asks whether
a token "is padding": masks are built once, from the first EOS in the response, and travel with the
ids.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from minippo._validate import checked

Columns = Mapping[str, Sequence[Any]]


@dataclass(frozen=True, eq=False)
class Responses:
    """Prompts with their responses; rows are episodes, columns of `ids` are response tokens.

    Attributes:
        prompt_ids: prompt tokens, padded on the left.
        prompt_mask: True on real tokens.
        ids: response tokens, padded on the right.
        mask: True on real tokens, EOS included: in each row ones, then zeros.
        columns: other columns of the data set, one entry per row ("answer", ...).
    """

    prompt_ids: Int[Tensor, "batch prompt"]
    prompt_mask: Bool[Tensor, "batch prompt"]
    ids: Int[Tensor, "batch time"]
    mask: Bool[Tensor, "batch time"]
    columns: Columns = field(default_factory=dict)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The four tensors by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)[:4]}

    @property
    def tokens(self) -> Int[Tensor, "batch length"]:
        """Prompt and response in one row."""
        return torch.cat([self.prompt_ids, self.ids], 1)

    @property
    def attention_mask(self) -> Bool[Tensor, "batch length"]:
        """True on the real tokens of prompt and response."""
        return torch.cat([self.prompt_mask, self.mask], 1)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: Tensor | slice) -> "Responses":
        numbers = torch.arange(len(self))[rows.cpu() if isinstance(rows, Tensor) else rows].tolist()
        columns = {name: [column[i] for i in numbers] for name, column in self.columns.items()}
        tensors = {name: x[rows] for name, x in self.tensors.items()}
        return Responses(**tensors, columns=columns)

    def to(self, device: torch.device) -> "Responses":
        """The same rows on another device."""
        tensors = {name: x.to(device) for name, x in self.tensors.items()}
        return Responses(**tensors, columns=self.columns)

    def trim(self) -> "Responses":
        """Drop the columns that are padding in every row. Changes no row's results."""
        prompt, time = int(self.prompt_mask.sum(1).max()), int(self.mask.sum(1).max())
        start = self.prompt_ids.shape[1] - prompt
        ids, mask = self.prompt_ids[:, start:], self.prompt_mask[:, start:]
        return Responses(ids, mask, self.ids[:, :time], self.mask[:, :time], self.columns)

    def by_length(self, size: int | None) -> tuple[Tensor, ...]:
        """Row numbers, `size` at a time, shorter responses first.

        Parts with rows of similar length hold less padding once trimmed. None gives one part, or
        two if that saves a twentieth of the columns or more.
        """
        lengths, rows = self.mask.sum(1).sort(stable=True)
        if size is None:
            size, half = len(rows), len(rows) // 2
            if half and half * int(lengths[-1] - lengths[half - 1]) >= 0.05 * self.mask.numel():
                size -= half
        return rows.cpu().split(size)


@dataclass(frozen=True, eq=False)
class Rollout:
    """A batch of episodes, measured once and never changed.

    Attributes:
        responses: the episodes.
        log_probs: log-probs under the policy that sampled, at the sampling temperature, in nats.
        ref_log_probs: log-probs under the reference, at the same temperature, in nats.
        values: `values[:, t]` belongs to the state before token t; V(prompt) is `values[:, 0]`.
        scores: the raw scores; [batch, time] if the score function scores each token.
        kl: KL to the reference per token, by the reward's estimator, in nats.
        truncated: True where no EOS was sampled.
        bootstrap: the value after the last token of a truncated response; 0 where EOS came. For a
            `credit` of your own: no target ever corrects it, so PPO here does not use it.
    """

    responses: Responses
    log_probs: Float[Tensor, "batch time"]
    ref_log_probs: Float[Tensor, "batch time"]
    values: Float[Tensor, "batch time"]
    scores: Float[Tensor, " batch"] | Float[Tensor, "batch time"]
    kl: Float[Tensor, "batch time"]
    truncated: Bool[Tensor, " batch"]
    bootstrap: Float[Tensor, " batch"]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The seven tensors by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)[1:]}

    @property
    def mask(self) -> Bool[Tensor, "batch time"]:
        """True on the real tokens of the responses, EOS included."""
        return self.responses.mask

    @property
    def total_scores(self) -> Float[Tensor, " batch"]:
        """One score per response; token-level scores are summed over real tokens."""
        one = self.scores.dim() == 1
        return self.scores if one else torch.where(self.mask, self.scores, 0.0).sum(1)

    def __len__(self) -> int:
        return len(self.responses)

    def __getitem__(self, rows: Tensor | slice) -> "Rollout":
        return Rollout(self.responses[rows], *(x[rows] for x in self.tensors.values()))

    def trim(self) -> "Rollout":
        """Drop the columns that are padding in every row. Changes no row's results."""
        responses = self.responses.trim()
        time = responses.ids.shape[1]
        parts = (x[:, :time] if x.dim() == 2 else x for x in self.tensors.values())
        return Rollout(responses, *parts)


@checked
def response_mask(ids: Int[Tensor, "batch time"], eos_token_id: int) -> Bool[Tensor, "batch time"]:
    """True up to and including the first EOS; all True if there is none.

    Found from the first EOS *index*, never from `ids != pad`: if padding is EOS, as for GPT-2,
    that would hide the EOS from the loss, and the model would never learn to stop.

    >>> response_mask(torch.tensor([[5, 0, 0], [5, 6, 7]]), eos_token_id=0).tolist()
    [[True, True, False], [True, True, True]]
    """
    is_eos = (ids == eos_token_id).long()
    return is_eos.cumsum(1) == is_eos  # no EOS before this column
