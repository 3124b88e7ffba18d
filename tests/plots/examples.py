"""What more than one file of pictures draws."""

import torch

LOGITS = torch.tensor([[2.0, 1.0, 0.0, -1.0], [0.0, 0.0, 0.0, 0.0]])
WORDS = ["a", "b", "c", "d"]


RESPONSE = ["It", "was", "good", "."]
REWARDS = torch.tensor([-0.02, 0.01, -0.05, 1.0])
VALUES = torch.tensor([0.3, 0.2, 0.6, 0.7])


def a_record(step, prompt, tokens, **numbers):
    zeros = dict.fromkeys(("ratio", "advantage", "kl", "entropy"), [0.0] * len(tokens))
    return {"step": step, "prompt": prompt, "tokens": tokens, "score": step / 4} | zeros | numbers


RECORDS = [
    a_record(4, "P?", [" so", " good", "<|endoftext|>"], ratio=[1.0, 1.5, 0.5], kl=[1, -0.001, 2]),
    a_record(0, "P?", ["\n"], kl=[-0.25], entropy=[0.5], ratio=[1.0]),
    a_record(4, "Q?", [" t"] * 11, advantage=[0.1 * i - 0.5 for i in range(11)], ratio=[1.0] * 11),
]


FIRST = {"score": 0.5, "kl": 0.0, "entropy": 1.2, "clip_fraction": 0.1, "value_loss": 0.7,
         "explained_variance": 0.0, "response_length": 26.0}  # fmt: skip


KL, PROXY, GOLD = [8.0, 0.0, 2.0, 20.0], [2.0, 0.0, 1.0, 3.0], [0.5, 0.0, 0.75, -0.5]


METHODS = {
    "PPO": [[(6.0, 1.0), (8.0, 2.0)], [(1.0, 0.5), (3.0, 0.7)]],  # settings in any order
    "DPO": [[(4.0, 0.9)]],
}
