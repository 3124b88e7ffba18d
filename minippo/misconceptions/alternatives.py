"""Mistakes about DPO, GRPO and RLOO."""

import math

import torch
from torch import Tensor, zeros_like
from torch.nn.functional import softplus

from minippo.misconceptions import Misconception, flawed
from minippo.misconceptions.log_probs import CUT, _cut


@flawed(
    Misconception(
        "reference forgotten",
        "The policy's own log-probs were compared, without the reference's.",
        "What is the implicit reward of a response?",
        "A response that was likely from the start counts as liked.",
    ),
    Misconception(
        "beta forgotten",
        "The difference was not multiplied by beta.",
        "What happens to the loss as beta goes to 0?",
    ),
    Misconception(
        "beta outside",
        "The loss was multiplied by beta, and not the difference inside.",
        "What is the loss at beta = 0?",
    ),
    Misconception(
        "chosen and rejected swapped",
        "The difference was taken the wrong way round.",
        "Which of the two should become more likely?",
        "The policy learns to write what people rejected.",
    ),
    Misconception(
        "reference swapped",
        "The reference's log-probs of chosen and rejected were exchanged.",
        "Which pair belongs together?",
    ),
    Misconception(
        "log of sigmoid",
        "sigmoid first and the logarithm afterwards: far below 0 the sigmoid is 0 and its log "
        "-inf.",
        "torch has one function for both steps.",
        "Log-probs of whole responses differ by hundreds: one such pair makes the loss infinite.",
    ),
    Misconception(
        "sigmoid forgotten",
        "The difference itself was returned, with its sign turned.",
        "What is the loss of a pair that is right already, by far?",
        "The loss has no lower bound: pairs that are right already go on pulling as hard.",
    ),
    Misconception(
        "minus forgotten",
        "log sigmoid was returned: what should be small is large.",
        "Which of two losses is better, the lower or the higher one?",
        "The optimiser makes the rejected response more likely.",
    ),
    CUT,
)
def dpo_loss(
    flags: frozenset[str],
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    *,
    beta: float,
) -> Tensor:
    """-log sigmoid(beta * ((pc - rc) - (pr - rr)))."""
    if "reference forgotten" in flags:
        ref_chosen, ref_rejected = zeros_like(ref_chosen), zeros_like(ref_rejected)
    if "reference swapped" in flags:
        ref_chosen, ref_rejected = ref_rejected, ref_chosen
    d = (policy_chosen - ref_chosen) - (policy_rejected - ref_rejected)
    d = -d if "chosen and rejected swapped" in flags else d
    inside = 1.0 if {"beta forgotten", "beta outside"} & flags else beta
    loss = softplus(-inside * d)
    if "log of sigmoid" in flags:
        loss = -(inside * d).sigmoid().log()
    loss = -inside * d if "sigmoid forgotten" in flags else loss
    loss = -loss if "minus forgotten" in flags else loss
    return _cut(beta * loss if "beta outside" in flags else loss, flags)


@flawed(
    Misconception(
        "Bessel's correction",
        "The variance was divided by k - 1 and not by k.",
        "Which of the two variances is asked for, and which is torch's default?",
        source="TRL, verl: their convention",
        convention="Use the sample variance of the group: divide by k - 1.",
    ),
    Misconception(
        "one group for all",
        "Mean and scale were taken over the whole batch.",
        "With whom does a response compete?",
        "Responses to easy prompts are pushed up, whatever they say.",
    ),
    Misconception(
        "mean kept",
        "The scores were scaled and not centred.",
        "What is the sum of the advantages of a group?",
    ),
    Misconception(
        "scale forgotten",
        "Only the mean was removed, also where normalize is True.",
        "What does the second half of the formula do?",
        source="Dr. GRPO leaves it out on purpose",
        convention="Do not divide by the standard deviation (Dr. GRPO).",
    ),
    Misconception(
        "switch ignored",
        "The division happens also where normalize is False.",
        "What is the keyword for?",
    ),
    Misconception(
        "axes swapped",
        "The mean runs over the groups, and not over the k responses of each.",
        "Which axis holds the responses to one prompt?",
    ),
    Misconception(
        "variance instead of its root",
        "The scores were divided by the variance and not by the standard deviation.",
        "What is the unit of a variance?",
    ),
    Misconception(
        "0 / 0 is NaN",
        "Nothing is added to the variance: where all scores of a group are equal, 0 is divided "
        "by 0.",
        "What should a group say in which no response is better than another?",
        "One prompt that is always solved turns the whole loss into NaN.",
    ),
    Misconception(
        "1e-4 added to the deviation",
        "1e-4 was added to the standard deviation, and not 1e-8 to the variance.",
        "The formula adds its small number inside the root.",
        source="a common idiom of GRPO code",
        convention="Divide by the group's standard deviation plus 1e-4.",
    ),
    Misconception(
        "leave-one-out",
        "The mean of the others was subtracted: that is RLOO's baseline.",
        "Does a score count in the mean of its own group here?",
    ),
)
def group_advantages(flags: frozenset[str], scores: Tensor, *, normalize: bool = True) -> Tensor:
    """(score - mean) / sqrt(variance + 1e-8), group by group."""
    dims = (0, 1) if "one group for all" in flags else (0,) if "axes swapped" in flags else (1,)
    centred = scores - scores.mean(dims, keepdim=True)
    squares = (centred**2).sum(dims, keepdim=True)
    n = math.prod(scores.shape[dim] for dim in dims) - ("Bessel's correction" in flags)
    variance = squares / torch.tensor(float(n))
    kept = scores if "mean kept" in flags else centred
    if "leave-one-out" in flags:
        kept = centred * scores.shape[1] / (scores.shape[1] - 1)
    if "scale forgotten" in flags or not (normalize or "switch ignored" in flags):
        return kept
    outside = "1e-4 added to the deviation" in flags
    variance = variance + (0.0 if outside or "0 / 0 is NaN" in flags else 1e-8)
    scale = variance if "variance instead of its root" in flags else variance.sqrt()
    return kept / (scale + 1e-4 if outside else scale)


@flawed(
    Misconception(
        "own score counted",
        "The mean of the whole group was subtracted, its own score included.",
        "Leave one out: which one?",
        "The advantages are (k - 1) / k times too small.",
        convention="Subtract the mean of the whole group, its own score included.",
    ),
    Misconception(
        "divided by k",
        "The sum of the others was divided by k and not by k - 1.",
        "How many others are there?",
    ),
    Misconception(
        "normalised",
        "The advantages were divided by the group's standard deviation: that is GRPO.",
        "Where does RLOO divide?",
        convention="Divide by the population standard deviation of the group (+ 1e-8 in the root).",
    ),
    Misconception(
        "sign turned",
        "The score was subtracted from the baseline.",
        "Is a response that is better than the others good or bad?",
        "The policy learns to do what scores badly.",
    ),
    Misconception(
        "one group for all",
        "The others are all other responses of the batch, and not those of the group.",
        "With whom does a response compete?",
        "Responses to easy prompts are pushed up, whatever they say.",
        convention="Compare each score with the mean of all other scores of the batch.",
    ),
    Misconception(
        "baseline returned",
        "The mean of the others was returned, and not what a score is above it.",
        "What is the advantage of a response that is just as good as the others?",
    ),
)
def leave_one_out_advantages(flags: frozenset[str], scores: Tensor) -> Tensor:
    """score - mean of the others."""
    k = scores.shape[1]
    others = (scores.sum(1, keepdim=True) - scores) / (k if "divided by k" in flags else k - 1)
    if "own score counted" in flags:
        others = scores.mean(1, keepdim=True).expand_as(scores)
    if "one group for all" in flags:
        others = (scores.sum() - scores) / (scores.numel() - 1)
    advantages = others if "baseline returned" in flags else scores - others
    if "normalised" in flags:
        advantages = advantages / (scores.var(1, correction=0, keepdim=True) + 1e-8).sqrt()
    return -advantages if "sign turned" in flags else advantages
