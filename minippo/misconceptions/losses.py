"""Mistakes about the losses."""

import torch
from torch import Tensor, maximum, minimum, where
from torch.nn.functional import softplus

from minippo.misconceptions import Misconception, flawed
from minippo.misconceptions.log_probs import CUT, HALF, _cut, _wide

OBJECTIVE = Misconception(
    "sign turned",
    "The objective was returned, which is to be made large, where a loss is asked for.",
    "Optimizers make losses small. Which way does yours push?",
    "The policy learns to do what scores badly.",
    "baselines #92, #452; ARENA 2.3: the course's test lets it through",
    "Return the objective, which is to be made large, and not the loss.",
)


@flawed(
    Misconception(
        "chosen and rejected swapped",
        "The difference was taken the wrong way round.",
        "At which difference should the loss be near 0?",
        "The reward model learns to prefer what people rejected.",
    ),
    Misconception(
        "overflows",
        "exp of the difference, or the log of a sigmoid, was taken step by step: a difference of "
        "1000 gives inf.",
        "torch has softplus and logsigmoid for this.",
        "One pair that the model gets badly wrong makes the loss inf and the gradient NaN.",
        "ARENA 2.4: its stability test lets the like through",
    ),
    Misconception(
        "probability instead of its logarithm",
        "The probability of the wrong choice was returned, and not the surprise.",
        "Where is the logarithm?",
        "Pairs that are badly wrong get almost no gradient.",
    ),
    Misconception(
        "each score by itself",
        "The chosen score was pushed above 0 and the rejected one below: their difference is not "
        "what counts.",
        "Add 100 to both scores. May the loss change?",
    ),
    Misconception(
        "hinge",
        "max(0, 1 - difference): another loss, which is flat beyond a margin.",
        "Bradley-Terry gives a probability to each choice.",
        convention="Use the hinge loss max(0, 1 - (chosen - rejected - margin)).",
    ),
    Misconception(
        "margin added",
        "The margin was added to the difference and not subtracted.",
        "A margin makes it harder to be right.",
    ),
    CUT,
    HALF,
)
def bradley_terry_loss(
    flags: frozenset[str], chosen: Tensor, rejected: Tensor, *, margin: float = 0.0
) -> Tensor:
    """-log sigmoid(chosen - rejected - margin)."""
    chosen, rejected = _wide(chosen, flags), _wide(rejected, flags)
    d = chosen - rejected - (-margin if "margin added" in flags else margin)
    d = -d if "chosen and rejected swapped" in flags else d
    loss = softplus(-d)
    if "overflows" in flags:
        loss = -d.sigmoid().log()
    if "probability instead of its logarithm" in flags:
        loss = (-d).sigmoid()
    if "each score by itself" in flags:
        loss = softplus(-chosen) + softplus(rejected)
    if "hinge" in flags:
        loss = (1 - d).clamp(min=0)
    return _cut(loss, flags)


@flawed(
    Misconception(
        "log-ratio instead of ratio",
        "The difference of the log-probs was returned, without exp.",
        "What is the ratio where both policies agree?",
    ),
    Misconception(
        "upside down",
        "The old probability was divided by the new one.",
        "When a token has become more likely, is the ratio above or below 1?",
        "The policy is pushed away from what scored well.",
    ),
    Misconception(
        "quotient of log-probs",
        "One log-prob was divided by the other.",
        "log a - log b = log(a / b). What is log a / log b?",
    ),
    Misconception(
        "clamped",
        "The log-ratio was clamped, so that the ratio ends where the true one goes on.",
        "Clipping comes later, and knows the advantage.",
        source="OpenRLHF and verl clamp it at +-20; here at +-1",
    ),
    CUT,
    HALF,
)
def probability_ratio(flags: frozenset[str], log_probs: Tensor, old_log_probs: Tensor) -> Tensor:
    """exp(log p - log p_old)."""
    new, old = _wide(log_probs, flags), _wide(old_log_probs, flags)
    difference = old - new if "upside down" in flags else new - old
    if "clamped" in flags:
        difference = difference.clamp(-1.0, 1.0)
    ratio = difference if "log-ratio instead of ratio" in flags else difference.exp()
    return _cut(new / old if "quotient of log-probs" in flags else ratio, flags)


@flawed(
    Misconception(
        "maximum instead of minimum",
        "The larger of the two objectives was taken: the hopeful one, where PPO takes the "
        "pessimistic one.",
        "minimum of the objectives is maximum of the losses. Which one did you write, and of what?",
        "Nothing stops a step that has gone too far: the gradient goes on where the clip should "
        "end it, and ends where it should go on.",
        "baselines #92, #452, #1156",
    ),
    OBJECTIVE,
    Misconception(
        "no clip",
        "The ratio was not clipped at all.",
        "What is your loss at ratio 3 and advantage 1, and at ratio 2?",
        "One batch may move the policy any distance.",
    ),
    Misconception(
        "clipped above only",
        "The ratio was clipped above 1 + epsilon, and not below 1 - epsilon.",
        "What limits a step when the advantage is negative?",
        source="ARENA 2.3: its first test lets the like through",
    ),
    Misconception(
        "clipped below only",
        "The ratio was clipped below 1 - epsilon, and not above 1 + epsilon.",
        "What limits a step when the advantage is positive?",
        source="ARENA 2.3: its test lets it through in 71 % of the runs",
    ),
    Misconception(
        "clipped in log space",
        "log r was clipped to +-epsilon: the band is then exp(-epsilon) to exp(epsilon).",
        "Where does the band end, in the formula and in yours?",
        source="ARENA 2.3: its test lets it through in 79 % of the runs",
    ),
    Misconception(
        "clip without minimum",
        "Only the clipped ratio times the advantage was taken.",
        "How does a policy come back that is outside the band on the wrong side?",
        "Four of the six regions are flat and not two: what has gone the wrong way is stuck there.",
        "two famous courses say that the gradient is 0 whenever the ratio is outside",
    ),
    Misconception(
        "minimum before the advantage",
        "min(r, clip(r)) was multiplied by the advantage: for A < 0 that is the wrong one.",
        "Multiplying by a negative number turns minimum into maximum.",
        source="takuseno/ppo #3",
    ),
    Misconception(
        "product clipped",
        "r * A was clipped to 1 +- epsilon, and not r.",
        "What is in the brackets of clip in the formula?",
    ),
    Misconception(
        "band around zero",
        "The ratio was clipped to +-epsilon and not to 1 +- epsilon.",
        "What is the ratio when nothing has changed?",
    ),
    Misconception(
        "gradient cut",
        "The ratio is detached: the value is right, but nothing is learned from it.",
        "Look for detach, no_grad, item, numpy or a new torch.tensor.",
        "The policy stays as it is.",
        "ARENA 2.3 and 2.4: the course's tests let it through",
    ),
)
def clipped_surrogate(
    flags: frozenset[str],
    ratio: Tensor,
    advantages: Tensor,
    clip_range: float,
    *,
    dual_clip: float | None = None,
) -> Tensor:
    """-min(r * A, clip(r) * A)."""
    r, low, high = ratio, 1 - clip_range, 1 + clip_range
    if "band around zero" in flags:
        low, high = -clip_range, clip_range
    if "clipped above only" in flags:
        clipped = r.clamp(max=high)
    elif "clipped below only" in flags:
        clipped = r.clamp(min=low)
    elif "clipped in log space" in flags:
        clipped = r.log().clamp(-clip_range, clip_range).exp()
    else:
        clipped = r if "no clip" in flags else r.clamp(low, high)
    a, b = r * advantages, clipped * advantages
    if "product clipped" in flags:
        b = a.clamp(low, high)
    objective = maximum(a, b) if "maximum instead of minimum" in flags else minimum(a, b)
    if "clip without minimum" in flags:
        objective = b
    if "minimum before the advantage" in flags:
        objective = minimum(r, clipped) * advantages
    if dual_clip is not None:
        objective = where(advantages < 0, maximum(objective, dual_clip * advantages), objective)
    return _cut(objective if "sign turned" in flags else -objective, flags)


@flawed(
    Misconception(
        "both sides counted",
        "Every ratio outside the band was counted, whatever the advantage says.",
        "Where exactly is the gradient zero? Two regions of six.",
        source="CleanRL, Stable-Baselines3, Spinning Up report it so",
        convention="Count every ratio outside the band, whatever the advantage.",
    ),
    Misconception(
        "signs swapped",
        "The band's upper end was paired with A < 0 and the lower one with A > 0.",
        "With A > 0 the ratio should rise. At which end is it stopped?",
    ),
    Misconception(
        "above only",
        "Only ratios above the band were counted.",
        "What about a token that should become less likely, and has become so by far?",
    ),
    Misconception(
        "edges counted",
        "A ratio exactly on the edge was counted as clipped.",
        "Is the gradient zero before the edge is crossed?",
    ),
    Misconception(
        "turned round", "True where the clip is not active.", "Its mean is to be the clip fraction."
    ),
    Misconception(
        "zero advantage counted",
        "A = 0 was counted as clipped: there is no gradient, but no clip made it so.",
        "Which of the two, r * A and clip(r) * A, is smaller where A = 0?",
    ),
)
def clip_is_active(
    flags: frozenset[str],
    ratio: Tensor,
    advantages: Tensor,
    clip_range: float,
    *,
    dual_clip: float | None = None,
) -> Tensor:
    """True where a clip makes the gradient zero."""
    low, high = 1 - clip_range, 1 + clip_range
    edges = "edges counted" in flags
    above, below = (ratio >= high, ratio <= low) if edges else (ratio > high, ratio < low)
    positive, negative = advantages > 0, advantages < 0
    if "zero advantage counted" in flags:
        positive, negative = advantages >= 0, advantages <= 0
    if "signs swapped" in flags:
        positive, negative = negative, positive
    active = above & positive | below & negative
    if "both sides counted" in flags:
        active = above | below
    if "above only" in flags:
        active = above & positive
    if dual_clip is not None:
        active = active | (advantages < 0) & (ratio > dual_clip)
    return ~active if "turned round" in flags else active


@flawed(
    OBJECTIVE,
    Misconception(
        "KL rewarded",
        "The KL has the wrong sign: going far is paid, not charged.",
        "Is a penalty added to a loss or subtracted from it?",
        "The policy runs away from itself.",
    ),
    Misconception(
        "coefficient on the advantage",
        "The coefficient multiplies the first term and not the KL.",
        "Which of the two terms should vanish at coefficient 0?",
    ),
    Misconception(
        "coefficient forgotten",
        "The KL counts with the weight 1.",
        "What does the controller move?",
    ),
    Misconception(
        "KL detached",
        "No gradient reaches the KL: the penalty is shown, and does nothing.",
        "Look for detach or no_grad around the KL.",
        "The penalty changes the number of the loss and no weight.",
    ),
)
def penalty_surrogate(
    flags: frozenset[str], ratio: Tensor, advantages: Tensor, kl: Tensor, *, coef: float
) -> Tensor:
    """-(r * A - coef * KL)."""
    gain = ratio * advantages
    if "coefficient on the advantage" in flags:
        gain, coef = coef * gain, 1.0
    if "coefficient forgotten" in flags:
        coef = 1.0
    kl = kl.detach() if "KL detached" in flags else kl
    objective = gain + coef * kl if "KL rewarded" in flags else gain - coef * kl
    return objective if "sign turned" in flags else -objective


@flawed(
    Misconception(
        "half forgotten",
        "The factor 0.5 is missing.",
        "What is the loss one away from the target?",
        source="Spinning Up, Stable-Baselines3: their convention",
        convention="Leave out the factor 0.5.",
    ),
    Misconception(
        "sign turned",
        "The error has the wrong sign: it is made large.",
        "Should V come nearer to R or move away?",
        "The value head runs away to infinity.",
    ),
    Misconception(
        "absolute error",
        "|V - R| was taken and not its square.",
        "The mean minimises the squared error. What minimises the absolute one?",
    ),
    Misconception(
        "square forgotten",
        "The error was not squared: its sign survives.",
        "May a loss be negative here?",
    ),
    Misconception(
        "minimum instead of maximum",
        "The smaller of the two errors was taken: the clip then hides errors.",
        "The clipped form is a pessimistic bound, like the one of the policy.",
    ),
    Misconception(
        "clipped error alone",
        "Only the clipped value was compared with the return.",
        "What gradient does a value outside the band get?",
        "A value that has left the band on the wrong side gets no gradient back.",
        "RL4LMs",
    ),
    Misconception(
        "clipped around zero",
        "The value itself was clipped to +-epsilon, and not its distance from the old value.",
        "Small steps, away from what?",
    ),
    Misconception(
        "clip ignored",
        "Old values and range were given, and not used.",
        "What are the two keywords for?",
    ),
    Misconception(
        "gradient cut",
        "The values are detached, or come from the rollout: the value head learns nothing.",
        "Which forward pass do the values come from?",
        "The value loss stays where it is, and the explained variance near 0.",
        "the usual printed sketch; ARENA 2.3: the course's test lets it through",
    ),
)
def value_loss(
    flags: frozenset[str],
    values: Tensor,
    returns: Tensor,
    *,
    old_values: Tensor | None = None,
    clip_range: float | None = None,
) -> Tensor:
    """0.5 * max of the two squared errors."""

    def error(v: Tensor) -> Tensor:
        if "absolute error" in flags:
            return (v - returns).abs()
        return v - returns if "square forgotten" in flags else (v - returns) ** 2

    loss = error(values)
    if old_values is not None and clip_range is not None and "clip ignored" not in flags:
        centre = old_values * ("clipped around zero" not in flags)
        clipped = error(centre + (values - centre).clamp(-clip_range, clip_range))
        least = "minimum instead of maximum" in flags
        loss = minimum(loss, clipped) if least else maximum(loss, clipped)
        loss = clipped if "clipped error alone" in flags else loss
    loss = loss if "half forgotten" in flags else 0.5 * loss
    return _cut(-loss if "sign turned" in flags else loss, flags)


@flawed(
    OBJECTIVE,
    Misconception(
        "advantages not detached",
        "A gradient reaches the advantages, and through them the value head.",
        "Is the advantage what is learned here, or how much is learned?",
        "The value head is bent to make advantages large.",
    ),
    Misconception(
        "probability instead of its logarithm",
        "exp(log p) * A was taken: its gradient is p times too small.",
        "The policy gradient has the gradient of log p.",
        "Rare tokens, from which there is most to learn, hardly move.",
    ),
    Misconception(
        "advantage forgotten",
        "-log p alone: every sampled token becomes more likely, good or bad.",
        "What tells a good response from a bad one?",
    ),
    CUT,
)
def reinforce_loss(flags: frozenset[str], log_probs: Tensor, advantages: Tensor) -> Tensor:
    """-A * log p, A a constant."""
    if "advantages not detached" not in flags:
        advantages = advantages.detach()
    if "advantage forgotten" in flags:
        advantages = torch.ones_like(advantages)
    p = log_probs.exp() if "probability instead of its logarithm" in flags else log_probs
    objective = advantages * p
    return _cut(objective if "sign turned" in flags else -objective, flags)


@flawed(
    Misconception(
        "padding counted",
        "The mean runs over every slot, padding included.",
        "Which tokens should the model learn to write?",
        "It learns to write padding.",
    ),
    Misconception(
        "shifted twice",
        "The logits were shifted by one, though they are aligned already.",
        "Which column of the tokens do the logits of column t predict here?",
        "The model learns to predict the token after the next.",
    ),
    Misconception(
        "sum instead of mean",
        "The sum over the real tokens was returned.",
        "What happens to yours when the batch doubles?",
        convention="Return the sum over the real tokens, and not their mean.",
    ),
    Misconception(
        "mean of the rows' means",
        "Each response was averaged by itself, and then the responses.",
        "Does every real token weigh the same in yours?",
        convention="Average each row over its real tokens, then average the rows.",
    ),
    Misconception(
        "EOS left out",
        "The last real token, EOS, was not counted.",
        "How will the model learn to stop?",
        "It never learns to stop.",
        "masks built as tokens != pad where pad == eos: LLaMA-Factory #2382",
    ),
    Misconception(
        "sign turned",
        "The log-likelihood was returned, which is to be made large.",
        "Is a surprise positive or negative?",
    ),
    Misconception(
        "masked too late",
        "The padding was removed after the logarithm: NaN logits there come back as NaN gradients.",
        "The value is right. Where did the NaN meet the graph?",
        "One NaN in padding makes every weight NaN, though the loss looks right.",
    ),
)
def sft_loss(flags: frozenset[str], logits: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    """-mean of log p over the real tokens."""
    if "EOS left out" in flags:
        mask = mask.scatter(1, mask.sum(1, keepdim=True) - 1, False)
    if "shifted twice" in flags:
        logits, tokens, mask = logits[:, :-1], tokens[:, 1:], mask[:, 1:]
    if "masked too late" not in flags and "padding counted" not in flags:
        logits = where(mask.unsqueeze(-1), logits, 0.0)
    log_p = logits.log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    kept = log_p if "padding counted" in flags else where(mask, log_p, 0.0)
    count: Tensor | int = mask.numel() if "padding counted" in flags else mask.sum()
    mean = kept.sum() / (1 if "sum instead of mean" in flags else count)
    if "mean of the rows' means" in flags:
        mean = (kept.sum(1) / mask.sum(1)).mean()
    return mean if "sign turned" in flags else -mean
