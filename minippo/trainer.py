"""The PPO loop: collect a rollout, update on it, repeat; plus saving and resuming.

`step` is `update(collect(prompts))`. Each part of `update` is a method to override or a pure
function in `ppo`. accelerate provides the device, several processes and trackers, but gradients are
accumulated here: each micro-batch's sums are divided by the *whole* minibatch's number of real
tokens, because the mean of the means of ragged micro-batches has a different gradient.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from functools import cached_property
from math import inf, isfinite, log
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from transformers import PreTrainedTokenizerBase

from minippo import assumptions, checkpoint
from minippo._validate import check_response_mask, checked_at_the_door, fail
from minippo.checkpoint import STATE, weights_hash
from minippo.kl import AdaptiveKL, FixedKL, PenaltyKL, kl_k3
from minippo.log_probs import token_log_probs
from minippo.masking import masked_mean
from minippo.models import PolicyWithValue, rate_by_size
from minippo.ppo import (
    Credit,
    PPOConfig,
    Stats,
    assign_credit,
    minibatches,
    ppo_loss,
    scheduled_rate,
    stream,
    summarise,
)
from minippo.processes import add_up, any_process, gather_rollout, share, tracker
from minippo.responses import Rollout
from minippo.rollout import collect, evaluate
from minippo.scores import Score
from minippo.sft import autocast, learning_weights, make_accelerator, progress_bar
from minippo.texts import Prompt, encode_prompts, split_columns

__all__ = ["STATE", "Callback", "PPOTrainer", "Stats", "weights_hash"]

Callback = Callable[["PPOTrainer", Stats], bool | None]


class PPOTrainer:
    """PPO on a language model.

    Args:
        policy: the policy to train, in place.
        reference: the model that the KL is measured to; unchanged, unless the configuration
            renews it in place. None: the policy with its LoRA adapter switched off.
        score: the score function: `text_score`, `load_score`, `ensemble_score` or your own.
        tokenizer: the policy's tokenizer.
        config: the configuration.
        callbacks: functions called after every step with the trainer and the step's statistics;
            one that returns True ends `train` there.
        log_with: "tensorboard", "wandb" or another tracker that accelerate knows.
        log_dir: the folder of trackers that write files.

    Attributes:
        history: the statistics of every step so far.
        minibatch_stats: the statistics of every minibatch of the last update.
        kl_controller: drives beta (or c3 when beta is 0): `.coef`.
        penalty_controller: drives PPO-Penalty's coefficient.
    """

    def __init__(
        self,
        policy: PolicyWithValue,
        reference: PolicyWithValue | None,
        score: Score,
        tokenizer: PreTrainedTokenizerBase,
        config: PPOConfig,
        *,
        callbacks: Sequence[Callback] = (),
        log_with: str | None = None,
        log_dir: str | Path = "runs",
    ) -> None:
        if reference is policy:
            fail("PPOTrainer", "reference", "be a copy (frozen_copy(policy))", "the policy itself")
        learning = learning_weights("PPOTrainer", policy)
        if reference is None:
            if config.reference_update_every:
                fail("PPOTrainer", "reference", "be a model if it is to be renewed", "None")
            assumptions.check_adapter(policy)
        self.accelerator = make_accelerator(log_with=tracker(log_with), project_dir=str(log_dir))
        if (rate := config.learning_rate) is None:
            # One ratio per response is a product over its tokens: it wants smaller steps.
            at = 3e-4 if config.ratio_level == "token" else 1e-4
            rate = rate_by_size(policy.language_model, at_a_million=at)
        self.score, self.tokenizer = score, tokenizer
        self.config = config = replace(config, learning_rate=rate)
        self.callbacks, self.history = list(callbacks), list[Stats]()
        self.minibatch_stats = list[Stats]()
        self.reference = None if reference is None else reference.to(self.accelerator.device)
        if config.gradient_checkpointing:
            model, new_name = policy.language_model, "activation_checkpointing_enable"
            (getattr(model, new_name, None) or model.gradient_checkpointing_enable)()
        # fused: one call for all weights, and no temporary copies of them.
        self.optimizer = torch.optim.Adam(learning, lr=rate, eps=1e-5, fused=True)
        self.model, self.optimizer = self.accelerator.prepare(policy, self.optimizer)
        coef = config.kl_coef or config.kl_loss_coef
        self.kl_controller: FixedKL | AdaptiveKL = FixedKL(coef)
        if (target := config.kl_target) is not None:
            self.kl_controller = AdaptiveKL(coef, target=target, horizon=config.kl_horizon)
        self.penalty_controller = PenaltyKL(1.0, target=config.penalty_target)
        self._log_with, self._measured, self._stop, self.within_step = log_with, False, False, False

    @property
    def policy(self) -> PolicyWithValue:
        """The policy itself, without the wrapper for several processes."""
        return self.accelerator.unwrap_model(self.model)

    @property
    def kl_coef(self) -> float:
        """The current beta: the price per nat in the reward."""
        return self.kl_controller.coef if self.config.kl_coef else 0.0

    @property
    def kl_loss_coef(self) -> float:
        """The current c3: the price per nat in the loss."""
        return self.config.kl_loss_coef if self.config.kl_coef else self.kl_controller.coef

    @property
    def learning_rate(self) -> float:
        """Adam's learning rate in the next update."""
        return scheduled_rate(len(self.history), self.config)

    def autocast(self) -> torch.autocast:
        """Set the precision of every forward pass: sampling, measuring and learning."""
        return autocast(self.accelerator.device, self.config.mixed_precision)

    # ---- the loop ------------------------------------------------------------------------------

    def train(
        self, prompts: Sequence[Prompt], n_steps: int, *, progress: bool = True
    ) -> list[Stats]:
        """Train until `n_steps` steps have been taken in all, including those before a resume.

        Each pass over the prompts is in a new random order, `rollout_size` prompts per step.

        Returns:
            The history.

        Raises:
            ValueError: before step 1, a prompt that is not a text, is empty or too long, or more
                steps than the schedule has; on the first rollout, whatever `minippo.assumptions`
                measures.
        """
        assumptions.check_run(self, prompts, n_steps)
        if self._log_with is not None:
            self.accelerator.init_trackers("minippo", config=asdict(self.config))
        silent = not (progress and self.accelerator.is_main_process)
        self._stop, done = False, len(self.history)
        with progress_bar(total=n_steps, initial=done, desc="PPO", silent=silent) as bar:
            while len(self.history) < n_steps and not self._stop:
                stats = self.step(_batch(prompts, len(self.history), self.config))
                self.accelerator.log(stats, step=len(self.history))
                shown = ("score", "kl", "entropy", "clip_fraction", "value_loss")
                bar.set_postfix({name: f"{stats[name]:.3g}" for name in shown}, refresh=False)
                bar.update()
        for one in self.accelerator.trackers:  # end_training would end the process group
            one.finish()
        return self.history

    def step(self, prompts: Sequence[Prompt]) -> Stats:
        """One iteration of PPO: act, then learn from it."""
        self.within_step = True  # stays True if a step is interrupted
        stats = self.update(self.collect(prompts))
        self.within_step = False
        asked = [callback(self, stats) for callback in self.callbacks]
        # One process may receive Ctrl-C before this line and another after it: they stop together,
        # or they deadlock.
        self._stop = any_process(any(asked))
        return stats

    def collect(self, prompts: Sequence[Prompt]) -> Rollout:
        """Answer each prompt once; measure and score the answers.

        Changes nothing: until the next update, the same prompts get the same answers. With several
        processes, each answers its share and all get the whole rollout.
        """
        config = self.config
        ids, mask = encode_prompts(self.tokenizer, prompts)
        # Drawn for the whole batch and indexed by row: the same texts on any number of processes.
        generator = stream(config.seed, len(self.history), "sampling")
        uniforms = torch.rand(len(ids), config.max_new_tokens, generator=generator)
        mine, columns = share(self.accelerator, len(ids)), split_columns(prompts)[1]
        self.policy.eval()
        with self.autocast():
            rollout = collect(
                self.policy,
                self.reference,
                self.score,
                ids[mine],
                mask[mine],
                max_new_tokens=config.max_new_tokens,
                eos_token_id=self.tokenizer.eos_token_id,
                temperature=config.temperature,
                uniforms=uniforms[mine],
                kl_estimator=config.kl_estimator,
                chunk_size=config.micro_batch_size or config.minibatch_size,
                columns={name: column[mine] for name, column in columns.items()},
            )
            if self.accelerator.num_processes > 1:
                rollout = gather_rollout(rollout)
            if not (self._measured or self.history):
                assumptions.check_first_rollout(self, rollout, uniforms)
        self._measured = True
        assumptions.check_kl(self, rollout)
        return rollout

    def update(self, rollout: Rollout) -> Stats:
        """Run the epochs over a rollout, or over some of its rows: `update(rollout[rows])`.

        Raises:
            FloatingPointError: a loss or a gradient is not finite. The step is not taken: the
                weights stay as they were.
        """
        check_response_mask("PPOTrainer.update", rollout.mask)
        credit, config = self.credit(rollout), self.config
        generator = stream(config.seed, len(self.history), "minibatches")
        self.minibatch_stats = done = list[Stats]()
        with self.learning(), checked_at_the_door():
            for rows in minibatches(len(rollout), config, generator):
                done.append(self.descend(self.accumulate(rollout, credit, rows)))
                if done[-1]["stopped"]:
                    break
        stats = {"step": len(self.history) + 1, **self.coefficients()}
        stats |= summarise(rollout, credit, done, config)
        if not self.history:
            assumptions.check_first_update(self, rollout, stats)
        self.adapt(rollout, stats)
        self.history.append(stats)
        if self.reference and len(self.history) % (config.reference_update_every or inf) == 0:
            self.reference.load_state_dict(self.policy.state_dict())
        return stats

    # ---- the parts of an update ----------------------------------------------------------------

    def credit(self, rollout: Rollout) -> Credit:
        """Rewards, advantages and returns at the current beta."""
        return assign_credit(rollout, self.config, kl_coef=self.kl_coef)

    @contextmanager
    def learning(self) -> Iterator[None]:
        """Set train mode and the learning rate of this update; return to eval mode at the end."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate
        self.model.train()
        self.optimizer.zero_grad()  # left over from an interrupted update
        try:
            yield
        finally:
            self.model.eval()

    def accumulate(self, rollout: Rollout, credit: Credit, rows: Tensor) -> Stats:
        """Accumulate a minibatch's gradient over micro-batches, on any number of processes."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        counts = {"n_tokens": int(rollout.mask[rows].sum()), "n_responses": len(rows)}
        # A process without a row still takes part, with a gradient of zero.
        weight = float(rank < len(rows))
        mine = rows[rank::world] if weight else rows[:1]
        parts: list[Stats] = []
        micro_batches = rollout.responses[mine].by_length(self.config.micro_batch_size)
        for number, part in enumerate((mine[i] for i in micro_batches), start=1):
            batch = rollout[part].trim()
            time = batch.mask.shape[1]  # a sequence-level tensor has no time axis
            cut = (x[part][:, :time] if x.dim() == 2 else x[part] for x in credit)
            # Only the last backward pass of a process waits for the others' gradients.
            wait = number == len(micro_batches)
            with nullcontext() if wait else self.accelerator.no_sync(self.model):
                with self.autocast():
                    loss, stats = self.loss(batch, Credit(*cut), **counts)
                # DDP takes the mean over processes: undo it.
                self.accelerator.backward(loss * (world * weight))
            numbers = (torch.stack([*stats.values()]) * weight).tolist()
            parts.append(dict(zip(stats, numbers, strict=True)))
        return add_up(parts, self.accelerator)

    def loss(
        self, batch: Rollout, credit: Credit, *, n_tokens: int, n_responses: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and statistics of a micro-batch; the counts are those of its whole minibatch."""
        return ppo_loss(
            self.model,
            batch,
            credit.whitened,
            credit.returns,
            self.config,
            kl_loss_coef=self.kl_loss_coef,
            penalty_coef=self.penalty_controller.coef,
            n_tokens=n_tokens,
            n_responses=n_responses,
            reference=self.reference,
        )

    def descend(self, stats: Stats) -> Stats:
        """Step, unless the policy has already moved too far or something is not finite.

        During `critic_warmup` the head steps alone: its loss, too, would move the trunk.
        """
        config = self.config
        if len(self.history) < config.critic_warmup:
            for p in self.policy.language_model.parameters():
                p.grad = None
        norm = get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
        stats |= {"grad_norm": float(norm), "stopped": 0.0}
        if bad := [f"{name} = {value}" for name, value in stats.items() if not isfinite(value)]:
            self.optimizer.zero_grad()
            raise FloatingPointError(
                f"PPOTrainer.update: {', '.join(bad)} in step {len(self.history) + 1}, before the "
                "optimizer's step; the weights are the last good ones"
            )
        if config.target_kl_stop is not None and stats["approx_kl"] > config.target_kl_stop:
            stats["stopped"] = 1.0
        else:
            if config.max_grad_norm is not None and stats["grad_norm"] > config.max_grad_norm:
                clip_grads_with_norm_(self.model.parameters(), config.max_grad_norm, norm)
            self.optimizer.step()
        self.optimizer.zero_grad()
        return stats

    def coefficients(self) -> Stats:
        """The adapted and scheduled coefficients, as they were in this update."""
        return {
            "kl_coef": self.kl_coef,
            "kl_loss_coef": self.kl_loss_coef,
            "penalty_coef": self.penalty_controller.coef,
            "learning_rate": self.learning_rate,
        }

    def adapt(self, rollout: Rollout, stats: Stats) -> None:
        """Adapt the KL controllers after an update."""
        self.kl_controller.update(stats["kl"], len(rollout))
        if self.config.policy_loss == "penalty":
            self.penalty_controller.update(self.moved(rollout), len(rollout))

    @torch.no_grad()
    def moved(self, rollout: Rollout) -> float:
        """KL(old || new) after the update, in nats per token: k3, with ratios up to 10.

        k3 is unbiased and quiet, but one rare token that became common would decide its mean.
        """
        size = self.config.micro_batch_size or self.config.minibatch_size
        cut = (rollout.responses[i : i + size] for i in range(0, len(rollout), size))
        t = self.config.temperature
        with self.autocast():
            new = [token_log_probs(evaluate(self.policy, r)[0], r.ids, temperature=t) for r in cut]
        capped = torch.minimum(torch.cat(new), rollout.log_probs + log(10))
        return float(masked_mean(kl_k3(rollout.log_probs, capped), rollout.mask))

    # ---- saving and resuming -------------------------------------------------------------------

    @cached_property
    def reference_hash(self) -> str:
        """Hash of the frozen reference."""
        return checkpoint.reference_hash(self)

    def save(self, folder: str | Path) -> None:
        """Write a checkpoint from which `resume` continues as if nothing had happened.

        The folder is a plain transformers model (AutoModelForCausalLM opens it; for a policy with
        LoRA it is peft's adapter, which names the base model's folder), with the value head,
        Adam's moments and the trainer's state beside it; nothing is pickled. It is written under
        a temporary name and then renamed; the checkpoint it replaces becomes `<folder>.previous`.
        A kill at any moment leaves one of them intact.

        Raises:
            ValueError: the folder exists and is not a checkpoint, or the last step was interrupted
                or failed half-way: then resume from the previous checkpoint.
            OSError: the folder cannot be written; its previous content is kept.
        """
        if self.within_step:
            must = "save between two steps (resume from the previous checkpoint)"
            fail("PPOTrainer.save", "the trainer", must, "a step that did not end")
        if self.accelerator.is_main_process:
            checkpoint.save(self, Path(folder))
        self.accelerator.wait_for_everyone()

    def resume(self, folder: str | Path) -> None:
        """Restore the state that `save` wrote; `train` then continues from there.

        Construct the trainer exactly as in the first run: same configuration, same reference, and
        a policy of the same shape.

        Raises:
            ValueError: no checkpoint there, an altered or truncated file, or a different
                configuration or reference.
        """
        checkpoint.resume(self, Path(folder))


def _batch(prompts: Sequence[Prompt], step: int, config: PPOConfig) -> list[Prompt]:
    """The prompts of a step; each pass over them is in an order of its own."""
    n, begin = len(prompts), step * config.rollout_size
    passes = range(begin // n, (begin + config.rollout_size - 1) // n + 1)
    orders = [torch.randperm(n, generator=stream(config.seed, k, "prompts")) for k in passes]
    rows = torch.cat(orders)[begin % n :][: config.rollout_size]
    return [prompts[row] for row in rows.tolist()]
