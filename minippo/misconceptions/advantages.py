"""Mistakes about credit."""

import torch
from torch import Tensor, stack, where, zeros_like

from minippo.misconceptions import Misconception, flawed
from minippo.misconceptions.masking import LEAK

OFF_BY_ONE = Misconception(
    "off by one at EOS",
    "After the last real token the value of the next slot was used, which is padding.",
    "What is the value of a state in which the episode is over?",
    "A response that ends early is promised a value that nobody will pay: the TD error at EOS is "
    "off by gamma times that value, and every token before it gets a share.",
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
NO_MASK = Misconception(
    "mask not used",
    "Every slot was treated as a real token, padding included.",
    "Where does each response end?",
    "Rewards and values of padding reach the real tokens before it.",
)
NO_BOOTSTRAP = Misconception(
    "bootstrap ignored",
    "A response that was cut off is treated as if it had ended.",
    "What is `bootstrap` for?",
    source="trl #1536",
)
BOOTSTRAP_LATE = Misconception(
    "bootstrap in the last column",
    "The bootstrap was put after the last column, and not after the last real token of each row.",
    "In which column does each response end?",
)
NO_NEXT = Misconception(
    "next value forgotten",
    "V of the next state is missing: each reward is compared with V_t alone.",
    "V_t promises all that is still to come. What of it is left after this token?",
)
SAME_VALUE = Misconception(
    "V_t instead of V_(t+1)",
    "The value of the same state stands where the next one's belongs.",
    "values[:, t] is the state before token t. Which column is the state after it?",
)
SIGN = Misconception(
    "sign turned",
    "The right numbers came with the opposite sign.",
    "Is what went better than expected above or below 0?",
    "The policy learns to avoid what was good.",
)


def _earlier(mask: Tensor) -> Tensor:
    """Each row's run of ones, one shorter: True where the next token is real."""
    return torch.cat([mask[:, 1:], zeros_like(mask[:, :1])], 1)


def _masked(flags: frozenset[str], x: Tensor, mask: Tensor) -> Tensor:
    return x * mask if LEAK.name in flags else where(mask, x, 0.0)


def _later(mask: Tensor) -> Tensor:
    """Each row's run of ones, one longer where there is room."""
    return torch.cat([mask[:, :1], mask[:, :-1]], 1)


def _next_values(flags: frozenset[str], values: Tensor, mask: Tensor, end: Tensor | None) -> Tensor:
    """V of the next state: 0, or the bootstrap, after the last real token."""
    if SAME_VALUE.name in flags:
        return values
    clean = values if OFF_BY_ONE.name in flags else _masked(flags, values, mask)
    following = torch.cat([clean[:, 1:], zeros_like(clean[:, :1])], 1)
    if end is None or NO_BOOTSTRAP.name in flags:
        return following
    width = mask.shape[1]
    ends = mask.sum(1, keepdim=True)
    ends = torch.full_like(ends, width) if BOOTSTRAP_LATE.name in flags else ends
    return where(torch.arange(width) == ends - 1, end.unsqueeze(1), following)


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
    if NO_NEXT.name in flags:
        following = zeros_like(following)
    if SWAPPED.name in flags:
        return rewards + values - following
    return rewards + following - values


@flawed(
    NO_MASK,
    OFF_BY_ONE,
    GAMMA,
    SWAPPED,
    NO_BASELINE,
    UNMASKED,
    NO_BOOTSTRAP,
    BOOTSTRAP_LATE,
    NO_NEXT,
    SAME_VALUE,
    SIGN,
    LEAK,
    Misconception(
        "gamma on the reward, too",
        "gamma multiplies r_t + V_(t+1), and not V_(t+1) alone.",
        "Which of the two comes later?",
    ),
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
    mask = torch.ones_like(mask) if NO_MASK.name in flags else mask
    if LEAK.name in flags:
        rewards, values = rewards * mask, values * mask
    if "gamma on the reward, too" in flags:
        rewards = gamma * rewards
    deltas = _td_errors(flags, rewards, values, mask, gamma, bootstrap)
    deltas = deltas + values if NO_BASELINE.name in flags else deltas
    deltas = -deltas if SIGN.name in flags else deltas
    return deltas if UNMASKED.name in flags else _masked(flags, deltas, mask)


@flawed(
    NO_MASK,
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
    BOOTSTRAP_LATE,
    NO_NEXT,
    SAME_VALUE,
    SIGN,
    LEAK,
    Misconception(
        "V_t missing in the TD error",
        "V_t was not subtracted inside the sum: what was expected is counted as found, once for "
        "each later token.",
        "delta_t has three terms. Which are yours?",
    ),
    Misconception(
        "slot after EOS takes part",
        "The slot after EOS counts as one more token, with its reward and its value.",
        "The mask says which tokens are real. Is that one?",
        "A score that is put there reaches EOS with the weight gamma * lam, and not 1.",
        "TRL's trainer, torchtune: trl #1893, #3750, #5338",
        "Let the slot after EOS, where there is one, take part like a real token; it stays zero "
        "in the result.",
    ),
    Misconception(
        "EOS left out",
        "The last real token, EOS, counts as padding, and what it was paid is lost.",
        "Did the model choose to stop? Where does the score arrive?",
        "The score, which is paid at EOS, reaches no token.",
        "masks built as tokens != pad where pad == eos: LLaMA-Factory #2382",
    ),
    Misconception(
        "ends one token early",
        "The token before EOS is treated as the last one: nothing flows back to it from EOS.",
        "mask[:, t + 1] or mask[:, t + 2]: which one says that token t has a successor?",
        "The score, which is paid at EOS, reaches EOS and no other token.",
    ),
    Misconception(
        "last column skipped",
        "The loop begins at the last column but one; the last one stays zero.",
        "How many columns does your loop visit?",
    ),
    Misconception(
        "gamma and lambda exchanged",
        "lambda discounts the next value in the TD error, where gamma belongs.",
        "Which of the two belongs to the task, and which only to the estimate?",
    ),
    Misconception(
        "lambda in the TD error, too",
        "The TD error multiplies the next value by gamma * lambda.",
        "Does a single TD error know of lambda?",
    ),
    Misconception(
        "1 - lambda for lambda",
        "The recursion multiplies by gamma * (1 - lambda).",
        "Which lambda looks far ahead, 0 or 1?",
    ),
    Misconception(
        "factor 1 - lambda too many",
        "The sum of the TD errors was multiplied by 1 - lambda.",
        "The factor belongs to the mean of the k-step advantages (Schulman et al. 2016, eq. 16). "
        "What becomes of it in the sum of TD errors?",
    ),
    Misconception(
        "reward of the next token",
        "The TD error of token t uses r_(t+1).",
        "rewards[:, t] is what token t is paid.",
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
    mask = torch.ones_like(mask) if NO_MASK.name in flags else mask
    deltas = _gae_errors(flags, rewards, values, mask, gamma, lam, bootstrap)
    decay = gamma if "lambda forgotten" in flags else gamma * lam
    decay = lam if "lambda without gamma" in flags else decay
    decay = gamma * (1 - lam) if "1 - lambda for lambda" in flags else decay
    decay = 0.0 if "one step only" in flags else decay
    flows = torch.ones_like(mask)  # behind the last real token all is zero already
    if "ends one token early" in flags:
        flows = _earlier(_earlier(mask))
    forwards = "forwards in time" in flags
    columns = list(range(deltas.shape[1]))
    after, found = zeros_like(deltas[:, 0]), {}
    for t in columns if forwards else columns[::-1]:
        found[t] = after = deltas[:, t] + decay * where(flows[:, t], after, 0.0)
    advantages = stack([found[t] for t in columns], 1)
    advantages = -advantages if SIGN.name in flags else advantages
    if "factor 1 - lambda too many" in flags:
        advantages = (1 - lam) * advantages
    if NO_BASELINE.name in flags:
        advantages = advantages + values
    if "whitened" in flags:
        mean, sd = advantages[mask].mean(), advantages[mask].var(correction=0).add(1e-8).sqrt()
        advantages = (advantages - mean) / sd
    if UNMASKED.name in flags:  # the loop has not touched the padding
        return where(mask, advantages, rewards - values)
    return _masked(flags, advantages, mask)


def _gae_errors(
    flags: frozenset[str],
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    gamma: float,
    lam: float,
    bootstrap: Tensor | None,
) -> Tensor:
    """The TD errors that are summed up, zero on padding."""
    real = _earlier(mask) if "EOS left out" in flags else mask
    real = _later(real) if "slot after EOS takes part" in flags else real
    if LEAK.name in flags:
        rewards, values = rewards * real, values * real
    if "reward of the next token" in flags:
        paid = _masked(flags, rewards, real)
        rewards = torch.cat([paid[:, 1:], zeros_like(paid[:, :1])], 1)
    gamma = lam if "gamma and lambda exchanged" in flags else gamma
    gamma = gamma * lam if "lambda in the TD error, too" in flags else gamma
    deltas = _td_errors(flags, rewards, values, real, gamma, bootstrap)
    if "V_t missing in the TD error" in flags:
        deltas = deltas + values
    if "ends one token early" in flags:
        lost = _earlier(mask) & ~_earlier(_earlier(mask))  # the last token but one
        following = torch.cat([values[:, 1:], zeros_like(values[:, :1])], 1)
        deltas = where(lost, deltas - gamma * following, deltas)
    if "last column skipped" in flags:
        deltas = torch.cat([deltas[:, :-1], zeros_like(deltas[:, :1])], 1)
    return deltas if "mask ignored on the way" in flags else _masked(flags, deltas, real)


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
        "padding counted", "Rewards under the mask were added.", "What does the mask say?"
    ),
    Misconception(
        "one gamma too many",
        "The token's own reward is discounted, too.",
        "What is k for the reward that comes at once?",
    ),
    LEAK,
)
def monte_carlo_returns(
    flags: frozenset[str], rewards: Tensor, mask: Tensor, *, gamma: float = 1.0
) -> Tensor:
    """R_t = sum of gamma^k * r_(t+k) over real tokens."""
    time = rewards.shape[1]
    gamma = 1.0 if "gamma forgotten" in flags else gamma
    if LEAK.name in flags:
        rewards = rewards * mask
    elif "padding counted" not in flags:
        rewards = where(mask, rewards, 0.0)
    here, there = torch.arange(time).unsqueeze(1), torch.arange(time).unsqueeze(0)
    distance = there - here
    ahead = distance > 0 if "own reward left out" in flags else distance >= 0
    if "sum of the past" in flags:
        distance, ahead = -distance, distance <= 0
    power = there.expand_as(ahead) if "discounted from the start" in flags else distance
    power = power + 1 if "one gamma too many" in flags else power
    weights = where(ahead, torch.tensor(float(gamma)) ** power.clamp(min=0), 0.0)
    returns = stack([(rewards * row).sum(1) for row in weights], 1)
    if "the whole return for every token" in flags:
        returns = returns[:, :1].expand_as(returns)
    return _masked(flags, returns, mask)


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
    Misconception(
        "value added",
        "V was added and not subtracted.",
        "What should the advantage be where the score is just what was expected?",
    ),
    Misconception(
        "every score with every value",
        "[batch, 1] met [batch], and broadcasting made a table of all pairs.",
        "Print the shapes of both inputs and of the result.",
        source="the textbook sketch: shapes that broadcast without a word",
    ),
)
def sequence_advantages(flags: frozenset[str], scores: Tensor, values: Tensor) -> Tensor:
    """score - V."""
    baseline = zeros_like(scores) if "value forgotten" in flags else values
    if "mean of the scores as the baseline" in flags:
        baseline = scores.mean()
    scores = scores.unsqueeze(1) if "every score with every value" in flags else scores
    advantages = scores + baseline if "value added" in flags else scores - baseline
    if "whitened" in flags:
        advantages = advantages - advantages.mean()
        advantages = advantages / (advantages.var(correction=0) + 1e-8).sqrt()
    return -advantages if "sign turned" in flags else advantages


@flawed(
    Misconception(
        "score on the last column",
        "The score was put on the last column, which is padding where a response ended early.",
        "In which column did this response end?",
        "With a GAE that ends at EOS, responses that end early are never paid.",
        "lm-human-preferences, where every response has full length",
        "Put the score on the last column of the batch, whether it is padding or not.",
    ),
    Misconception(
        "score one slot late",
        "The score was put on the first padding slot after EOS.",
        "Is EOS an action of the policy?",
        "With a GAE that ends at EOS the score of a response that ends early is lost; with one "
        "that takes the slot along it reaches EOS with the weight gamma * lam.",
        "TRL's trainer, torchtune: their convention (trl #1893, #3750, #5338)",
        "Put the score on the first slot after the last real token (on the last real "
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
        "coefficient forgotten", "The KL counts with the weight 1.", "What is kl_coef for?"
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
    LEAK,
    Misconception(
        "score one token early",
        "The score was put on the token before the last real one.",
        "n tokens are real. What is the index of the last of them, counted from 0?",
        source="AlpacaFarm: off by one where pad == eos",
    ),
    Misconception(
        "score on the first token",
        "The score was put on the first token.",
        "When has the judge read the whole response?",
        convention="Put the score on the first token of the response.",
    ),
    Misconception(
        "coefficient on both",
        "kl_coef multiplies the score, too.",
        "What should be paid where the KL is 0?",
    ),
    Misconception(
        "no KL at all",
        "Only the score was paid.",
        "Which of the inputs did you not use?",
        "Nothing ties the policy to the reference.",
    ),
    Misconception(
        "mean KL on every token",
        "Each real token was charged the mean KL of its response, and not its own.",
        "Which token went away from the reference?",
    ),
    Misconception(
        "mean KL at the end",
        "The mean KL of the response was charged on its last token.",
        "Should 100 tokens that each go as far cost more than 10, or as much?",
        "Per nat, a long response pays less than a short one.",
        "rlhf-book's PPO: the sequence's mean, at the last token",
        "Charge the mean KL of the response, once, on its last real token, with the score.",
    ),
    Misconception(
        "negative KL cut off",
        "Where the estimate of the KL is below 0 nothing was paid.",
        "The estimate is right on average. And after one side of it is cut off?",
        source="AlpacaFarm",
        convention="Set negative estimates of the KL to 0.",
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
    if "coefficient on both" in flags:
        scores = kl_coef * scores
    price = 0.0 if "no KL at all" in flags else price
    price = -price if "KL rewarded" in flags else price
    lengths = mask.sum(1, keepdim=True)
    columns = torch.arange(time).unsqueeze(0)
    last = columns == lengths - 1
    paid = last
    if "score on the last column" in flags:
        paid = (columns == time - 1).expand_as(mask)
    if "score one slot late" in flags:
        paid = columns == lengths.clamp(max=time - 1)
    if "score one token early" in flags:
        paid = columns == (lengths - 2).clamp(min=0)
    if "score on the first token" in flags:
        paid = (columns == 0).expand_as(mask)
    if {"score on every token", "score spread"} & flags:
        paid = mask
    if "score spread" in flags:
        scores = scores / lengths.squeeze(1)
    kl = kl.clamp(min=0) if "negative KL cut off" in flags else kl
    clean = kl if "padding paid" in flags else where(mask, kl, 0.0)
    clean = kl * mask if LEAK.name in flags else clean
    clean = _kl_moved(flags, clean, mask, last)
    if "no KL on the last token" in flags:
        clean = where(last, 0.0, clean)
    return -price * clean + where(paid, scores.unsqueeze(1), 0.0)


def _kl_moved(flags: frozenset[str], kl: Tensor, mask: Tensor, last: Tensor) -> Tensor:
    """The KL that each token is charged."""
    total = kl.sum(1, keepdim=True)
    mean = total / mask.sum(1, keepdim=True)
    if "KL paid at the end" in flags:
        return where(last, total, 0.0)
    if "mean KL at the end" in flags:
        return where(last, mean, 0.0)
    return where(mask, mean, 0.0) if "mean KL on every token" in flags else kl
