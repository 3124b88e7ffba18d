"""A picture of the adaptive KL controller at work."""

from matplotlib.figure import Figure

from minippo import AdaptiveKL
from minippo.plots._base import COLOURS, Picture, tidy

STEPS = 60


def drift(
    target: float, horizon: int, *, pull: float = 12.0, n_episodes: int = 128
) -> tuple[list[float], list[float]]:
    """Simulate KL and coefficient of a policy that drifts until the KL penalty holds it.

    The policy is a line of code, not a model: it moves a fifth of the way to pull / (1 + 10 * coef)
    nats per step, so only the controller's behaviour shows.
    """
    controller, kl = AdaptiveKL(0.05, target=target, horizon=horizon), 0.0
    kls, coefs = [], []
    for _ in range(STEPS):
        kl += 0.2 * (pull / (1 + 10 * controller.coef) - kl)
        controller.update(kl, n_episodes)
        kls.append(kl)
        coefs.append(controller.coef)
    return kls, coefs


class KLController(Picture):
    """KL and its target (left), the coefficient (right), over steps: Ziegler et al. 2019, 2.2.

    The policy is simulated by one line (see `drift`). What to see: the coefficient climbs while
    the KL is above its target and falls while it is below; a short horizon reacts fast and
    overshoots; a long one lets the KL run first.
    """

    def __init__(self) -> None:
        figure = Figure(figsize=(9, 3.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        tidy(left, x="PPO step", y="KL to reference (nats/response)")
        tidy(right, x="PPO step", y="coefficient (score per nat)")
        left.set(xlim=(0, STEPS), ylim=(0, 13))
        right.set(xlim=(0, STEPS), ylim=(0.005, 5), yscale="log")
        (self._kl,) = left.plot([], [], ls="--", lw=2.5, color=COLOURS["kl"], label="KL")
        (self._target,) = left.plot([], [], ls=":", lw=2, color="black", label="target")
        (self._coef,) = right.plot([], [], lw=2.5, color=COLOURS["reward"])
        left.legend(loc="upper right", fontsize=9)
        super().__init__(figure, [self._kl, self._target, self._coef])

    def move(self, *, target: float = 4.0, horizon: int = 1000) -> str:
        """Steer the same drift to this target, with this horizon (in episodes)."""
        kls, coefs = drift(target, horizon)
        steps = list(range(1, STEPS + 1))
        self._kl.set_data(steps, kls)
        self._target.set_data([0, STEPS], [target, target])
        self._coef.set_data(steps, coefs)
        return (
            f"Target {target:.1f} nats, horizon {horizon} episodes: after {STEPS} steps of 128 "
            f"episodes the KL is {kls[-1]:.1f} (highest {max(kls):.1f}) and the coefficient "
            f"{coefs[-1]:.2f}."
        )
