"""Mistakes about what training costs and about the learning rate's schedule."""

from torch import Tensor, where

from minippo.misconceptions import Misconception, flawed


@flawed(
    Misconception(
        "gradients forgotten",
        "No gradient was counted for the weights that learn.",
        "What does the backward pass leave behind, one number for each weight that learns?",
        "The first backward pass ends in out of memory, though the models fitted.",
    ),
    Misconception(
        "one moment",
        "Adam was counted with one number for each weight.",
        "Which two averages does Adam keep for each weight?",
    ),
    Misconception(
        "master copy forgotten",
        "Short weights learn without a float32 copy.",
        "What becomes of a bfloat16 weight of 1 to which 0.001 is added?",
        "An update smaller than about 1 / 256 of a bfloat16 weight is rounded away.",
    ),
    Misconception(
        "master copy of float32",
        "A master copy was counted although the weights are float32 already.",
        "What would a float32 copy of float32 weights be for?",
    ),
    Misconception(
        "moments as short as the weights",
        "Adam's moments were counted in the weights' own type.",
        "Which type do the moments have, whatever the weights have?",
        source="8-bit optimisers do so on purpose",
        convention="Adam's moments have the weights' own type.",
    ),
    Misconception(
        "all of them learn",
        "Every model was counted with gradients and moments.",
        "What does a frozen model need besides its weights?",
        "Reference and reward model look as dear as the policy.",
    ),
    Misconception(
        "frozen models are free",
        "Frozen models count nothing.",
        "Where are the reference's weights while it is asked for log-probs?",
        "Four models look as cheap as one.",
    ),
    Misconception(
        "in bits",
        "A byte was counted as eight.",
        "How many bits has a byte, and which of the two is asked for?",
    ),
    Misconception(
        "the sum",
        "One number was returned for all models together, and not one a model.",
        "How many numbers should come back?",
    ),
)
def training_memory(
    flags: frozenset[str], billions: Tensor, trained: Tensor, *, weight_bytes: int
) -> Tensor:
    """Bytes a weight, times billions of weights."""
    moment = weight_bytes if "moments as short as the weights" in flags else 4
    short = weight_bytes < 4 or "master copy of float32" in flags
    each = weight_bytes
    each += 0 if "gradients forgotten" in flags else weight_bytes
    each += moment * (1 if "one moment" in flags else 2)
    each += 4 if short and "master copy forgotten" not in flags else 0
    frozen = 0 if "frozen models are free" in flags else weight_bytes
    if "all of them learn" in flags:
        frozen = each
    found = billions * where(trained, each, frozen) * (8 if "in bits" in flags else 1)
    return found.sum() if "the sum" in flags else found


@flawed(
    Misconception(
        "the first step learns nothing",
        "The warm-up begins at 0.",
        "What is the learning rate of your very first step, and what was its rollout for?",
        "The first rollout is collected, judged and thrown away.",
        convention="The warm-up begins at 0: its share at step s is s / warmup_steps.",
    ),
    Misconception(
        "the warm-up goes on",
        "The rate goes on rising after the warm-up.",
        "What should the warm-up's share be after its last step?",
        "The rate grows past the one that was asked for.",
    ),
    Misconception(
        "below zero",
        "The rate is negative after the last step.",
        "What is the rate at a step beyond total_steps?",
        "A run that is resumed past its end undoes what it has learned.",
    ),
    Misconception(
        "the fall begins after the warm-up",
        "The line falls from the end of the warm-up on, and not from step 0.",
        "From which step to which does the line fall?",
        source="transformers' get_linear_schedule_with_warmup",
        convention="The line falls from 1 at warmup_steps to 0 at total_steps.",
    ),
    Misconception(
        "no fall",
        "The rate stays up after the warm-up.",
        "What should the rate be at total_steps?",
        convention="Leave out the linear fall: after the warm-up the rate is constant.",
    ),
    Misconception(
        "no warm-up",
        "The rate is highest in the first step.",
        "When do you know least about the gradients' scale?",
    ),
    Misconception(
        "the smaller of the two",
        "The smaller one of warm-up and fall was taken, and not their product.",
        "How do two factors act together?",
        convention="Take the smaller one of the two factors, not their product.",
    ),
    Misconception(
        "base forgotten",
        "The schedule was returned without the learning rate that it scales.",
        "What is `base` for?",
    ),
)
def learning_rates(
    flags: frozenset[str], steps: Tensor, *, base: float, warmup_steps: int, total_steps: int
) -> Tensor:
    """Warm-up times a linear fall."""
    first = 0 if "the first step learns nothing" in flags else 1
    warm = (steps + first) / warmup_steps
    if "the warm-up goes on" not in flags:
        warm = warm.clamp(max=1.0)
    if "no warm-up" in flags:
        warm = warm * 0 + 1
    left = 1 - steps / total_steps
    if "the fall begins after the warm-up" in flags:
        left = ((total_steps - steps) / max(1, total_steps - warmup_steps)).clamp(max=1.0)
    if "below zero" not in flags:
        left = left.clamp(min=0.0)
    if "no fall" in flags:
        left = left * 0 + 1
    both = warm.minimum(left) if "the smaller of the two" in flags else warm * left
    return both if "base forgotten" in flags else base * both
