"""Mistakes about exercises whose solutions minippo itself does not need."""

import torch
from torch import Tensor, where

from minippo.misconceptions import Misconception, flawed
from minippo.misconceptions.log_probs import CUT, HALF, _cut, _wide
from minippo.misconceptions.masking import LEAK


@flawed(
    Misconception(
        "standard deviation for the variance",
        "The spread was measured by the root of the variance.",
        "What is the unit of your penalty, and what happens to it where the members nearly agree?",
        "Members 0.1 from their mean cost 10 times as much as they should.",
        convention="Subtract coef times the standard deviation (population), not the variance.",
    ),
    Misconception(
        "Bessel's correction",
        "The squares were divided by members - 1 and not by members.",
        "Which of the two variances is asked for, and which is torch's default?",
        "A single member has no score: 0 / 0 is NaN.",
        "torch's default",
        "Use the sample variance: divide by members - 1 (Bessel's correction).",
    ),
    Misconception(
        "one variance for the batch",
        "One variance of all scores was subtracted from every response.",
        "Is a response doubtful because other responses got other scores?",
        "All scores move by the same number: no response falls behind another.",
    ),
    Misconception(
        "axes swapped",
        "Mean and variance run over the responses, and not over the members.",
        "How many scores should come back, and over what did you average?",
    ),
    Misconception(
        "variance added",
        "The spread was added to the mean.",
        "Should a response on which the members disagree gain by that or lose?",
        "The optimiser looks for what the members disagree about, where a proxy is least right.",
    ),
    Misconception(
        "coefficient forgotten",
        "The variance counts with the weight 1.",
        "What should come back at coef = 0?",
    ),
    Misconception(
        "the least score",
        "The lowest of the members' scores was returned.",
        "How much do the other members count in yours?",
        source="Coste et al. 2023: worst-case optimisation, another way to be pessimistic",
    ),
)
def mean_minus_variance(flags: frozenset[str], scores: Tensor, *, coef: float) -> Tensor:
    """mean - coef * variance over the members."""
    dim = 1 if "axes swapped" in flags else 0
    n = scores.shape[dim]
    mean = scores.mean(dim, keepdim=True)
    spread = ((scores - mean) ** 2).sum(dim) / (n - ("Bessel's correction" in flags))
    mean = mean.squeeze(dim)
    if "one variance for the batch" in flags:
        spread = scores.var(correction=0).expand_as(mean)
    if "standard deviation for the variance" in flags:
        spread = spread.sqrt()
    coef = 1.0 if "coefficient forgotten" in flags else coef
    if "the least score" in flags:
        return scores.amin(dim)
    return mean + coef * spread if "variance added" in flags else mean - coef * spread


@flawed(
    Misconception(
        "mean of the token ratios",
        "The tokens' ratios were averaged.",
        "A text's probability is a product. What is the ratio of two products?",
        "Token ratios of 0.5 and 1.5 give 1, though the response is 0.75 times as likely.",
    ),
    Misconception(
        "mean instead of sum",
        "The log-ratios were averaged over the tokens: the geometric mean of the token ratios.",
        "How does your ratio change when a response gets twice as long?",
        "With T tokens the clip acts where the true ratio is (1 + epsilon)^T.",
        "GSPO (Zheng et al. 2025) and GMPO do so on purpose",
        "Average the log-ratios over the real tokens before exp (GSPO's length-normalised ratio).",
    ),
    Misconception(
        "padding counted",
        "The sum, or the product, runs over the padding, too.",
        "What does the mask say?",
        "Tokens that nobody sampled decide how likely a short response has become.",
    ),
    Misconception(
        "padding makes it 0",
        "Ratios on padding were set to 0 before all were multiplied.",
        "What must a factor be that changes nothing, and what a summand?",
        "A response that ends early has ratio 0 and no gradient: nothing is learned from it.",
    ),
    LEAK,
    Misconception(
        "upside down",
        "The old probability was divided by the new one.",
        "When a response has become more likely, is the ratio above or below 1?",
        "The policy is pushed away from what scored well.",
    ),
    Misconception(
        "each sum through exp",
        "The two probabilities were computed first, and then divided.",
        "How large is the probability of 40 tokens at log-prob -3, and what can float32 hold?",
        "A response of 40 tokens at -3 gives 0 / 0 = NaN, which ends the run.",
    ),
    Misconception(
        "masked too late",
        "The padding was removed after exp: junk there comes back as a gradient of NaN.",
        "The value is right. Where did the junk meet the graph?",
        "One NaN in padding makes every weight NaN, though the ratio looks right.",
    ),
    Misconception(
        "log-ratio instead of ratio",
        "The sum of the log-ratios was returned, without exp.",
        "What is the ratio where both policies agree?",
    ),
    HALF,
    CUT,
)
def sequence_ratio(
    flags: frozenset[str], log_probs: Tensor, old_log_probs: Tensor, mask: Tensor
) -> Tensor:
    """exp of the sum of log-ratios over the real tokens."""
    new, old = _wide(log_probs, flags), _wide(old_log_probs, flags)
    new, old = (old, new) if "upside down" in flags else (new, old)
    counted = torch.ones_like(mask) if "padding counted" in flags else mask
    length = counted.sum(1)

    def kept(x: Tensor, padding: float = 0.0) -> Tensor:
        return x * counted if LEAK.name in flags else where(counted, x, padding)

    difference = new - old if "masked too late" in flags else kept(new - old)
    log_ratio = kept(difference).sum(1)
    if "mean instead of sum" in flags:
        log_ratio = log_ratio / length
    ratio = log_ratio if "log-ratio instead of ratio" in flags else log_ratio.exp()
    if "masked too late" in flags:
        ratio = kept(difference.exp(), 1.0).prod(1)
    if "each sum through exp" in flags:
        ratio = kept(new).sum(1).exp() / kept(old).sum(1).exp()
    if "mean of the token ratios" in flags:
        ratio = kept(difference.exp()).sum(1) / length
    if "padding makes it 0" in flags:
        ratio = kept(difference.exp()).prod(1)
    return _cut(ratio, flags)


@flawed(
    Misconception(
        "sign turned",
        "The sum of p log p was averaged, which is below 0.",
        "Is entropy positive or negative?",
        "The bonus punishes diversity: the policy collapses sooner.",
        "ARENA 2.4: the course's first test lets it through",
    ),
    Misconception(
        "sum instead of mean",
        "The entropies of the real tokens were added up.",
        "What happens to yours when the batch doubles?",
        "The bonus grows with batch and length, and drowns the rest.",
        "the usual printed sketch",
        "Return the sum over the real tokens, and not their mean.",
    ),
    Misconception(
        "padding counted",
        "The mean runs over every slot, padding included.",
        "What does the mask say?",
        "The bonus is paid for being undecided about padding.",
        "TRL's entropy, trl #2496",
    ),
    Misconception(
        "mean of the rows' means",
        "Each response was averaged by itself, and then the responses.",
        "Does every real token weigh the same in yours?",
        source="verl's seq-mean-token-mean; verl #593",
        convention="Average each row over its real tokens, then average the rows.",
    ),
    Misconception(
        "p counted twice",
        "The terms p log p were weighted by p once more.",
        "p log p already holds the weight. Compare with log 2 for two equal logits.",
        "It is largest, 0.366, at three equally likely tokens: beyond them, diversity costs.",
        "the usual printed sketch: -sum(exp(logp) * logp) over sampled tokens",
    ),
    Misconception(
        "p squared",
        "1 - sum of p^2, or its like, was taken: the chance that two draws differ.",
        "Where is the logarithm?",
    ),
    Misconception(
        "in bits",
        "The logarithm has base 2.",
        "minippo measures in nats.",
        convention="Measure the entropy in bits (base 2), not in nats.",
    ),
    LEAK,
    Misconception(
        "0 log 0 is NaN",
        "A token that was ruled out has p = 0 and log p = -inf; their product is NaN.",
        "What is the limit of p log p as p goes to 0, and what does torch say?",
        "One forbidden token turns the whole loss into NaN.",
    ),
    HALF,
    CUT,
)
def entropy_bonus(flags: frozenset[str], logits: Tensor, mask: Tensor) -> Tensor:
    """The mean over the real tokens of -sum of p log p."""
    z = _wide(logits, flags)
    log_p, p = z.log_softmax(-1), z.softmax(-1)
    if "0 log 0 is NaN" not in flags:
        log_p = log_p.masked_fill(p == 0, 0.0)
    terms = -p * log_p * (p if "p counted twice" in flags else 1.0)
    entropies = 1 - (p * p).sum(-1) if "p squared" in flags else terms.sum(-1)
    counted = torch.ones_like(mask) if "padding counted" in flags else mask
    kept = entropies * counted if LEAK.name in flags else where(counted, entropies, 0.0)
    mean = kept.sum() / (1 if "sum instead of mean" in flags else counted.sum())
    if "mean of the rows' means" in flags:
        mean = (kept.sum(1) / counted.sum(1)).mean()
    mean = mean / torch.log(torch.tensor(2.0)) if "in bits" in flags else mean
    return _cut(-mean if "sign turned" in flags else mean, flags)


@flawed(
    Misconception(
        "objective for loss",
        "The whole was returned with its sign turned: what is to be made large.",
        "Optimizers make losses small. Which way does each of your terms push?",
        "The policy learns to do what scores badly, and the value head runs away.",
        "Schulman et al. 2017, eq. 9 prints the objective",
        "Return the objective, which is to be made large: minus the loss.",
    ),
    Misconception(
        "policy loss not added",
        "The policy loss has a minus sign, as the clipped objective has in the paper.",
        "Is it a loss that came in, or an objective?",
        "The policy learns to do what scores badly.",
    ),
    Misconception(
        "value loss subtracted",
        "c1 times the value loss has the wrong sign.",
        "Should the values come nearer to the returns?",
        "The value head runs away to infinity.",
        "Schulman et al. 2017, eq. 9, read term by term as a loss",
    ),
    Misconception(
        "entropy punished",
        "c2 * entropy was added to the loss: diversity costs.",
        "Should a bonus make the loss larger or smaller?",
        "The policy collapses sooner.",
    ),
    Misconception(
        "KL rewarded",
        "c3 * KL was subtracted: going far is paid, not charged.",
        "Is a penalty added to a loss or subtracted from it?",
        "The policy runs away from the reference.",
    ),
    Misconception(
        "c1 and c2 swapped",
        "The value loss got the entropy's coefficient, and the entropy the value loss's.",
        "Which of the two is usually 0.5, and which 0.01?",
    ),
    Misconception(
        "c2 and c3 swapped",
        "The entropy got the KL's coefficient, and the KL the entropy's.",
        "Which terms should vanish at c2 = 0?",
    ),
    Misconception(
        "coefficients forgotten",
        "The four terms were added with weights of 1.",
        "What should be left at c1 = c2 = c3 = 0?",
    ),
    CUT,
)
def combined_loss(
    flags: frozenset[str],
    policy_loss: Tensor,
    value_loss: Tensor,
    entropy: Tensor,
    kl: Tensor,
    *,
    c1: float,
    c2: float,
    c3: float,
) -> Tensor:
    """policy_loss + c1 * value_loss - c2 * entropy + c3 * kl."""
    if "c1 and c2 swapped" in flags:
        c1, c2 = c2, c1
    if "c2 and c3 swapped" in flags:
        c2, c3 = c3, c2
    if "coefficients forgotten" in flags:
        c1 = c2 = c3 = 1.0
    loss = -policy_loss if "policy loss not added" in flags else policy_loss
    loss = loss + (-c1 if "value loss subtracted" in flags else c1) * value_loss
    loss = loss + (c2 if "entropy punished" in flags else -c2) * entropy
    loss = loss + (-c3 if "KL rewarded" in flags else c3) * kl
    return _cut(-loss if "objective for loss" in flags else loss, flags)


@flawed(
    Misconception(
        "beta multiplies",
        "The rewards were multiplied by beta.",
        "Where KL costs nearly nothing, should the policy look like the reference?",
        "The cheaper the KL, the nearer the answer to the reference: the wrong way round.",
    ),
    Misconception(
        "not normalised",
        "log p + r / beta was returned: its exponentials do not add up to 1.",
        "What is the sum of your probabilities?",
        "A distance to it is off by the logarithm of that sum, and can be below 0.",
    ),
    Misconception(
        "reference forgotten",
        "A softmax of the rewards alone.",
        "What should come back where all rewards are equal?",
        "With rewards all equal it is uniform, and every policy that stays where it was looks bad.",
        convention="Take the reference to be uniform: leave ref_log_probs out.",
    ),
    Misconception(
        "beta forgotten",
        "The rewards were not divided by beta.",
        "What should come back when beta is very large?",
    ),
    Misconception(
        "multiplied as probabilities",
        "exp was taken of the log-probs and of r / beta, and the logarithm at the end.",
        "How large is exp(1000) in float32?",
        "Rewards of 1 at beta = 0.001 give inf / inf = NaN.",
    ),
    Misconception(
        "greedy",
        "All probability went to the response with the highest reward.",
        "How near to that does pi* come as beta goes to 0, and how near at beta = 1?",
    ),
    Misconception(
        "probabilities for log-probs",
        "The probabilities were returned, and not their logarithms.",
        "Log-probs are never above 0. Are yours?",
    ),
    Misconception(
        "reward subtracted",
        "The reward has the wrong sign.",
        "Which response should become more likely than under the reference?",
    ),
)
def optimal_policy(
    flags: frozenset[str], ref_log_probs: Tensor, rewards: Tensor, *, beta: float
) -> Tensor:
    """log-softmax of log p_ref + r / beta."""
    gain = rewards * beta if "beta multiplies" in flags else rewards / beta
    gain = rewards if "beta forgotten" in flags else gain
    gain = -gain if "reward subtracted" in flags else gain
    ref = torch.zeros_like(gain) if "reference forgotten" in flags else ref_log_probs
    log_p = ref + gain
    if "not normalised" not in flags:
        log_p = log_p.log_softmax(-1)
    if "multiplied as probabilities" in flags:
        p = ref.exp() * gain.exp()
        log_p = (p if "not normalised" in flags else p / p.sum()).log()
    if "greedy" in flags:
        log_p = torch.full_like(gain, -torch.inf).index_fill(0, gain.argmax(), 0.0)
    return log_p.exp() if "probabilities for log-probs" in flags else log_p


@flawed(
    Misconception(
        "mean of the micro-batches' means",
        "Each micro-batch was averaged by itself, and then the micro-batches.",
        "Do all tokens weigh the same in yours, when one micro-batch has ten and one has a "
        "hundred?",
        "A token in a micro-batch of short responses weighs more: another gradient, and no curve "
        "says so.",
        "TRL's PPOTrainer, lm-human-preference-details, twinkle #292",
    ),
    Misconception(
        "mean of the responses' means",
        "Each response was averaged by itself, and then the responses.",
        "Does every real token weigh the same in yours?",
        source="verl's seq-mean-token-mean; verl #593",
    ),
    Misconception(
        "means added up",
        "Each micro-batch's mean was added, and nothing divided by their number.",
        "What happens to your loss when the same minibatch is cut into twice as many parts?",
        "The gradient grows with the number of micro-batches.",
    ),
    Misconception(
        "sum instead of mean",
        "The losses of the real tokens were added up.",
        "What happens to yours when the batch doubles?",
        "The step grows with batch and length.",
    ),
    Misconception(
        "padding counted",
        "The sum was divided by the number of all slots, padding included.",
        "How many real tokens are there?",
        "The more padding, the smaller the step.",
    ),
    Misconception(
        "the last micro-batch alone",
        "What came back is the last micro-batch's share.",
        "Where do you add up?",
        "All micro-batches but one are computed for nothing.",
    ),
    LEAK,
    CUT,
)
def accumulated_loss(flags: frozenset[str], losses: Tensor, mask: Tensor) -> Tensor:
    """The sum over the real tokens of all micro-batches, over their number."""
    kept = losses * mask if LEAK.name in flags else where(mask, losses, 0.0)
    counted = torch.ones_like(mask) if "padding counted" in flags else mask
    if "the last micro-batch alone" in flags:
        return _cut(kept[-1].sum() / counted.sum(), flags)
    if "mean of the responses' means" in flags:
        return _cut((kept.sum(2) / counted.sum(2)).mean(), flags)
    means = kept.sum((1, 2)) / counted.sum((1, 2))
    if "mean of the micro-batches' means" in flags:
        return _cut(means.mean(), flags)
    if "means added up" in flags:
        return _cut(means.sum(), flags)
    n = 1 if "sum instead of mean" in flags else counted.sum()
    return _cut(kept.sum() / n, flags)


@flawed(
    Misconception(
        "mean instead of maximum",
        "The errors were averaged over the tokens.",
        "One token of a thousand is wrong. What does your number say?",
        "A bug that touches few tokens, such as a wrong EOS, disappears in the mean.",
    ),
    Misconception(
        "padding counted",
        "Ratios on padding were looked at, too.",
        "What does the mask say?",
        "The alarm rings in healthy runs, and is switched off.",
    ),
    Misconception(
        "only upwards",
        "The largest ratio - 1 was taken, without its absolute value.",
        "What does yours say when every token has become less likely?",
        "Half of the errors are never seen.",
    ),
    Misconception(
        "of the mean ratio",
        "The ratios were averaged first, and the mean was compared with 1.",
        "What is the mean of 0.5 and 1.5?",
        "Errors in both directions cancel: dropout's ratio has a mean near 1.",
    ),
    Misconception(
        "log-ratio instead of ratio",
        "The largest |log-ratio| was returned, without exp.",
        "A token is twice as likely as it was. What should come back?",
    ),
    Misconception(
        "upside down",
        "The old probability was divided by the new one.",
        "Which of the two is in the numerator?",
    ),
    Misconception(
        "the largest ratio",
        "The ratio itself was returned, and not its distance from 1.",
        "What should come back where nothing has changed?",
    ),
    LEAK,
    HALF,
)
def first_ratio_error(
    flags: frozenset[str], log_probs: Tensor, old_log_probs: Tensor, mask: Tensor
) -> Tensor:
    """The largest |ratio - 1| over the real tokens."""
    new, old = _wide(log_probs, flags), _wide(old_log_probs, flags)
    difference = old - new if "upside down" in flags else new - old
    if LEAK.name not in flags and "padding counted" not in flags:
        difference = where(mask, difference, 0.0)
    counted = torch.ones_like(mask) if "padding counted" in flags else mask
    if "log-ratio instead of ratio" in flags:
        error = difference
    else:
        error = difference.exp() - (0 if "the largest ratio" in flags else 1)
    if "of the mean ratio" in flags:
        return ((error * counted).sum() / counted.sum()).abs()
    error = error if "only upwards" in flags else error.abs()
    if "mean instead of maximum" in flags:
        return where(counted, error, 0.0).sum() / counted.sum()
    return (error * mask).max() if LEAK.name in flags else error[counted].max()
