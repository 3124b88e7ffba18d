"""Loss and gradient of PPO and its relatives on one batch, against plain loops made elsewhere.

The golden numbers (float64 loops without a library, checked by central differences, and equal to
OpenRLHF 0.11.2, verl 0.9.1, TRL 1.16.0 and NeMo RL 7ea279abf where those mean the same) are those
of the project's survey of the family, November 2026. The ratios visit every region of the clips.
"""

import pytest
import torch
from torch import nn, tensor
from torch.testing import assert_close

from minippo import group_advantages, kl_k1, leave_one_out_advantages
from minippo.ppo import PPOConfig, assign_credit, ppo_loss
from minippo.responses import Responses, Rollout

LENGTHS = [1, 2, 4, 3, 4, 2]
SCORES = tensor([1.0, 0.0, 0.0, 1.0, 1.0, 0.0])  # two prompts of three responses
TIME = torch.arange(4)
MASK = tensor(LENGTHS).unsqueeze(1) > TIME


def rows(*flat):
    """16 numbers, response by response, on [6, 4]; junk on padding."""
    x = torch.full((6, 4), 77.0)
    x[MASK] = tensor(flat)
    return x


# All log-probs are 1 lower than in the survey, which uses positive ones: only differences count.
OLD = (
    rows(-1.2, -0.7, -1.5, -0.4, -2, -1.1, -0.9, -0.8, -1.3, -0.6, -1, -0.5, -1.7, -0.3, -0.9, -1.4)
    - 1
)
NEW = rows(-.9769, -1.0567, -1.4047, 0, -2.1054, .1528, -.9, -.4635, -1.3, -1.1108,
           -1, -.4047, -1.7513, -.0376, -1.0625, -1.6877) - 1  # fmt: skip
REF = (
    rows(-1, -0.9, -1.2, -0.6, -1.8, -1.3, -0.7, -1.1, -1, -0.9, -0.8, -0.9, -1.5, -0.6, -1.2, -1.1)
    - 1
)
VALUES = rows(0.3, 0.4, 0.2, 0.5, 0.3, 0.1, 0, 0.6, 0.7, 0.9, 0.5, 0.6, 0.6, 0.8, 0.4, 0.1)


class Spoken(nn.Module):
    """A policy of two tokens: it says the second one with the given log-probs."""

    def __init__(self):
        super().__init__()
        self.new = nn.Parameter(torch.where(MASK, NEW, -1.0))

    def forward(self, tokens, attention_mask, *, keep):
        return torch.stack([torch.log1p(-self.new.exp()), self.new], -1), VALUES


def rollout():
    prompts = torch.ones(6, 1).long()
    responses = Responses(prompts, prompts.bool(), torch.ones(6, 4).long(), MASK)
    nothing = torch.zeros(6)
    return Rollout(responses, OLD, REF, VALUES, SCORES, kl_k1(OLD, REF), nothing.bool(), nothing)


def loss_and_gradient(advantages, returns, config, **coefs):
    policy = Spoken()
    loss, _ = ppo_loss(policy, rollout(), advantages, returns, config, **coefs)
    loss.backward()
    return loss.detach(), policy.new.grad


def groups(advantages):
    return advantages(SCORES.view(2, 3)).flatten()


def zscores(scores):
    return group_advantages(scores)


def centred(scores):
    return group_advantages(scores, normalize=False)


BARE = {"value_coef": 0.0, "value_clip_range": None, "max_new_tokens": 4}
# The gradient by each new log-prob, times 1,000.
PPO = {
    "ppo": (
        {}, 0.0454475,
        [0, 0, 46.106, 149.250, 55.479, 101.734, 6.533, 0, -44.958, -1.667, -69.130, -54.763,
         -57.747, 0, 71.482, 0],
    ),
    "dual clip": (
        {"dual_clip": 3.0}, 0.0309108,
        [0, 0, 46.106, 149.250, 55.479, 0, 6.533, 0, -44.958, -1.667, -69.130, -54.763, -57.747,
         0, 71.482, 0],
    ),
    "decoupled lambdas (VC-PPO)": (
        {"kl_coef": 0.0, "lam_critic": 1.0}, 0.0439051,
        [0, 0, 51.502, 145.730, 57.654, 100.351, 10.521, 0, -43.021, -4.577, -71.512, -62.396,
         -57.250, 0, 69.882, 0],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "loss", "slopes"), PPO.values(), ids=PPO)
def test_ppo_from_scores_to_gradient(changes, loss, slopes):
    config = PPOConfig(**BARE | {"kl_coef": 0.1} | changes)
    credit = assign_credit(rollout(), config, kl_coef=config.kl_coef)
    got, gradient = loss_and_gradient(credit.whitened, credit.returns, config)
    assert_close(got, tensor(loss), rtol=0, atol=2e-6)
    assert_close(1000 * gradient[MASK], tensor(slopes), rtol=0, atol=2e-3)
    assert not gradient[~MASK].any()


def test_decoupled_targets_are_monte_carlo_returns_beside_an_advantage_that_is_not():
    credits = [
        assign_credit(rollout(), PPOConfig(kl_coef=0.0, **changes), kl_coef=0.0)
        for changes in ({}, {"lam_critic": 1.0}, {"lam": 1.0})
    ]
    returns = torch.where(MASK, SCORES.unsqueeze(1), 0.0)  # without KL or discount: the score
    assert_close(credits[1].returns, returns)
    assert_close(credits[1].advantages, credits[0].advantages)
    assert (credits[0].returns - returns).abs().max() > 0.01
    assert_close(credits[2].returns, returns)


def test_a_lambda_per_length_is_vapos():
    # The survey's VAPO also has .1 times the mean -log p of the tokens of right responses: 8.
    config = PPOConfig(**BARE, kl_coef=0.0, lam_alpha=1.0, clip_range_high=0.28)
    credit = assign_credit(rollout(), config, kl_coef=0.0)
    white = [2.1765, -1.1472, -.8148, -1.5004, -1.0641, -.4825, -.1501, .7732, .7362, .1823,
             .8366, .7224, 1.0132, .5146, -1.3134, -.4825]  # fmt: skip
    assert_close(credit.whitened[MASK], tensor(white), rtol=0, atol=1e-4)
    got, gradient = loss_and_gradient(credit.whitened, credit.returns, config)
    right = MASK & (SCORES > 0).unsqueeze(1)
    surprise = -0.1 * (NEW + 1)[right].mean()
    assert_close(got + surprise, tensor(0.1219981), rtol=0, atol=2e-6)
    slopes = [-182.532, 0, 56.020, 139.892, 59.855, 105.545, 9.381, -12.5, -58.514, -19.335,
              -64.789, -62.163, -72.658, -12.5, 69.776, 0]  # fmt: skip
    got = 1000 * (gradient - 0.1 / 8 * right)
    assert_close(got[MASK], tensor(slopes), rtol=0, atol=2e-3)


RELATIVES = {
    "grpo": (
        zscores, {"loss_mean": "responses"}, -0.0085847,
        [0, 0, 64.817, 43.953, 26.515, 103.124, 29.463, 0, -39.284, -23.571, -29.463, -32.409,
         -27.989, 0, 100.175, 0],
    ),
    "grpo with k3": (
        zscores, {"loss_mean": "responses", "kl_loss_coef": 0.1}, -0.0001064,
        [.381, -1.414, 62.924, 45.833, 25.027, 106.316, 28.540, 2.616, -41.227, -24.875, -30.385,
         -30.781, -29.180, 1.792, 101.246, -6.665],
    ),
    "dr-grpo": (
        centred, {"loss_mean": "constant"}, 0.0366936,
        [0, 0, 15.278, 20.720, 12.5, 48.613, 13.889, 0, -13.889, -8.334, -13.889, -15.278,
         -13.194, 0, 23.612, 0],
    ),
    "grpo, token mean": (
        zscores, {"loss_mean": "tokens"}, 0.1167584,
        [0, 0, 48.613, 65.930, 39.773, 154.685, 44.194, 0, -44.194, -26.517, -44.194, -48.613,
         -41.984, 0, 75.132, 0],
    ),
    "dapo": (
        zscores, {"clip_range_high": 0.28}, 0.1052728,
        [-110.481, 0, 48.613, 65.930, 39.773, 154.685, 44.194, 0, -44.194, -26.517, -44.194,
         -48.613, -41.984, 0, 75.132, 0],
    ),
    "rloo, TRL's clipped product": (
        leave_one_out_advantages, {"ratio_level": "sequence"}, 0.2215993,
        [0, 0, 0, 391.603, 391.603, 391.603, 391.603, -70.004, -70.004, -70.004, 0, 0, 0, 0, 0, 0],
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("advantages", "changes", "loss", "slopes"), RELATIVES.values(), ids=RELATIVES
)
def test_relatives_by_their_advantages_and_means(advantages, changes, loss, slopes):
    config = PPOConfig(
        **BARE, advantage_level="sequence", kl_coef=0.0, kl_loss_estimator="k3", **changes
    )
    a = groups(advantages)
    got, gradient = loss_and_gradient(a, a, config, kl_loss_coef=config.kl_loss_coef)
    assert_close(got, tensor(loss), rtol=0, atol=2e-6)
    assert_close(1000 * gradient[MASK], tensor(slopes), rtol=0, atol=2e-3)


@pytest.mark.parametrize(
    ("ratio_level", "loss_mean", "expected"),
    [
        # Per-token KLs 0.1 t in column t (k2 of differences), by hand below.
        ("token", None, "tokens"), ("token", "responses", "responses"),
        ("token", "constant", "constant"), ("sequence", None, "tokens"),
        ("sequence", "responses", "tokens"), ("sequence", "constant", "constant"),
    ],
)  # fmt: skip
def test_entropy_and_kl_take_the_mean_of_the_table(ratio_level, loss_mean, expected):
    config = PPOConfig(
        **BARE, advantage_level="sequence", ratio_level=ratio_level, loss_mean=loss_mean,
        kl_coef=0.0, kl_loss_coef=1.0, entropy_coef=0.5,
    )  # fmt: skip
    zero = torch.zeros(6)
    loss, stats = ppo_loss(Spoken(), rollout(), zero, zero, config, kl_loss_coef=1.0)
    p = NEW.exp()
    terms = 0.5 * (NEW - REF) ** 2 + 0.5 * (p * p.log() + (1 - p) * (1 - p).log())
    sums = [sum(terms[i, :n].tolist()) for i, n in enumerate(LENGTHS)]
    means = {
        "tokens": sum(sums) / 16,
        "responses": sum(x / n for x, n in zip(sums, LENGTHS, strict=True)) / 6,
        "constant": sum(sums) / (6 * 4),
    }
    assert_close(loss.item(), means[expected], rtol=1e-5, atol=1e-6)
    # Reported per token, whatever the loss does.
    kl = sum((0.5 * (NEW - REF) ** 2)[i, :n].sum().item() for i, n in enumerate(LENGTHS)) / 16
    assert_close(stats["kl_loss"].item(), kl, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss_mean", [None, "responses", "constant"])
@pytest.mark.parametrize("ratio_level", ["token", "sequence"])
def test_micro_batches_add_up_to_the_minibatch_under_every_mean(loss_mean, ratio_level):
    config = PPOConfig(
        max_new_tokens=4, advantage_level="sequence", ratio_level=ratio_level,
        loss_mean=loss_mean, entropy_coef=0.1, kl_loss_coef=0.2, kl_coef=0.0,
    )  # fmt: skip
    a, counts = groups(zscores), {"n_tokens": 16, "n_responses": 6}
    whole, _ = ppo_loss(Spoken(), rollout(), a, SCORES, config, kl_loss_coef=0.2)
    policy, parts = Spoken(), []
    for part in (slice(0, 2), slice(2, 6)):
        batch = rollout()[part]
        shown = Part(policy, part)
        parts.append(
            ppo_loss(shown, batch, a[part], SCORES[part], config, kl_loss_coef=0.2, **counts)[0]
        )
    assert_close(sum(parts), whole)


class Part(nn.Module):
    """Some rows of a policy."""

    def __init__(self, policy, rows):
        super().__init__()
        self.policy, self.rows = policy, rows

    def forward(self, *args, **kwargs):
        return tuple(x[self.rows] for x in self.policy(*args, **kwargs))
