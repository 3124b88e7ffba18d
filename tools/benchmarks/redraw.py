"""Time explorers from a moved slider to the new picture: medians over the grid.

python tools/benchmarks/redraw.py
"""

import statistics
import time

import torch

from minippo import widgets


def main() -> None:
    """Print one line per explorer."""
    logits = torch.randn(8, 512, generator=torch.Generator().manual_seed(0))
    words = [f"w{i}" for i in range(512)]
    response = [f"word{i}" for i in range(24)]
    names = "score kl entropy clip_fraction value_loss explained_variance response_length".split()
    history = [{"step": i + 1} | dict.fromkeys(names, float(i)) for i in range(30)]
    per_token = dict.fromkeys(("ratio", "advantage", "kl", "entropy"), torch.rand(40).tolist())
    records = [
        {"step": i, "prompt": "How was it?", "tokens": [" word"] * 40, "score": 1.0 * i} | per_token
        for i in range(10)
    ]
    kl = list(range(20))
    methods = {name: [[(x, x), (x, x + 1)] for x in range(1, 5)] for name in ("PPO", "DPO", "RLOO")}
    inputs = {
        "training_run": (history,),
        "token_microscope": (records,),
        "over_optimisation": (kl, kl, kl),
        "frontier": (methods,),
        "next_token": (logits, words),
        "credit": (response, 0.1 * torch.randn(24), torch.randn(24)),
    }
    print(f"{'explorer':18}{'moves':>6}{'median ms':>11}{'slowest ms':>12}{'KB':>5}")
    for name, make in widgets.EXPLORERS.items():
        explorer = make(*inputs.get(name, ()))
        times = []
        for control in explorer.controls.values():
            options = getattr(control, "options", None)
            steps = round((control.max - control.min) / control.step) if options is None else 0
            places = options or [control.min + i * control.step for i in range(steps + 1)]
            for value in places:
                start = time.perf_counter()
                control.value = value
                times.append(1000 * (time.perf_counter() - start))
        moves = (len(times), statistics.median(times), max(times))
        size = len(explorer.image.value) / 1000
        print("{:18}{:6}{:11.1f}{:12.1f}{:5.0f}".format(name, *moves, size))


if __name__ == "__main__":
    main()
