"""Mistakes about credit."""

import torch
from torch import Tensor, where, zeros_like

from minippo.misconceptions import Misconception, flawed
from minippo.misconceptions.masking import LEAK

CUT = Misconception(
    "gradient cut",
    "The value is right; no gradient goes back to the inputs. PPO asks for none here: whether it "
    "is cut is left to the caller.",
    "Look for detach, no_grad, item, numpy or a new torch.tensor.",
)
SIGN = Misconception(
    "sign turned",
    "The right numbers came with the opposite sign.",
    "Is what went better than expected above or below zero?",
    "The policy learns to avoid what was good.",
)
OFF_BY_ONE = Misconception(
    "off by one at EOS",
    "The value of the slot after the last real token takes part: the TD error at EOS uses a value "
    "that belongs to padding.",
    "What is the value of a state in which the episode is over?",
    "EOS is paid gamma times a value that no loss trains, and every token before it gets a share.",
    "masked values leaking into GAE: ROLL #447, verl #2337",
)
NO_NEXT = Misconception(
    "next value forgotten",
    "The value of the next state is missing: each reward is compared with V_t alone.",
    "V_t promises everything still to come. What of it is left after this token?",
)
NO_OWN = Misconception(
    "own value not subtracted",
    "V_t was not subtracted: what was expected already counts as a gain.",
    "An advantage says how much better than expected it went. What was expected?",
)
SAME_VALUE = Misconception(
    "V_t instead of V_(t+1)",
    "The value of the same state stands in the place of the next one's.",
    "values[:, t] is the state before token t. Which column is the state after it?",
)
EXCHANGED = Misconception(
    "V_t and V_(t+1) exchanged",
    "The next state's value is subtracted and the own one added.",
    "Which of the two was promised, and which one is what you have now?",
)
NO_BOOTSTRAP = Misconception(
    "bootstrap forgotten",
    "`bootstrap` is taken and never used: a response that was cut off counts as finished.",
    "What comes after the last token of a response that had no time to end?",
    source="every library for language models: trl #1536",
)
BOOTSTRAP_COLUMN = Misconception(
    "bootstrap in the last column",
    "The bootstrap was put after the last column, and not after the last real token of each row.",
    "Where does each row end?",
)


def _earlier(mask: Tensor) -> Tensor:
    """Each row's run of ones, one shorter: True where the next token is real."""
    return torch.cat([mask[:, 1:], zeros_like(mask[:, :1])], 1)


def _later(mask: Tensor) -> Tensor:
    """Each row's run of ones, one longer, where there is room."""
    return torch.cat([mask[:, :1], mask[:, :-1]], 1)


def _next_values(
    flags: frozenset[str], values: Tensor, mask: Tensor, bootstrap: Tensor | None
) -> Tensor:
    """V_(t+1); after the last real token the bootstrap, or 0."""
    clean = values if OFF_BY_ONE.name in flags else where(mask, values, 0.0)
    after = torch.cat([clean[:, 1:], zeros_like(clean[:, :1])], 1)
    if bootstrap is None or NO_BOOTSTRAP.name in flags:
        return after
    ends = mask & ~_earlier(mask)
    if BOOTSTRAP_COLUMN.name in flags:
        ends = torch.arange(mask.shape[1]).expand_as(mask) == mask.shape[1] - 1
    return where(ends, bootstrap.unsqueeze(1), after)


def _error(
    flags: frozenset[str], rewards: Tensor, values: Tensor, next_values: Tensor, gamma: float
) -> Tensor:
    """r_t + gamma * V_(t+1) - V_t."""
    if NO_NEXT.name in flags:
        next_values = zeros_like(values)
    if SAME_VALUE.name in flags:
        next_values = values
    if EXCHANGED.name in flags:
        values, next_values = next_values, values
    return rewards + gamma * next_values - (0.0 if NO_OWN.name in flags else values)


def _finish(flags: frozenset[str], x: Tensor, mask: Tensor) -> Tensor:
    x = where(mask, -x if SIGN.name in flags else x, 0.0)
    return x.detach() if CUT.name in flags else x


@flawed(
    Misconception(
        "gamma forgotten",
        "Rewards far away count as much as near ones, whatever gamma is.",
        "By what is a reward multiplied that comes k tokens later?",
    ),
    Misconception(
        "discounted from the start of the response",
        "Each reward is multiplied by gamma to the power of its position, and not of its distance "
        "from t.",
        "Seen from token t, how far away is the reward at t?",
        "Late tokens hardly count: their returns are gamma^t too small.",
    ),
    Misconception(
        "one gamma too many",
        "The reward of the token itself is discounted, too.",
        "What is k for the reward that arrives at once?",
    ),
    Misconception(
        "own reward left out",
        "The sum begins with the reward of the next token.",
        "Does R_t hold r_t?",
    ),
    Misconception(
        "forwards in time",
        "The sum runs over the rewards up to t: those of the past.",
        "Can a token change what was paid before it?",
    ),
    Misconception(
        "the whole return everywhere",
        "Each token got the return of the first one.",
        "Which rewards come after the last token?",
        source="the first policy gradient of every textbook, before 'reward to go'",
        convention="Give each real token the return of the whole response.",
    ),
    Misconception(
        "padding paid",
        "What stands under the mask was added to the returns.",
        "Which rewards belong to the response?",
    ),
    LEAK,
    CUT,
)
def monte_carlo_returns(
    flags: frozenset[str], rewards: Tensor, mask: Tensor, *, gamma: float = 1.0
) -> Tensor:
    """A matrix of gamma^(k - t), k >= t, times the rewards."""
    paid = rewards * mask if LEAK.name in flags else where(mask, rewards, 0.0)
    if "padding paid" in flags:
        paid = rewards
    if "gamma forgotten" in flags:
        gamma = 1.0
    if "own reward left out" in flags:
        paid = torch.cat([paid[:, 1:], zeros_like(paid[:, :1])], 1)
    time = torch.arange(rewards.shape[1])
    distance = time.unsqueeze(0) - time.unsqueeze(1)  # [t, k]: from t to k
    if "forwards in time" in flags:
        distance = -distance
    power = distance + 1 if "one gamma too many" in flags else distance
    if "discounted from the start of the response" in flags:
        power = time.expand_as(distance)
    weights = where(distance >= 0, gamma ** power.clamp(min=0).to(rewards.dtype), 0.0)
    if "the whole return everywhere" in flags:
        weights = weights[:1].expand_as(weights)
    return _finish(flags, (weights * paid.unsqueeze(1)).sum(-1), mask)


@flawed(
    OFF_BY_ONE,
    NO_NEXT,
    NO_OWN,
    SAME_VALUE,
    EXCHANGED,
    Misconception(
        "gamma forgotten",
        "The next value counts in full, whatever gamma is.",
        "What is a value worth that lies one step ahead?",
    ),
    Misconception(
        "gamma on the reward, too",
        "gamma multiplies r_t + V_(t+1), and not V_(t+1) alone.",
        "Which of the two comes later?",
    ),
    Misconception(
        "next value detached",
        "No gradient goes through V_(t+1): the semi-gradient of TD learning. PPO asks for no "
        "gradient here: whether it is cut is left to the caller.",
        "Look for a detach.",
        source="Sutton and Barto 2018, sec. 9.3: there it is meant",
        convention="Detach the next value, so that a gradient reaches V_t alone (TD learning).",
    ),
    SIGN,
    NO_BOOTSTRAP,
    BOOTSTRAP_COLUMN,
    CUT,
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
    """r_t + gamma * V_(t+1) - V_t, all columns at once."""
    next_values = _next_values(flags, values, mask, bootstrap)
    if "next value detached" in flags:
        next_values = next_values.detach()
    if "gamma on the reward, too" in flags:
        rewards = gamma * rewards
    if "gamma forgotten" in flags:
        gamma = 1.0
    return _finish(flags, _error(flags, rewards, values, next_values, gamma), mask)


@flawed(
    OFF_BY_ONE,
    Misconception(
        "nothing masked",
        "The recursion ran over the padding as if it were text; its rewards and values flow back "
        "into the response.",
        "What does your recursion hold when it arrives at the last real token?",
        "A response's advantages depend on how much padding its batch happens to need.",
        "ROLL #447, verl #2337, miles #1827",
    ),
    Misconception(
        "sum not reset at EOS",
        "The next value at EOS is right, and yet the running sum brings the TD errors of the "
        "padding along.",
        "There are two ways from the padding into A_t. Which one is still open?",
    ),
    LEAK,
    Misconception(
        "slot after EOS takes part",
        "The slot after EOS counts as one more token, with its reward and its value.",
        "The mask says which tokens are real. Is that one?",
        "A score that is put there reaches EOS with the weight gamma * lam and not 1.",
        "TRL's PPO, torchtune: trl #1893, #3750, #5338",
        "Let the slot after EOS, where there is one, take part like a real token; it stays zero "
        "in the result.",
    ),
    Misconception(
        "EOS left out",
        "The last real token, EOS, counts as padding, and what it was paid is lost.",
        "Did the model choose to stop? Where does the score arrive?",
        "The score, paid at EOS, reaches no token.",
        "masks built as tokens != pad where pad == eos: LLaMA-Factory #2382",
    ),
    Misconception(
        "ends one token early",
        "The token before EOS is treated as the last one: nothing flows from EOS back to it.",
        "`mask[:, t + 1]` or `mask[:, t + 2]`: which one says that token t has a successor?",
        "The score, paid at EOS, reaches EOS and no other token.",
    ),
    Misconception(
        "last column skipped",
        "The loop begins with the last column but one; the last one stays zero.",
        "How many columns does your loop visit?",
    ),
    Misconception(
        "gamma forgotten in the TD error",
        "The TD error takes the next value in full, whatever gamma is.",
        "gamma stands in two places.",
    ),
    Misconception(
        "gamma forgotten in the sum",
        "The recursion multiplies by lam alone and not by gamma * lam.",
        "gamma stands in two places.",
    ),
    Misconception(
        "gamma and lam exchanged",
        "lam discounts the next value in the TD error, where gamma belongs.",
        "Which of the two belongs to the task, and which only to the estimator?",
    ),
    Misconception(
        "lam on the next value, too",
        "The TD error multiplies the next value by gamma * lam.",
        "Does a single TD error know of lam?",
    ),
    Misconception(
        "lam forgotten",
        "The recursion multiplies by gamma alone: every lam gives the return minus the value.",
        "With lam = 0 your A_t should be the TD error alone. Is it?",
        "No bias is left, and all the variance of the return.",
    ),
    Misconception(
        "TD error alone",
        "The TD errors were not summed up: every lam gives the result of lam = 0.",
        "How does a token hear of a score that is paid ten tokens later?",
        "A score at the end reaches the last token alone, until the values have learned it.",
        "ARENA 2.4: one-step TD errors as advantages",
    ),
    Misconception(
        "1 - lam in the place of lam",
        "The recursion multiplies by gamma * (1 - lam).",
        "Which lam should look far ahead, 0 or 1?",
    ),
    Misconception(
        "factor 1 - lam too many",
        "The sum of the TD errors was multiplied by 1 - lam.",
        "The factor belongs to the mean of k-step advantages (Schulman et al. 2016, eq. 16). What "
        "becomes of it in their sum?",
    ),
    Misconception(
        "forwards in time",
        "The recursion runs from the first token to the last: A_t gathers the errors of the past.",
        "Which tokens can this token still influence?",
    ),
    NO_NEXT,
    NO_OWN,
    SAME_VALUE,
    EXCHANGED,
    Misconception(
        "reward of the next token",
        "The TD error of token t uses r_(t+1).",
        "rewards[:, t] is what token t is paid.",
    ),
    Misconception(
        "returns instead of advantages",
        "The values were added: these are the returns that the critic learns.",
        "What does the policy need, and what the critic?",
    ),
    Misconception(
        "whitened inside",
        "The advantages came out with mean 0 and variance 1.",
        "The returns are advantages plus values. Which advantages?",
        "Whoever adds the values to get returns teaches the critic numbers in a wrong unit.",
        "RLHF_in_notebooks: returns = whiten(advantages) + values",
    ),
    SIGN,
    NO_BOOTSTRAP,
    BOOTSTRAP_COLUMN,
    Misconception(
        "values detached",
        "The value is right; no gradient goes back to the values. PPO asks for none here: whether "
        "it is cut is left to the caller.",
        "Look for a detach.",
    ),
    CUT,
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
    """By the recursion A_t = delta_t + gamma * lam * A_(t+1), from the last token to the first."""
    values = values.detach() if "values detached" in flags else values
    deltas = _gae_errors(flags, rewards, values, mask, gamma, lam, bootstrap)
    discount = gamma * lam
    if "gamma forgotten in the sum" in flags:
        discount = lam
    if "lam forgotten" in flags:
        discount = gamma
    if "1 - lam in the place of lam" in flags:
        discount = gamma * (1 - lam)
    if "TD error alone" in flags:
        discount = 0.0
    flows = _flows(flags, mask)
    forwards = "forwards in time" in flags
    sums, total = [], zeros_like(deltas[:, 0])
    for t in range(deltas.shape[1]) if forwards else reversed(range(deltas.shape[1])):
        total = deltas[:, t] + discount * where(flows[:, t], total, 0.0)
        sums.append(total)
    advantages = torch.stack(sums if forwards else sums[::-1], 1)
    if "factor 1 - lam too many" in flags:
        advantages = (1 - lam) * advantages
    if "returns instead of advantages" in flags:
        advantages = advantages + values
    if "whitened inside" in flags:
        mean, variance = advantages[mask].mean(), advantages[mask].var(correction=0)
        advantages = (advantages - mean) / (variance + 1e-8).sqrt()
    return _finish(flags, advantages, mask)


def _flows(flags: frozenset[str], mask: Tensor) -> Tensor:
    """True where the sum may take what is behind token t along."""
    if "ends one token early" in flags:
        return _earlier(_earlier(mask))
    return torch.ones_like(mask)  # what is behind the last real token is zero, if all is right


def _gae_errors(
    flags: frozenset[str],
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    gamma: float,
    lam: float,
    bootstrap: Tensor | None,
) -> Tensor:
    """The TD errors, zero on padding."""
    counted = _earlier(mask) if "EOS left out" in flags else mask
    counted = _later(counted) if "slot after EOS takes part" in flags else counted
    leak = "nothing masked" in flags
    flags = flags | {OFF_BY_ONE.name} if leak else flags
    if "reward of the next token" in flags:
        paid = rewards if leak else where(counted, rewards, 0.0)
        rewards = torch.cat([paid[:, 1:], zeros_like(paid[:, :1])], 1)
    if LEAK.name in flags:
        rewards, values = rewards * mask, values * mask
    next_values = _next_values(flags, values, counted, bootstrap)
    if "ends one token early" in flags:
        next_values = where(_earlier(mask) & ~_flows(flags, mask), 0.0, next_values)
    factor = gamma
    if "gamma forgotten in the TD error" in flags:
        factor = 1.0
    if "gamma and lam exchanged" in flags:
        factor = lam
    if "lam on the next value, too" in flags:
        factor = gamma * lam
    deltas = _error(flags, rewards, values, next_values, factor)
    if not leak and LEAK.name not in flags:
        behind = zeros_like(deltas)
        if "sum not reset at EOS" in flags:
            behind = _error(flags, rewards, values, _next_values(
                flags | {OFF_BY_ONE.name}, values, counted, None), factor)  # fmt: skip
        deltas = where(counted, deltas, behind)
    if "last column skipped" in flags:
        deltas = torch.cat([deltas[:, :-1], zeros_like(deltas[:, :1])], 1)
    return deltas


@flawed(
    SIGN,
    Misconception(
        "values forgotten",
        "The scores themselves were returned.",
        "A score of 2 is good news only if less was expected. Where is what was expected?",
        convention="Use no baseline: the advantage is the score.",
    ),
    Misconception(
        "values added",
        "V was added and not subtracted.",
        "What should the advantage be where the score is just what was expected?",
    ),
    Misconception(
        "mean score as the baseline",
        "The batch's mean score was subtracted, and not each prompt's own value.",
        "Is every prompt equally hard?",
        convention="Subtract the batch's mean score and ignore the values.",
    ),
    Misconception(
        "whitened inside",
        "The advantages came out with mean 0 and variance 1.",
        "Whitening is a step of its own.",
        source="PaLM-rlhf-pytorch: normalize(r - V)",
        convention="Whiten the advantages: population variance, 1e-8 under the root.",
    ),
    Misconception(
        "every score with every value",
        "[batch, 1] met [batch], and broadcasting made a table of all pairs.",
        "Print the shape of both inputs, and of the result.",
        source="the textbook sketch: shapes that broadcast in silence",
    ),
    Misconception(
        "values detached",
        "The value is right; no gradient goes back to the values. PPO asks for none here: whether "
        "it is cut is left to the caller.",
        "Look for a detach.",
    ),
    CUT,
)
def sequence_advantages(flags: frozenset[str], scores: Tensor, values: Tensor) -> Tensor:
    """Score minus value, row by row."""
    values = values.detach() if "values detached" in flags else values
    if "mean score as the baseline" in flags:
        values = scores.mean().expand_as(values)
    if "values forgotten" in flags:
        values = zeros_like(values)
    if "every score with every value" in flags:
        scores = scores.unsqueeze(1)
    advantages = scores + values if "values added" in flags else scores - values
    if "whitened inside" in flags:
        scale = (advantages.var(correction=0) + 1e-8).sqrt()
        advantages = (advantages - advantages.mean()) / scale
    return _finish(flags, advantages, torch.ones_like(advantages, dtype=torch.bool))


@flawed(
    Misconception(
        "score on the last column",
        "The score was paid in the last column, which for a short response is padding.",
        "Which column is the last real token of row i?",
        "With a GAE that ends at EOS, only responses of full length are paid.",
        "lm-human-preferences: fixed length, where it is the same",
        "Put the score on the last column, padding or not.",
    ),
    Misconception(
        "score on the slot after EOS",
        "The score was paid one slot after the last real token, where there is room.",
        "The mask counts EOS among the real tokens. What is the index of its last True?",
        "With a GAE that ends at EOS the score is lost; with one that takes the slot along it "
        "reaches EOS with the weight gamma * lam.",
        "TRL's PPO, torchtune: trl #1893, #3750, #5338",
        "Put the score on the first slot after EOS; on the last token where the row is full.",
    ),
    Misconception(
        "score one token early",
        "The score was paid on the token before the last real one.",
        "sum(mask) tokens are real. What is the index of the last one, counted from 0?",
        source="alpaca_farm: off by one where pad == eos",
    ),
    Misconception(
        "score on the first token",
        "The score was paid on the first token.",
        "When does the judge see the whole response?",
    ),
    Misconception(
        "score on every token",
        "Each real token was paid the whole score.",
        "What is the sum of a response's rewards, without the KL?",
        "The return of a response of n tokens is n times its score: length is paid.",
        "the textbook sketch: the same scalar reward for all tokens",
        "Pay the whole score on every real token.",
    ),
    Misconception(
        "score spread over the tokens",
        "Each real token was paid an equal share of the score.",
        "Which token is the one after which the judge speaks?",
        convention="Pay each real token an equal share of the score.",
    ),
    Misconception(
        "score in the place of the penalty",
        "At the last real token the score overwrote the KL penalty.",
        "What becomes of the KL of EOS?",
    ),
    Misconception(
        "KL rewarded",
        "The KL has the wrong sign: it is paid and not charged.",
        "Should going away from the reference cost something, or earn something?",
        "The further the policy goes, the more it is paid.",
        "rlhf-book: its k1 has this sign",
    ),
    Misconception(
        "coefficient on the score, too",
        "The score was multiplied by kl_coef as well.",
        "What should be paid where the KL is 0?",
    ),
    Misconception(
        "coefficient forgotten",
        "The KL counts in full, whatever kl_coef is.",
        "What should be left with kl_coef = 0?",
    ),
    Misconception(
        "penalty forgotten",
        "Only the score was paid.",
        "Which of your inputs did you not use?",
        "Nothing ties the policy to the reference.",
    ),
    Misconception(
        "penalty at the end alone",
        "The KL of all tokens was summed up and charged at the last one.",
        "Which token caused which part of the KL?",
        convention="Charge the whole response's KL at its last real token.",
    ),
    Misconception(
        "mean KL at the end alone",
        "The mean KL of the response was charged at its last token.",
        "Does a long response that went just as far per token cost more, or the same?",
        source="rlhf-book's PPO: the sequence mean, at the last token",
        convention="Charge the response's mean KL, once, at its last real token.",
    ),
    Misconception(
        "mean KL on every token",
        "Each real token was charged the mean KL of its response and not its own.",
        "Which token went away from the reference?",
    ),
    Misconception(
        "negative KL cut off",
        "Where the KL estimate is below 0, nothing was paid.",
        "The estimate is right on average. And after you cut off one side?",
        "Tokens on which the policy agrees with the reference are charged as well, on average.",
        "alpaca_farm: clamp at 0",
        "Set negative KL estimates to 0.",
    ),
    Misconception(
        "padding paid",
        "The padding was charged its KL, too.",
        "What must every slot under the mask be in the end?",
        "Whoever sums the rewards counts what stands in the padding.",
    ),
    LEAK,
    CUT,
)
def shape_rewards(
    flags: frozenset[str], scores: Tensor, kl: Tensor, mask: Tensor, *, kl_coef: float
) -> Tensor:
    """-kl_coef * kl, plus the score times a row that says where it is paid."""
    own = kl.clamp(min=0) if "negative KL cut off" in flags else kl
    clean = own * mask if LEAK.name in flags else where(mask, own, 0.0)
    clean = own if "padding paid" in flags else clean
    length = mask.sum(1, keepdim=True)
    total, last = clean.sum(1, keepdim=True), mask & ~_earlier(mask)
    if "penalty at the end alone" in flags:
        clean = where(last, total, 0.0)
    if "mean KL at the end alone" in flags:
        clean = where(last, total / length, 0.0)
    if "mean KL on every token" in flags:
        clean = where(mask, total / length, 0.0)
    coef = 1.0 if "coefficient forgotten" in flags else kl_coef
    coef = 0.0 if "penalty forgotten" in flags else coef
    penalty = coef * clean if "KL rewarded" in flags else -coef * clean
    pays = _score_column(flags, mask, length)
    if "score in the place of the penalty" in flags:
        penalty = where(pays != 0, 0.0, penalty)
    scores = kl_coef * scores if "coefficient on the score, too" in flags else scores
    rewards = penalty + where(pays != 0, pays * scores.unsqueeze(1), 0.0)
    return rewards.detach() if CUT.name in flags else rewards


def _score_column(flags: frozenset[str], mask: Tensor, length: Tensor) -> Tensor:
    """The share of the score that each token is paid."""
    column, width = length - 1, mask.shape[1]
    if "score on the last column" in flags:
        column = torch.full_like(column, width - 1)
    if "score on the slot after EOS" in flags:
        column = (column + 1).clamp(max=width - 1)
    if "score one token early" in flags:
        column = (column - 1).clamp(min=0)
    if "score on the first token" in flags:
        column = zeros_like(column)
    shares = (torch.arange(width) == column).float()
    if "score on every token" in flags:
        shares = mask.float()
    return mask / length if "score spread over the tokens" in flags else shares
