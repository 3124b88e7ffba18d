"""A world small enough to list every response: what is estimated elsewhere is exact here.

Four tokens (including EOS) and at most three tokens per response make 40 responses to each of two
prompts. So expectations, gradients and KLs are sums over a list, and the optimal policy of PPO's
objective, pi* proportional to pi_ref * exp(r / beta), can be written down.
"""

import itertools

import torch
from jaxtyping import Float
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from minippo.log_probs import sequence_log_prob, token_log_probs
from minippo.models import PolicyWithValue
from minippo.responses import Responses
from minippo.rollout import evaluate

WORDS = ("<|endoftext|>", "good", "bad", "so")
EOS, TIME = 0, 3
PROMPTS = ("good", "bad")  # tokens 1 and 2: a prompt's number is its token minus one
# Every response: ended by EOS, or truncated after three tokens.
RESPONSES = tuple(
    (*words, *end)
    for n in range(TIME + 1)
    for words in itertools.product((1, 2, 3), repeat=n)
    for end in ([()] if n == TIME else [(EOS,)])
)
_NUMBER = {response: i for i, response in enumerate(RESPONSES)}
# The score of each response to each prompt: arbitrary numbers on the scale of a nat or two.
SCORES = torch.randn(2, len(RESPONSES), generator=torch.Generator().manual_seed(0))


def tokenizer() -> PreTrainedTokenizerFast:
    """One token per word; EOS is also BOS and there is no padding token, as in GPT-2."""
    made = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="so"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token=WORDS[0], bos_token=WORDS[0])


def policy(seed: int = 0) -> PolicyWithValue:
    """A one-layer GPT-2 with larger random weights than usual, so its texts are not uniform."""
    config = GPT2Config(
        vocab_size=len(WORDS), n_positions=8, n_embd=16, n_layer=1, n_head=2,
        bos_token_id=EOS, eos_token_id=EOS,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):  # leave the caller's random state unchanged
        torch.manual_seed(seed)
        made = PolicyWithValue(GPT2LMHeadModel(config)).eval()
    with torch.no_grad():
        for p in made.language_model.parameters():
            if p.dim() == 2:
                p.mul_(8)
    return made


def responses(prompt: int) -> Responses:
    """Return all 40 responses to prompt 0 or 1, as rows."""
    rows = [[*response, *[EOS] * (TIME - len(response))] for response in RESPONSES]
    lengths = torch.tensor([len(response) for response in RESPONSES])
    return Responses(
        prompt_ids=torch.full((len(rows), 1), prompt + 1),
        prompt_mask=torch.ones(len(rows), 1, dtype=torch.bool),
        ids=torch.tensor(rows),
        mask=torch.arange(TIME) < lengths.unsqueeze(1),
    )


def score(responses: Responses) -> Float[Tensor, " batch"]:
    """Look up each response's score: a score function for `collect` and PPO."""
    rows = zip(responses.prompt_ids[:, -1].tolist(), responses.ids, responses.mask, strict=True)
    found = [SCORES[p - 1, _NUMBER[tuple(ids[mask].tolist())]] for p, ids, mask in rows]
    return torch.stack(found)


def log_probs(policy: PolicyWithValue) -> Float[Tensor, "prompts responses"]:
    """log pi(response | prompt) of all 2 * 40, differentiable; exp sums to 1 per prompt."""
    rows = []
    for prompt in range(len(PROMPTS)):
        listed = responses(prompt)
        logits, _, _ = evaluate(policy, listed)
        rows.append(sequence_log_prob(token_log_probs(logits, listed.ids), listed.mask))
    return torch.stack(rows)


def optimum(
    ref_log_probs: Float[Tensor, "prompts responses"],
    scores: Float[Tensor, "prompts responses"] = SCORES,
    *,
    beta: float,
) -> Float[Tensor, "prompts responses"]:
    """log pi*, where pi* maximises E[score] - beta * KL(pi || pi_ref) over all policies.

    pi* is pi_ref * exp(score / beta), normalised: Ziegler et al. 2019, eq. 2 gives the objective,
    Rafailov et al. 2023, eq. 4 its maximum.
    """
    return (ref_log_probs + scores / beta).log_softmax(-1)


def state_by_state(
    ref_log_probs: Float[Tensor, "prompts responses"],
    scores: Float[Tensor, "prompts responses"] = SCORES,
    *,
    beta: float,
) -> Float[Tensor, "prompts responses"]:
    """log pi where a KL in the loss comes to rest: each state weighs scores against its own KL.

    From the last token to the first, pi is proportional to pi_ref * exp(Q / beta), where Q is the
    mean score to come. In `optimum` Q also counts the KL to come.
    """
    worth, log_pi = scores.clone(), torch.zeros_like(scores)
    for t in reversed(range(TIME)):
        for state in dict.fromkeys(r[:t] for r in RESPONSES if len(r) > t):
            leads_to = [[i for i, r in enumerate(RESPONSES) if r[: t + 1] == (*state, word)]
                        for word in range(len(WORDS))]  # fmt: skip
            q = torch.stack([worth[:, rows[0]] for rows in leads_to], 1)
            log_q = torch.stack([ref_log_probs[:, rows].logsumexp(1) for rows in leads_to], 1)
            log_p = (log_q + q / beta).log_softmax(1)
            for word, rows in enumerate(leads_to):
                log_pi[:, rows] += log_p[:, [word]]
                worth[:, rows] = (log_p.exp() * q).sum(1, keepdim=True)
    return log_pi


def total_variation(log_p: Tensor, log_q: Tensor) -> float:
    """Half the sum of abs(p - q), in [0, 1]; the larger of the two prompts'."""
    return float((0.5 * (log_p.exp() - log_q.exp()).abs().sum(-1)).max())
