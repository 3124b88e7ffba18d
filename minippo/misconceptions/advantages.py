"""Mistakes about credit."""

import torch
from torch import Tensor, stack, where, zeros_like

from minippo.misconceptions import Misconception, flawed

OFF_BY_ONE = Misconception(
    "off by one at EOS",
    "After the last real token the value of the next slot was used, which is padding.",
    "What is the value of a state in which the episode is over?",
    "Every response is promised a value that nobody will pay, and its last TD error is wrong by "
    "as much.",
    "ROLL #447, miles #1827, verl #2337: values under the mask reach GAE",
)
GAMMA = Misconception(
    "gamma forgotten",
    "The next value was not discounted.",
    "Compare with the formula at gamma = 0.",
)
NO_BASELINE = Misconception(
    "value not subtracted",
    "What was returned still holds V: it is a return, and not an advantage.",
    "An advantage is what was better than expected. Where is the expectation taken off?",
    "Where all scores are positive, everything is pushed up: the baseline does not lower the "
    "variance.",
)
SWAPPED = Misconception(
    "values swapped",
    "V of the next state was subtracted and V of this state added.",
    "Which of the two was expected, and which was found?",
)
UNMASKED = Misconception(
    "padding not zero",
    "Slots under the mask hold numbers.",
    "What must every slot under the mask be?",
    "Whoever sums over the tokens sums over padding.",
)
NO_BOOTSTRAP = Misconception(
    "bootstrap ignored",
    "A response that was cut off is treated as if it had ended.",
    "What is `bootstrap` for?",
    source="trl #1536",
)


def _next_values(flags: frozenset[str], values: Tensor, mask: Tensor, end: Tensor | None) -> Tensor:
    """V of the next state: 0, or the bootstrap, after the last real token."""
    clean = values if OFF_BY_ONE.name in flags else where(mask, values, 0.0)
    following = torch.cat([clean[:, 1:], zeros_like(clean[:, :1])], 1)
    if end is None or NO_BOOTSTRAP.name in flags:
        return following
    last = torch.arange(mask.shape[1]) == mask.sum(1, keepdim=True) - 1
    return where(last, end.unsqueeze(1), following)


def _td_errors(
    flags: frozenset[str],
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    gamma: float,
    bootstrap: Tensor | None,
) -> Tensor:
    following = _next_values(flags, values, mask, bootstrap)
    following = following if GAMMA.name in flags else gamma * following
    if SWAPPED.name in flags:
        return rewards + values - following
    return rewards + following - values


@flawed(
    OFF_BY_ONE,
    GAMMA,
    SWAPPED,
    NO_BASELINE,
    UNMASKED,
    NO_BOOTSTRAP,
)
def td_errors(
    flags: frozenset[str],
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    *,
    gamma: float = 1.0,
    bootstrap: Tensor | None = None,
) -> Tensor:
    """r_t + gamma * V_(t+1) - V_t."""
    deltas = _td_errors(flags, rewards, values, mask, gamma, bootstrap)
    deltas = deltas + values if NO_BASELINE.name in flags else deltas
    return deltas if UNMASKED.name in flags else where(mask, deltas, 0.0)


@flawed(
    OFF_BY_ONE,
    GAMMA,
    SWAPPED,
    NO_BASELINE,
    UNMASKED,
    NO_BOOTSTRAP,
    Misconception(
        "mask ignored on the way",
        "The sum runs through the padding and the padding was set to zero only at the end.",
        "The sum comes from the right, where the padding is. When must it begin anew?",
        "Advantages depend on how much padding the longest response of the batch asks for.",
        "legacy TRL with whiten_rewards",
    ),
    Misconception(
        "lambda forgotten",
        "The future TD errors were discounted by gamma alone: lambda is 1, always.",
        "What should lambda = 0 give?",
        "The variance is that of Monte Carlo, whatever lambda says.",
    ),
    Misconception(
        "lambda without gamma",
        "The future TD errors were discounted by lambda alone.",
        "By which product are they discounted in the formula?",
    ),
    Misconception(
        "one step only",
        "The TD error was returned: lambda is 0, always.",
        "Where does the next advantage enter?",
        "The score at the end reaches the first token only through the value head.",
        "ARENA 2.4",
    ),
    Misconception(
        "forwards in time",
        "The recursion runs from the first token to the last.",
        "Which token learns from which: the earlier from the later, or the other way?",
        "A token is credited with what happened before it was written.",
    ),
    Misconception(
        "whitened",
        "The advantages were whitened inside the function.",
        "Returns are advantages plus values. Of which advantages?",
        "Returns from whitened advantages are values plus noise of size 1: the value head learns "
        "neither scale nor mean.",
        "rlhf notebooks that set returns = whiten(advantages) + values",
        "Whiten the advantages over the real tokens before you return them.",
    ),
)
def gae(
    flags: frozenset[str],
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    *,
    gamma: float = 1.0,
    lam: float = 0.95,
    bootstrap: Tensor | None = None,
) -> Tensor:
    """A_t = delta_t + gamma * lam * A_(t+1)."""
    deltas = _td_errors(flags, rewards, values, mask, gamma, bootstrap)
    if "mask ignored on the way" not in flags:
        deltas = where(mask, deltas, 0.0)
    decay = gamma if "lambda forgotten" in flags else gamma * lam
    decay = lam if "lambda without gamma" in flags else decay
    decay = 0.0 if "one step only" in flags else decay
    forwards = "forwards in time" in flags
    columns = list(range(deltas.shape[1]))
    after, found = zeros_like(deltas[:, 0]), {}
    for t in columns if forwards else columns[::-1]:
        found[t] = after = deltas[:, t] + decay * after
    advantages = stack([found[t] for t in columns], 1)
    if NO_BASELINE.name in flags:
        advantages = advantages + values
    if "whitened" in flags:
        mean, sd = advantages[mask].mean(), advantages[mask].var(correction=0).add(1e-8).sqrt()
        advantages = (advantages - mean) / sd
    if UNMASKED.name in flags:  # the loop has not touched the padding
        return where(mask, advantages, rewards - values)
    return where(mask, advantages, 0.0)


@flawed(
    Misconception(
        "gamma forgotten",
        "Later rewards were not discounted.",
        "Compare with the formula at gamma = 0.",
    ),
    Misconception(
        "discounted from the start",
        "The reward at t + k was discounted by its place in the response, gamma^(t + k), and not "
        "by how far away it is, gamma^k.",
        "From which token does the return R_t look ahead?",
    ),
    Misconception(
        "sum of the past",
        "R_t adds up the rewards until t, and not from t on.",
        "What can token t still change?",
        "A token is credited with what happened before it was written.",
    ),
    Misconception(
        "own reward left out",
        "The sum begins at the next token.",
        "Which reward follows from writing token t?",
    ),
    Misconception(
        "the whole return for every token",
        "Each token got the return of the first.",
        "Can token t change what was paid before it?",
        convention="Give every real token the return of the first token of its response.",
    ),
    Misconception(
        "padding counted",
        "Rewards under the mask were added.",
        "What does the mask say?",
    ),
)
def monte_carlo_returns(
    flags: frozenset[str], rewards: Tensor, mask: Tensor, *, gamma: float = 1.0
) -> Tensor:
    """R_t = sum of gamma^k * r_(t+k) over real tokens."""
    time = rewards.shape[1]
    gamma = 1.0 if "gamma forgotten" in flags else gamma
    rewards = rewards if "padding counted" in flags else where(mask, rewards, 0.0)
    here, there = torch.arange(time).unsqueeze(1), torch.arange(time).unsqueeze(0)
    distance = there - here
    ahead = distance > 0 if "own reward left out" in flags else distance >= 0
    if "sum of the past" in flags:
        distance, ahead = -distance, distance <= 0
    power = there.expand_as(ahead) if "discounted from the start" in flags else distance
    weights = where(ahead, torch.tensor(float(gamma)) ** power.clamp(min=0), 0.0)
    returns = stack([(rewards * row).sum(1) for row in weights], 1)
    if "the whole return for every token" in flags:
        returns = returns[:, :1].expand_as(returns)
    return where(mask, returns, 0.0)


@flawed(
    Misconception(
        "sign turned",
        "The score was subtracted from the value.",
        "Is a response that scores more than expected good or bad?",
        "The policy learns to do what scores badly.",
    ),
    Misconception(
        "value forgotten",
        "The score was returned as it is.",
        "An advantage is what was better than expected.",
        "Where all scores are positive, every response is pushed up.",
    ),
    Misconception(
        "mean of the scores as the baseline",
        "The batch's mean was subtracted, and not the value of each prompt.",
        "Is every prompt equally easy?",
        convention="Subtract the mean score of the batch, and not the values.",
    ),
    Misconception(
        "whitened",
        "The advantages were whitened inside the function.",
        "Returns are advantages plus values. Of which advantages?",
        source="PaLM-rlhf-pytorch; the usual printed sketch",
        convention="Divide by the standard deviation (population, + 1e-8) after removing the mean.",
    ),
)
def sequence_advantages(flags: frozenset[str], scores: Tensor, values: Tensor) -> Tensor:
    """score - V."""
    baseline = zeros_like(scores) if "value forgotten" in flags else values
    if "mean of the scores as the baseline" in flags:
        baseline = scores.mean()
    advantages = scores - baseline
    if "whitened" in flags:
        advantages = advantages - advantages.mean()
        advantages = advantages / (advantages.var(correction=0) + 1e-8).sqrt()
    return -advantages if "sign turned" in flags else advantages


@flawed(
    Misconception(
        "score on the last column",
        "The score was put on the last column, which is padding where a response ended early.",
        "In which column did this response end?",
        "Responses that end early are never paid.",
        "lm-human-preferences, where every response has full length",
        "Put the score on the last column of the batch, whether it is padding or not.",
    ),
    Misconception(
        "score one slot late",
        "The score was put on the first padding slot after EOS.",
        "Is EOS an action of the policy?",
        source="TRL's trainer, torchtune: their convention",
        convention="Put the score on the first slot after the last real token (on the last real "
        "token itself where the row is full).",
    ),
    Misconception(
        "score on every token",
        "Each real token was paid the whole score.",
        "What is then the return of the first token of a long response?",
        "The return is (T - t) times the score: length is paid for.",
        "textbook sketches: the same scalar reward for all tokens",
        "Pay the whole score at every real token.",
    ),
    Misconception(
        "score spread",
        "The score was divided among the real tokens.",
        "When does the judge speak?",
        convention="Divide the score evenly among the real tokens of its response.",
    ),
    Misconception(
        "KL rewarded",
        "The KL has the wrong sign: going far from the reference is paid.",
        "Is the KL a price or a gain?",
        "The policy runs away from the reference.",
        "trlX and rlhf-book have inverted their KL before",
    ),
    Misconception(
        "coefficient forgotten",
        "The KL counts with the weight 1.",
        "What is kl_coef for?",
    ),
    Misconception(
        "coefficient on the score",
        "kl_coef multiplies the score and not the KL.",
        "Which of the two should vanish at kl_coef = 0?",
    ),
    Misconception(
        "no KL on the last token",
        "The score replaced the KL of the last token, where it is to be added.",
        "Is EOS free?",
        source="replace or subtract: implementations differ",
        convention="The last real token is paid the score alone, without its KL.",
    ),
    Misconception(
        "KL paid at the end",
        "The summed KL was charged on the last token, and the others were paid nothing.",
        "Which token went away from the reference?",
        source="the bandit view of a response",
        convention="Charge the summed KL of the response on its last real token, with the score.",
    ),
    Misconception(
        "padding paid",
        "Slots under the mask hold the KL of padding.",
        "What must every slot under the mask be?",
        "Returns begin with the junk of the padding.",
    ),
)
def shape_rewards(
    flags: frozenset[str], scores: Tensor, kl: Tensor, mask: Tensor, *, kl_coef: float
) -> Tensor:
    """-kl_coef * kl, and the score on the last real token."""
    time = mask.shape[1]
    price = 1.0 if "coefficient forgotten" in flags else kl_coef
    if "coefficient on the score" in flags:
        price, scores = 1.0, kl_coef * scores
    price = -price if "KL rewarded" in flags else price
    lengths = mask.sum(1, keepdim=True)
    columns = torch.arange(time).unsqueeze(0)
    last = columns == lengths - 1
    paid = last
    if "score on the last column" in flags:
        paid = (columns == time - 1).expand_as(mask)
    if "score one slot late" in flags:
        paid = columns == lengths.clamp(max=time - 1)
    if {"score on every token", "score spread"} & flags:
        paid = mask
    if "score spread" in flags:
        scores = scores / lengths.squeeze(1)
    clean = kl if "padding paid" in flags else where(mask, kl, 0.0)
    if "KL paid at the end" in flags:
        clean = where(last, clean.sum(1, keepdim=True), 0.0)
    if "no KL on the last token" in flags:
        clean = where(last, 0.0, clean)
    return -price * clean + where(paid, scores.unsqueeze(1), 0.0)
