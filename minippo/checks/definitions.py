"""The formulas again, as slow loops over Python floats, written from the papers.

A vector is a list of floats, a batch is a list of rows, a mask is a list of rows of bools. Python's
floats are float64, so these are the expected values of tests and of `checks`; `gradient` gives the
expected slopes. Nothing here comes from the rest of minippo or from torch.
"""

import copy
import itertools
import math
from collections.abc import Callable
from typing import Any

Row = list[float]
Rows = list[list[float]]
Mask = list[list[bool]]

# Central differences with a step of 1e-6 are right to about 9 digits, no more.
DIFFERENCES = {"rtol": 1e-6, "atol": 1e-8}


def gradient(f: Callable[[Any], float], x: Any, step: float = 1e-6) -> Any:
    """df/dx per number in the nested lists x, by central differences."""
    return differences(f, x, step)[0]


def differences(f: Callable[[Any], float], x: Any, step: float = 1e-6) -> tuple[Any, list[float]]:
    """The central differences, and how far each is from the one-sided ones: 0 but at a kink."""
    x, here, kinks = copy.deepcopy(x), f(x), list[float]()

    def walk(part: Any) -> Any:
        slopes: list[Any] = []
        for i, leaf in enumerate(part):
            if isinstance(leaf, list):
                slopes.append(walk(leaf))
                continue
            part[i] = leaf + step
            above = f(x) - here
            part[i] = leaf - step
            below = here - f(x)
            part[i] = leaf
            slopes.append((above + below) / (2 * step))
            kinks.append(abs(above - below) / (2 * step))
        return slopes

    return walk(x), kinks


def prefix_mask(lengths: list[int], time: int) -> Mask:
    """Rows of ones, then zeros."""
    return [[t < length for t in range(time)] for length in lengths]


def real(x: Rows, mask: Mask) -> Row:
    """Flatten the numbers where the mask is True into one list."""
    return [x[i][t] for i in range(len(x)) for t in range(len(x[i])) if mask[i][t]]


# ---- log_probs -------------------------------------------------------------------------------


def log_softmax(z: Row, temperature: float = 1.0) -> Row:
    """log of exp(z_i / T) / sum exp(z_j / T)."""
    top = max(z)
    total = sum(math.exp((x - top) / temperature) for x in z)
    return [(x - top) / temperature - math.log(total) for x in z]


def sample_tokens(probabilities: Rows, darts: Row) -> list[int]:
    """How many stretches end at or before each dart; the last one has no end."""
    return [
        sum(end <= dart for end in itertools.accumulate(row[:-1]))
        for row, dart in zip(probabilities, darts, strict=True)
    ]


def token_log_probs(logits: list[Rows], tokens: list[list[int]], temperature: float = 1.0) -> Rows:
    """log p(token) per position."""
    return [
        [log_softmax(z, temperature)[token] for z, token in zip(row, ids, strict=True)]
        for row, ids in zip(logits, tokens, strict=True)
    ]


def sequence_log_prob(log_probs: Rows, mask: Mask) -> Row:
    """Sum over each row's real tokens."""
    return [
        sum(x for x, m in zip(*pair, strict=True) if m)
        for pair in zip(log_probs, mask, strict=True)
    ]


def entropy(z: Row, temperature: float = 1.0) -> float:
    """-sum of p log p, where 0 log 0 = 0."""
    return -sum(math.exp(lp) * lp for lp in log_softmax(z, temperature) if lp > -math.inf)


# ---- masking ---------------------------------------------------------------------------------


def masked_mean(x: Rows, mask: Mask) -> float:
    """Sum over the real tokens, divided by their number."""
    return sum(real(x, mask)) / len(real(x, mask))


def masked_var(x: Rows, mask: Mask) -> float:
    """Population variance: divided by n."""
    mean = masked_mean(x, mask)
    return sum((y - mean) ** 2 for y in real(x, mask)) / len(real(x, mask))


def whiten(x: Rows, mask: Mask, keep_mean: bool = False) -> Rows:
    """(x - mean) / sqrt(variance + 1e-8), zero on padding; a single number stays as it is."""
    if sum(leaves(mask)) == 1:
        return [
            [y if m else 0.0 for y, m in zip(*pair, strict=True)]
            for pair in zip(x, mask, strict=True)
        ]
    mean, scale = masked_mean(x, mask), math.sqrt(masked_var(x, mask) + 1e-8)
    return [
        [(y - mean) / scale + keep_mean * mean if m else 0.0 for y, m in zip(*pair, strict=True)]
        for pair in zip(x, mask, strict=True)
    ]


# ---- advantages ------------------------------------------------------------------------------


def shape_rewards(scores: Row, kl: Rows, mask: Mask, kl_coef: float) -> Rows:
    """-kl_coef * kl on each real token; the score on the last of them."""
    rewards = []
    for i in range(len(kl)):
        last = max(t for t in range(len(kl[i])) if mask[i][t])
        rewards.append(
            [
                (-kl_coef * kl[i][t] if mask[i][t] else 0.0) + (scores[i] if t == last else 0.0)
                for t in range(len(kl[i]))
            ]
        )
    return rewards


def discounted_sum(x: Rows, discount: float) -> Rows:
    """y_t = sum over k >= t of discount^(k - t) * x_k."""
    return [
        [sum(discount ** (k - t) * row[k] for k in range(t, len(row))) for t in range(len(row))]
        for row in x
    ]


def td_errors(
    rewards: Rows, values: Rows, mask: Mask, gamma: float = 1.0, bootstrap: Row | None = None
) -> Rows:
    """r_t + gamma * V_(t+1) - V_t; V after the last real token is the bootstrap or 0."""
    deltas = []
    for i in range(len(rewards)):
        length, row = sum(mask[i]), []
        for t in range(len(rewards[i])):
            after = bootstrap[i] if bootstrap is not None else 0.0
            next_value = values[i][t + 1] if t + 1 < length else after
            row.append(rewards[i][t] + gamma * next_value - values[i][t] if t < length else 0.0)
        deltas.append(row)
    return deltas


def gae(
    rewards: Rows, values: Rows, mask: Mask, gamma: float = 1.0, lam: float = 0.95,
    bootstrap: Row | None = None,
) -> Rows:  # fmt: skip
    """Schulman et al. 2016, eq. 11 to 16: the weighted mean of the k-step advantages.

    A^(k) = r_t + ... + gamma^(k-1) r_(t+k-1) + gamma^k V_(t+k) - V_t has the weight
    (1 - lam) lam^(k-1), and the last one, which reaches the end, gets all the remaining weight.
    """
    advantages = []
    for i in range(len(rewards)):
        length = sum(mask[i])
        end = bootstrap[i] if bootstrap is not None else 0.0
        row = [0.0] * len(rewards[i])
        for t in range(length):
            for k in range(1, length - t + 1):
                tail = values[i][t + k] if t + k < length else end
                gain = sum(gamma**j * rewards[i][t + j] for j in range(k)) + gamma**k * tail
                weight = lam ** (k - 1) * ((1 - lam) if t + k < length else 1.0)
                row[t] += weight * (gain - values[i][t])
        advantages.append(row)
    return advantages


def monte_carlo_returns(rewards: Rows, mask: Mask, gamma: float = 1.0) -> Rows:
    """R_t = sum over real k >= t of gamma^(k - t) * r_k."""
    return [
        [
            sum(gamma ** (k - t) * row[k] for k in range(t, len(row)) if m[k]) if m[t] else 0.0
            for t in range(len(row))
        ]
        for row, m in zip(rewards, mask, strict=True)
    ]


def sequence_advantages(score: float, value: float) -> float:
    """The score minus the expected score."""
    return score - value


def explained_variance(values: Rows, returns: Rows, mask: Mask) -> float:
    """1 - Var(R - V) / Var(R)."""
    errors = [
        [r - v for r, v in zip(*pair, strict=True)] for pair in zip(returns, values, strict=True)
    ]
    return 1 - masked_var(errors, mask) / masked_var(returns, mask)


# ---- losses: one element at a time -----------------------------------------------------------


def clipped_surrogate(
    r: float, a: float, low: float, high: float, dual_clip: float | None = None
) -> float:
    """Schulman et al. 2017, eq. 7, with the sign flipped; dual clip: Ye et al. 2020, eq. 5."""
    inside = 1 - low if r < 1 - low else 1 + high if r > 1 + high else r
    objective = min(r * a, inside * a)
    if dual_clip is not None and a < 0:
        objective = max(objective, dual_clip * a)
    return -objective


def probability_ratio(log_p: float, log_old: float) -> float:
    """p / p_old."""
    return math.exp(log_p) / math.exp(log_old)


def clip_is_active(
    r: float, a: float, low: float, high: float, dual_clip: float | None = None
) -> bool:
    """Two regions of (r, sign of a); three with a dual clip."""
    if a > 0:
        return r > 1 + high
    return a < 0 and (r < 1 - low or (dual_clip is not None and r > dual_clip))


def penalty_surrogate(r: float, a: float, kl: float, coef: float) -> float:
    """Schulman et al. 2017, eq. 8, with the sign flipped."""
    return -(r * a - coef * kl)


def reinforce_loss(log_p: float, a: float) -> float:
    """Its slope is -a."""
    return -a * log_p


def value_loss(
    v: float, target: float, old: float | None = None, clip_range: float | None = None
) -> float:
    """0.5 * max of the two squared errors."""
    loss = 0.5 * (v - target) ** 2
    if old is not None and clip_range is not None:
        near = min(max(v, old - clip_range), old + clip_range)
        loss = max(loss, 0.5 * (near - target) ** 2)
    return loss


def bradley_terry_loss(chosen: float, rejected: float, margin: float = 0.0) -> float:
    """-log of 1 / (1 + exp(-(chosen - rejected - margin)))."""
    return -math.log(1 / (1 + math.exp(-(chosen - rejected - margin))))


def sft_loss(logits: list[Rows], tokens: list[list[int]], mask: Mask) -> float:
    """Mean surprise at the real tokens, in nats."""
    return -masked_mean(token_log_probs(logits, tokens), mask)


# ---- kl --------------------------------------------------------------------------------------


def kl_k1(log_p: float, log_q: float) -> float:
    """log p - log q."""
    return log_p - log_q


def kl_k2(log_p: float, log_q: float) -> float:
    """Half the square of k1."""
    return (log_p - log_q) ** 2 / 2


def kl_k3(log_p: float, log_q: float) -> float:
    """r - 1 - log r with r = q / p."""
    ratio = math.exp(log_q) / math.exp(log_p)
    return ratio - 1 - math.log(ratio)


def exact_kl(z: Row, ref: Row, temperature: float = 1.0) -> float:
    """Sum of p (log p - log q), where 0 log 0 = 0."""
    pairs = zip(log_softmax(z, temperature), log_softmax(ref, temperature), strict=True)
    return sum(math.exp(lp) * (lp - lq) for lp, lq in pairs if lp > -math.inf)


def adaptive_kl(coef: float, target: float, horizon: int, kls: Row, n_episodes: int) -> Row:
    """Ziegler et al. 2019, sec. 2.2: the coefficient after each update."""
    found = []
    for kl in kls:
        error = max(-0.2, min(0.2, kl / target - 1))
        coef *= 1 + error * n_episodes / horizon
        found.append(coef)
    return found


# ---- alternatives ----------------------------------------------------------------------------


def dpo_loss(pc: float, pr: float, rc: float, rr: float, beta: float) -> float:
    """Rafailov et al. 2023, eq. 7."""
    return -math.log(1 / (1 + math.exp(-(beta * (pc - rc) - beta * (pr - rr)))))


def group_advantages(scores: Rows, normalize: bool = True) -> Rows:
    """(score - mean) / sqrt(population variance + 1e-8), per group."""
    groups = []
    for group in scores:
        mean = sum(group) / len(group)
        var = sum((s - mean) ** 2 for s in group) / len(group)
        groups.append([(s - mean) / (math.sqrt(var + 1e-8) if normalize else 1) for s in group])
    return groups


def leave_one_out_advantages(scores: Rows) -> Rows:
    """score - mean of the others, per group."""
    return [
        [
            group[i] - sum(group[j] for j in range(len(group)) if j != i) / (len(group) - 1)
            for i in range(len(group))
        ]
        for group in scores
    ]


# ---- exercises whose solutions minippo does not use itself -----------------------------------


def mean_minus_variance(scores: Rows, coef: float) -> Row:
    """scores[member][response]: mean - coef * population variance, per response."""
    found = []
    for b in range(len(scores[0])):
        column = [member[b] for member in scores]
        mean = sum(column) / len(column)
        found.append(mean - coef * sum((s - mean) ** 2 for s in column) / len(column))
    return found


def calibration(difference: Row, first_won: Row, edges: Row) -> Rows:
    """How sure, how often right, and the share of the pairs, for each bin of how sure."""
    pairs = [
        (1 / (1 + math.exp(-abs(d))), 0.5 if d == 0 else won if d > 0 else 1 - won)
        for d, won in zip(difference, first_won, strict=True)
    ]
    found = []
    for low, high in itertools.pairwise([0, *edges, 1]):
        inside = [pair for pair in pairs if low < pair[0] <= high]
        n = max(1, len(inside))
        sure, right = (sum(pair[k] for pair in inside) / n for k in range(2))
        found.append([sure, right, len(inside) / len(pairs)])
    return [[each[k] for each in found] for k in range(3)]


def sequence_ratio(log_probs: Rows, old_log_probs: Rows, mask: Mask) -> Row:
    """The product of the real tokens' ratios."""
    return [
        math.prod(math.exp(new - old) for new, old, m in zip(*rows, strict=True) if m)
        for rows in zip(log_probs, old_log_probs, mask, strict=True)
    ]


def effective_sample_size(log_ratios: Row) -> float:
    """(sum w)^2 / sum w^2 of w = exp(log-ratio), all divided by the largest w."""
    w = [math.exp(x - max(log_ratios)) for x in log_ratios]
    return sum(w) ** 2 / sum(x * x for x in w)


def entropy_bonus(logits: list[Rows], mask: Mask) -> float:
    """The mean entropy of the real tokens."""
    found = [
        entropy(z)
        for rows in zip(logits, mask, strict=True)
        for z, m in zip(*rows, strict=True)
        if m
    ]
    return sum(found) / len(found)


def combined_loss(
    policy_loss: float, value_loss: float, entropy: float, kl: float, c1: float, c2: float,
    c3: float,
) -> float:  # fmt: skip
    """Schulman et al. 2017, eq. 9, with the sign flipped, plus a KL."""
    return policy_loss + c1 * value_loss - c2 * entropy + c3 * kl


def accumulated_loss(losses: list[Rows], mask: list[Mask]) -> float:
    """Mean over the real tokens of all micro-batches together."""
    real = [x for x, m in zip(leaves(losses), leaves(mask), strict=True) if m]
    return sum(real) / len(real)


def first_ratio_error(log_probs: Rows, old_log_probs: Rows, mask: Mask) -> float:
    """Largest distance of a real token's ratio from 1."""
    tokens = zip(leaves(log_probs), leaves(old_log_probs), leaves(mask), strict=True)
    return max(abs(math.exp(new - old) - 1) for new, old, m in tokens if m)


def optimal_policy(ref_log_probs: Row, rewards: Row, beta: float) -> Row:
    """log of p_i exp(r_i / beta) / sum of p_j exp(r_j / beta); shifted by the largest exponent."""
    logs = [lp + r / beta for lp, r in zip(ref_log_probs, rewards, strict=True)]
    total = sum(math.exp(x - max(logs)) for x in logs)
    return [x - max(logs) - math.log(total) for x in logs]


def token_truth(scores: Rows) -> Rows:
    """scores[tokens written][continuation]: value, standard error and credit of each token."""
    means, errors = Row(), Row()
    for row in scores:
        n = len(row)
        means.append(sum(row) / n)
        errors.append(math.sqrt(sum((x - means[-1]) ** 2 for x in row) / (n - 1) / n))
    credit = [means[i + 1] - means[i] for i in range(len(means) - 1)]
    return [means[:-1], errors[:-1], credit]


def best_of_n_mean(proxy: Row, gold: Row, n: int) -> float:
    """Mean gold reward of the response with the highest proxy, over all sets of n responses."""
    sets = itertools.combinations(range(len(proxy)), n)
    found = [gold[max(chosen, key=proxy.__getitem__)] for chosen in sets]
    return sum(found) / len(found)


def distinct_n(tokens: list[list[int]], mask: Mask, n: int) -> float:
    """Share of new n-grams among all n-grams of real tokens; a repeat is not new."""
    seen: list[list[int]] = []
    new = total = 0
    for row, real in zip(tokens, mask, strict=True):
        for end in range(n, sum(real) + 1):
            total += 1
            if row[end - n : end] not in seen:
                seen.append(row[end - n : end])
                new += 1
    return new / total if total else 0.0


def distinct_responses(tokens: list[list[int]], mask: Mask, group: int) -> Row:
    """How many rows of each group equal no earlier row of it, real token by real token."""
    rows = [[t for t, m in zip(*pair, strict=True) if m] for pair in zip(tokens, mask, strict=True)]
    groups = [rows[i : i + group] for i in range(0, len(rows), group)]
    return [float(sum(row not in g[:i] for i, row in enumerate(g))) for g in groups]


# ---- the whole algorithm ---------------------------------------------------------------------


def response_mask(ids: list[list[int]], eos_token_id: int) -> Mask:
    """True until the first EOS, which is the last real token."""
    return [[eos_token_id not in row[:t] for t in range(len(row))] for row in ids]


def ppo_loss(
    logits: list[Rows], values: Rows, tokens: list[list[int]], mask: Mask, log_probs: Rows,
    ref_log_probs: Rows, old_values: Rows, advantages: Rows, returns: Rows, clip_range: float,
    value_coef: float, value_clip_range: float | None, entropy_coef: float, temperature: float,
    kl_loss_coef: float,
) -> float:  # fmt: skip
    """Mean over real tokens of policy loss + c1 * value loss - c2 * entropy + c3 * k2."""
    total, n = 0.0, 0
    for i, row in enumerate(mask):
        for t in range(sum(row)):
            log_p = log_softmax(logits[i][t], temperature)[tokens[i][t]]
            ratio = probability_ratio(log_p, log_probs[i][t])
            total += clipped_surrogate(ratio, advantages[i][t], clip_range, clip_range)
            old = old_values[i][t] if value_clip_range is not None else None
            total += value_coef * value_loss(values[i][t], returns[i][t], old, value_clip_range)
            total -= entropy_coef * entropy(logits[i][t], temperature)
            total += kl_loss_coef * kl_k2(log_p, ref_log_probs[i][t])
            n += 1
    return total / n


def ppo_update(
    logits: list[Rows], values: Rows, tokens: list[list[int]], mask: Mask, log_probs: Rows,
    kl: Rows, scores: Row, kl_coef: float, gamma: float, lam: float, epochs: int,
    max_grad_norm: float, learning_rate: float,
) -> Row:  # fmt: skip
    """Weights of a table policy after some steps of gradient descent on one rollout."""
    rewards = shape_rewards(scores, kl, mask, kl_coef)
    raw = gae(rewards, values, mask, gamma, lam)
    returns = [
        [a + v for a, v in zip(*pair, strict=True)] for pair in zip(raw, values, strict=True)
    ]
    advantages, old_values = whiten(raw, mask), copy.deepcopy(values)

    def loss(weights: list[Any]) -> float:
        return ppo_loss(
            weights[0], weights[1], tokens, mask, log_probs, log_probs, old_values,
            advantages, returns, 0.2, 0.5, 0.2, 0.0, 1.0, 0.0,
        )  # fmt: skip

    weights: list[Any] = [copy.deepcopy(logits), copy.deepcopy(values)]
    for _ in range(epochs):
        slopes = gradient(loss, weights)
        norm = math.sqrt(sum(slope**2 for slope in leaves(slopes)))
        step = learning_rate * min(1.0, max_grad_norm / norm)
        weights = _moved(weights, slopes, step)
    return leaves(weights)


def ppo_epochs(
    logits: list[Rows], tokens: list[list[int]], mask: Mask, old_log_probs: Rows, advantages: Rows,
    epochs: int, minibatch_size: int, clip_range: float, learning_rate: float,
) -> list[Rows]:  # fmt: skip
    """Logits of a table policy after some epochs of gradient descent with the clip.

    Rows share no weights, so with one row per step, or with all, their order does not matter.
    """
    table = copy.deepcopy(logits)
    for _ in range(epochs):
        for first in range(0, len(table), minibatch_size):
            part = slice(first, first + minibatch_size)

            def loss(x: list[Rows], part: slice = part) -> float:
                now = token_log_probs(x, tokens[part])
                rows = zip(now, old_log_probs[part], advantages[part], strict=True)
                losses = [
                    [
                        clipped_surrogate(probability_ratio(a, b), c, clip_range, clip_range)
                        for a, b, c in zip(*row, strict=True)
                    ]
                    for row in rows
                ]
                return masked_mean(losses, mask[part])

            table[part] = _moved(table[part], gradient(loss, table[part]), learning_rate)
    return table


def fit_values(
    values: Rows, returns: Rows, mask: Mask, epochs: int, minibatch_size: int, learning_rate: float
) -> Row:
    """The loss before each step of gradient descent on a table of values: its slope is V - G."""
    table, losses = copy.deepcopy(values), Row()
    for step in range(epochs * -(-len(table) // minibatch_size)):
        first = step * minibatch_size % len(table)
        part = range(first, min(first + minibatch_size, len(table)))
        real = [(i, t) for i in part for t in range(len(mask[i])) if mask[i][t]]
        losses.append(sum((table[i][t] - returns[i][t]) ** 2 / 2 for i, t in real) / len(real))
        for i, t in real:
            table[i][t] -= learning_rate * (table[i][t] - returns[i][t]) / len(real)
    return losses


def sft_epoch(
    logits: list[Rows], tokens: list[list[int]], mask: Mask, minibatch_size: int,
    learning_rate: float,
) -> Row:  # fmt: skip
    """A table policy's logits after an epoch of gradient descent on SFT's loss; the mean loss.

    With fewer rows of logits than of tokens, the answers share them.
    """
    table, losses = copy.deepcopy(logits), []
    for first in range(0, len(tokens), minibatch_size):
        part = range(len(tokens))[first : first + minibatch_size]

        def loss(x: list[Rows], part: range = part) -> float:
            shared = [x[i % len(x)] for i in part]
            return sft_loss(shared, [tokens[i] for i in part], [mask[i] for i in part])

        losses.append(loss(table))
        table = _moved(table, gradient(loss, table), learning_rate)
    return [*leaves(table), sum(losses) / len(losses)]


def learn(
    logits: Row, drawn: list[list[int]], scores: Row, baseline: float, learning_rate: float
) -> Row:
    """Mean score of each step, then the logits after REINFORCE: d log p(a) / dz = 1[a] - p."""
    table, means = logits, list[float]()
    for answers in drawn:
        step = [0.0 for _ in table]
        for a in answers:
            advantage = (scores[a] - baseline) / len(answers)
            for j, log_p in enumerate(log_softmax(table)):
                step[j] += advantage * ((j == a) - math.exp(log_p))
        table = [z + learning_rate * x for z, x in zip(table, step, strict=True)]
        means.append(sum(scores[a] for a in answers) / len(answers))
    return [*means, *table]


def leaves(x: Any) -> Row:
    """Flatten nested lists in order."""
    return [leaf for part in x for leaf in leaves(part)] if isinstance(x, list) else [x]


def _moved(x: Any, slopes: Any, step: float) -> Any:
    if isinstance(x, list):
        return [_moved(a, b, step) for a, b in zip(x, slopes, strict=True)]
    return x - step * slopes


def training_memory(billions: Row, trained: list[bool], weight_bytes: int) -> Row:
    """Gigabytes of weights and, if trained, gradients, moments and a master copy."""
    found = []
    for n, learns in zip(billions, trained, strict=True):
        total = n * weight_bytes
        if learns:
            total += n * weight_bytes
            total += 2 * n * 4
            total += n * 4 if weight_bytes < 4 else 0
        found.append(total)
    return found


def learning_rates(steps: Row, base: float, warmup_steps: int, total_steps: int) -> Row:
    """Warm-up to `base` times a straight line from 1 at step 0 to 0 at `total_steps`."""
    found = []
    for step in steps:
        warm = (step + 1) / warmup_steps if step + 1 < warmup_steps else 1.0
        left = 1 - step / total_steps if step < total_steps else 0.0
        found.append(base * warm * left)
    return found
