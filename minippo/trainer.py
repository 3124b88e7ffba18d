"""The PPO loop: collect a rollout, update on it, again; and how to stop and go on.

accelerate does what it does right: the device, mixed precision, several processes, trackers. Two
things are ours. Accumulation: each micro-batch's sums are divided by the *whole* minibatch's
number of real tokens, since means of micro-batches of ragged rows are another gradient.
Checkpoints: accelerate's are pickles; these are safetensors and JSON.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, fields
from functools import cached_property
from itertools import chain
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from accelerate.tracking import get_available_trackers
from accelerate.utils import gather, gather_object, pad_across_processes
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from transformers import PreTrainedTokenizerBase

from minippo._validate import check_response_mask, fail
from minippo.advantages import explained_variance, gae, sequence_advantages, shape_rewards
from minippo.data import sha256
from minippo.kl import AdaptiveKL, FixedKL, PenaltyKL, kl_k1, kl_k3
from minippo.log_probs import token_log_probs
from minippo.masking import masked_mean, whiten
from minippo.models import PolicyWithValue, no_progress_bars
from minippo.ppo import PPOConfig, ppo_loss
from minippo.rollout import Responses, Rollout, Score, collect, encode_prompts, evaluate
from minippo.sft import make_accelerator, progress_bar

Stats = dict[str, float]
Callback = Callable[["PPOTrainer", Stats], bool | None]
STATE = "trainer.json"  # its presence makes a folder a checkpoint of ours


class PPOTrainer:
    """PPO on a language model.

    Args:
        policy: learns, in place.
        reference: the KL is measured to it; stays as it is, unless the configuration renews it:
            then it is overwritten in place. None: the policy with its LoRA adapter switched off.
        score: judges responses: `text_score`, `load_score`, `ensemble_score` or your own.
        tokenizer: the policy's.
        config: every choice.
        callbacks: each is called after every step with the trainer and the step's statistics; one
            that returns True ends `train` there.
        log_with: "tensorboard", "wandb" or another tracker that accelerate knows.
        log_dir: where a tracker that writes files puts them.

    Attributes:
        history: the statistics of every step so far.
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
        self.accelerator = make_accelerator(
            config.mixed_precision, log_with=_tracker(log_with), project_dir=str(log_dir)
        )
        self.score, self.tokenizer, self.config = score, tokenizer, config
        self.callbacks, self.history = list(callbacks), list[Stats]()
        self.reference = None if reference is None else reference.to(self.accelerator.device)
        if config.gradient_checkpointing:
            model, new_name = policy.language_model, "activation_checkpointing_enable"
            (getattr(model, new_name, None) or model.gradient_checkpointing_enable)()
        learning = [p for p in policy.parameters() if p.requires_grad]
        # fused: one call for all weights, and no temporary copies of them.
        self.optimizer = torch.optim.Adam(learning, lr=config.learning_rate, eps=1e-5, fused=True)
        self.model, self.optimizer = self.accelerator.prepare(policy, self.optimizer)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.n_rollouts = 0
        coef = config.kl_coef or config.kl_loss_coef
        self.kl_controller: FixedKL | AdaptiveKL = (
            FixedKL(coef)
            if config.kl_target is None
            else AdaptiveKL(coef, target=config.kl_target, horizon=config.kl_horizon)
        )
        self.penalty_controller = PenaltyKL(1.0, target=config.penalty_target)
        self._log_with, self._stop, self._within_step = log_with, False, False

    @property
    def policy(self) -> PolicyWithValue:
        """The policy itself, without what several processes wrap around it."""
        return self.accelerator.unwrap_model(self.model)

    @property
    def kl_coef(self) -> float:
        """beta now: the price of a nat in the reward."""
        return self.kl_controller.coef if self.config.kl_coef else 0.0

    @property
    def kl_loss_coef(self) -> float:
        """c3 now: the price of a nat in the loss."""
        return self.config.kl_loss_coef if self.config.kl_coef else self.kl_controller.coef

    # ---- acting --------------------------------------------------------------------------------

    def collect(self, prompts: Sequence[str]) -> Rollout:
        """Answer each prompt once; measure and judge the answers.

        With several processes each takes its share, and all get the whole rollout.
        """
        config, device = self.config, self.accelerator.device
        every = config.reference_update_every
        if every and self.n_rollouts and self.n_rollouts % every == 0:
            if self.reference is None:
                fail("PPOTrainer", "reference", "be a model where it is to be renewed", "None")
            self.reference.load_state_dict(self.policy.state_dict())
        ids, mask = encode_prompts(self.tokenizer, prompts)
        # Drawn for the whole batch and indexed by row: the same texts on any number of processes.
        uniforms = torch.rand(len(ids), config.max_new_tokens, generator=self.generator)
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        if len(ids) % world:
            fail("PPOTrainer.collect", "prompts", f"divide among {world} processes", len(ids))
        share = slice(rank * len(ids) // world, (rank + 1) * len(ids) // world)
        self.policy.eval()
        with self.accelerator.autocast():
            rollout = collect(
                self.policy,
                self.reference,
                self.score,
                ids[share].to(device),
                mask[share].to(device),
                max_new_tokens=config.max_new_tokens,
                eos_token_id=self.tokenizer.eos_token_id,
                temperature=config.temperature,
                uniforms=uniforms[share].to(device),
                kl_estimator=config.kl_estimator,
                chunk_size=config.micro_batch_size or config.minibatch_size,
            )
        self.n_rollouts += 1
        return _gather(rollout) if world > 1 else rollout

    def advantages(self, rollout: Rollout) -> tuple[Tensor, Tensor, Tensor]:
        """(advantages, returns, rewards) of a rollout; the advantages whitened if so configured.

        [batch, time] at the token level; at the sequence level the first two are [batch].
        """
        config, mask, scores = self.config, rollout.mask, rollout.scores
        if config.missing_eos_penalty:
            penalties = config.missing_eos_penalty * rollout.truncated
            scores = scores - (penalties if scores.dim() == 1 else _on_last(penalties, mask))
        bootstrap = None
        if config.bootstrap_truncated:
            keep = ~rollout.truncated
            scores = scores * (keep if scores.dim() == 1 else keep.unsqueeze(1))
            bootstrap = rollout.bootstrap
        rewards = shape_rewards(scores, rollout.kl, mask, kl_coef=self.kl_coef)
        if config.advantage_level == "sequence":
            returns, real = rewards.sum(1), mask[:, 0]
            advantages = sequence_advantages(returns, rollout.values[:, 0])
        else:
            advantages = gae(
                rewards,
                rollout.values,
                mask,
                gamma=config.gamma,
                lam=config.lam,
                bootstrap=bootstrap,
            )
            returns, real = torch.where(mask, advantages + rollout.values, 0.0), mask
        if config.whiten_advantages:
            advantages = whiten(advantages, real)
        return advantages, returns, rewards

    # ---- learning ------------------------------------------------------------------------------

    def update(self, rollout: Rollout) -> Stats:
        """Run the epochs over a rollout, or over some of its rows: `update(rollout[rows])`.

        Raises:
            FloatingPointError: a loss or a gradient is not finite. The step is not taken: the
                weights are those before it.
        """
        config = self.config
        check_response_mask("PPOTrainer.update", rollout.mask)
        advantages, returns, rewards = self.advantages(rollout)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate
        self.model.train()
        self.optimizer.zero_grad()  # what an interrupted update left behind
        minibatches: list[Stats] = []
        size, n = config.minibatch_size, len(rollout)
        orders = (torch.randperm(n, generator=self.generator) for _ in range(config.epochs))
        for rows in chain.from_iterable(order.split(size) for order in orders):
            minibatches.append(self._minibatch(rollout, advantages, returns, rows))
            if minibatches[-1]["stopped"]:
                break
        self.model.eval()
        stats = self._summary(rollout, rewards, returns, minibatches)
        self.kl_controller.update(stats["kl"], len(rollout))
        if config.policy_loss == "penalty":
            self.penalty_controller.update(self._moved(rollout), len(rollout))
        self.history.append(stats)
        return stats

    def _minibatch(
        self, rollout: Rollout, advantages: Tensor, returns: Tensor, rows: Tensor
    ) -> Stats:
        """One optimizer step over some rows, in micro-batches, on any number of processes."""
        config, accelerator = self.config, self.accelerator
        rank, world = accelerator.process_index, accelerator.num_processes
        n_tokens = int(rollout.mask[rows].sum())
        # A process without a row takes part all the same, with a gradient of zero.
        weight = float(rank < len(rows))
        mine = rows[rank::world] if weight else rows[:1]
        parts: list[Stats] = []
        micro_batches = rollout.responses[mine].by_length(config.micro_batch_size)
        for number, part in enumerate((mine[i] for i in micro_batches), start=1):
            batch = rollout[part].trim()
            time = batch.mask.shape[1]  # a sequence-level tensor has no such axis
            a, r = (x[part][:, :time] if x.dim() == 2 else x[part] for x in (advantages, returns))
            # Only the last backward pass of a process waits for the others' gradients.
            wait = number == len(micro_batches)
            with nullcontext() if wait else accelerator.no_sync(self.model):
                with accelerator.autocast():
                    loss, stats = ppo_loss(
                        self.model,
                        batch,
                        a,
                        r,
                        config,
                        kl_loss_coef=self.kl_loss_coef,
                        penalty_coef=self.penalty_controller.coef,
                        n_tokens=n_tokens,
                        n_responses=len(rows),
                        reference=self.reference,
                    )
                # DDP takes the mean over processes: undo it.
                accelerator.backward(loss * (world * weight))
            numbers = (torch.stack([*stats.values()]) * weight).tolist()
            parts.append(dict(zip(stats, numbers, strict=True)))
        totals = _add_up(parts if world == 1 else gather_object(parts))
        return self._optimizer_step(totals)

    def _optimizer_step(self, stats: Stats) -> Stats:
        """Step, unless the policy has moved too far already or something is not finite."""
        config = self.config
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

    def _summary(
        self, rollout: Rollout, rewards: Tensor, returns: Tensor, minibatches: list[Stats]
    ) -> Stats:
        mask, values = rollout.mask, rollout.values
        if self.config.advantage_level == "sequence":
            mask, values = mask[:, 0], values[:, 0]
        kl = kl_k1(rollout.log_probs, rollout.ref_log_probs)
        means = {
            name: sum(m[name] for m in minibatches) / len(minibatches) for name in minibatches[0]
        }
        steps = len(minibatches) - means.pop("stopped") * len(minibatches)
        return {
            "step": len(self.history) + 1,
            "score": float(rollout.total_scores.mean()),
            "reward": float(rewards.sum(1).mean()),
            "kl": float(torch.where(rollout.mask, kl, 0.0).sum(1).mean()),
            "response_length": float(rollout.mask.sum(1).float().mean()),
            "truncated": float(rollout.truncated.float().mean()),
            "explained_variance": float(explained_variance(values, returns, mask)),
            "optimizer_steps": steps,
            "first_ratio_error": minibatches[0]["ratio_error"],
            "kl_coef": self.kl_coef,
            "kl_loss_coef": self.kl_loss_coef,
            "penalty_coef": self.penalty_controller.coef,
            "learning_rate": self.learning_rate,
            **means,
        }

    @torch.no_grad()
    def _moved(self, rollout: Rollout) -> float:
        """KL(old || new) after the update, in nats per token."""
        size = self.config.micro_batch_size or self.config.minibatch_size
        new = []
        for start in range(0, len(rollout), size):
            responses = rollout.responses[start : start + size]
            with self.accelerator.autocast():
                logits = evaluate(self.policy, responses)[0]
            new.append(token_log_probs(logits, responses.ids, temperature=self.config.temperature))
        return float(masked_mean(kl_k3(rollout.log_probs, torch.cat(new)), rollout.mask))

    @property
    def learning_rate(self) -> float:
        """Of the coming update: warm-up, then constant or linear to zero."""
        step, config = len(self.history), self.config
        warm = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
        left = 1.0 if config.total_steps is None else max(0.0, 1 - step / config.total_steps)
        return config.learning_rate * warm * left

    def step(self, prompts: Sequence[str]) -> Stats:
        """One iteration of PPO: act, then learn from it."""
        self._within_step = True  # what ends a step half-way leaves it so
        stats = self.update(self.collect(prompts))
        self._within_step = False
        stop = any([callback(self, stats) for callback in self.callbacks])
        # One process may have got a Ctrl-C before this and another after: together, or they hang.
        self._stop = any(gather_object([stop]))
        return stats

    def train(self, prompts: Sequence[str], n_steps: int, *, progress: bool = True) -> list[Stats]:
        """Step until `n_steps` in all are done (those before a resume count); the history.

        The prompts are gone through in a new random order each time, `rollout_size` a step.
        """
        config = self.config
        encode_prompts(self.tokenizer, prompts[:1])  # an empty list, or one string, is an error
        if self._log_with is not None:
            self.accelerator.init_trackers("minippo", config=asdict(config))
        silent = not (progress and self.accelerator.is_main_process)
        with progress_bar(
            total=n_steps, initial=len(self.history), desc="PPO", silent=silent
        ) as bar:
            self._stop = False
            while len(self.history) < n_steps and not self._stop:
                stats = self.step(_batch(prompts, len(self.history), config))
                self.accelerator.log(stats, step=len(self.history))
                shown = ("score", "kl", "entropy", "clip_fraction", "value_loss")
                bar.set_postfix({name: f"{stats[name]:.3g}" for name in shown}, refresh=False)
                bar.update()
        if self._log_with is not None:
            for tracker in self.accelerator.trackers:  # end_training would end the processes' group
                tracker.finish()
        return self.history

    # ---- stopping and going on -----------------------------------------------------------------

    @cached_property
    def reference_hash(self) -> str:
        """Tells one reference from another; without one: what is frozen under the adapter."""
        if self.reference is not None:
            return weights_hash(self.reference)
        parameters = self.policy.named_parameters()
        return _hash({name: p for name, p in parameters if not p.requires_grad})

    def save(self, folder: str | Path) -> None:
        """Write a checkpoint from which `resume` goes on as if nothing had happened.

        The folder is a plain transformers model (AutoModelForCausalLM opens it; of a policy with
        LoRA it is peft's adapter, which names the base model's folder), with the value head,
        Adam's moments and the trainer's state beside it; nothing is pickled. It is written under
        another name and then renamed; what was there before becomes `<folder>.previous`. A kill
        at any moment leaves one of them whole.

        Raises:
            ValueError: the folder exists and is not a checkpoint, or the last step was interrupted
                or failed half-way: then the checkpoint before it is the one to go on from.
            OSError: it cannot be written; what was there before is still there.
        """
        if self._within_step:
            must = "save between two steps (resume from the checkpoint before)"
            fail("PPOTrainer.save", "the trainer", must, "a step that did not end")
        folder = Path(folder)
        if folder.exists() and not (folder / STATE).exists() and any(folder.iterdir()):
            fail("PPOTrainer.save", "folder", "be new, empty or a checkpoint", str(folder))
        if self.accelerator.is_main_process:
            made = folder.with_name(f"{folder.name}.unfinished")
            shutil.rmtree(made, ignore_errors=True)  # what a kill left behind
            made.mkdir(parents=True)
            try:
                self._write(made)
                previous = folder.with_name(f"{folder.name}.previous")
                if folder.exists():
                    shutil.rmtree(previous, ignore_errors=True)
                    folder.rename(previous)
                made.rename(folder)
            except SafetensorError as error:  # a full disk among others
                raise OSError(f"PPOTrainer.save: {folder} cannot be written: {error}") from error
            finally:
                shutil.rmtree(made, ignore_errors=True)
        self.accelerator.wait_for_everyone()

    def _write(self, folder: Path) -> None:
        with no_progress_bars():
            self.policy.language_model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        tensors, steps = {}, 0
        for name, p in self._trainable().items():
            tensors[f"parameter.{name}"] = p.detach()
            if state := self.optimizer.state.get(p):
                steps = int(state["step"])
                tensors |= {f"{key}.{name}": state[key] for key in ("exp_avg", "exp_avg_sq")}
        if self.config.reference_update_every and self.reference is not None:
            state = self.reference.state_dict()
            tensors |= {f"reference.{name}": x for name, x in state.items()}
        # safetensors refuses tensors that share memory, such as tied embeddings.
        tensors = {
            name: x.cpu().clone(memory_format=torch.contiguous_format)
            for name, x in tensors.items()
        }
        save_file(tensors, folder / "trainer.safetensors")
        state = {
            "config": asdict(self.config),
            "reference": None if self.config.reference_update_every else self.reference_hash,
            "history": self.history,
            "n_rollouts": self.n_rollouts,
            "optimizer_steps": steps,
            "kl_controller": self.kl_controller.coef,
            "penalty_controller": self.penalty_controller.coef,
            "generator": bytes(self.generator.get_state().tolist()).hex(),
            "sha256": {file.name: sha256(file) for file in sorted(folder.iterdir())},
        }
        (folder / STATE).write_text(json.dumps(state | {"own_sha256": _digest(state)}))

    def resume(self, folder: str | Path) -> None:
        """Take over the state that `save` wrote; `train` then goes on from there.

        Make the trainer as it was made first: same configuration, same reference, and a policy of
        the same shape.

        Raises:
            ValueError: no checkpoint there, an altered or cut-off file, another configuration or
                another reference.
        """
        folder = Path(folder)
        previous = folder.with_name(f"{folder.name}.previous")
        if not folder.exists() and (previous / STATE).exists():
            folder = previous  # killed between the two renames of `save`
        state = _read_state(folder, previous)
        now = asdict(self.config)
        if changed := [
            f"{k}={state['config'].get(k)}" for k in now if state["config"].get(k) != now[k]
        ]:
            fail(
                "PPOTrainer.resume",
                "config",
                f"be the checkpoint's ({', '.join(changed)})",
                "another",
            )
        if state["reference"] not in (None, self.reference_hash):
            fail("PPOTrainer.resume", "reference", "be the one that the run began with", "another")
        tensors = load_file(folder / "trainer.safetensors")
        with torch.no_grad():
            for name, p in self._trainable().items():
                p.copy_(tensors[f"parameter.{name}"])
                if f"exp_avg.{name}" in tensors:
                    moments = {
                        k: tensors[f"{k}.{name}"].to(p.device) for k in ("exp_avg", "exp_avg_sq")
                    }
                    step = torch.tensor(float(state["optimizer_steps"]), device=p.device)
                    self.optimizer.state[p] = {"step": step, **moments}
        if state["reference"] is None and self.reference is not None:
            prefix = "reference."
            own = {k.removeprefix(prefix): x for k, x in tensors.items() if k.startswith(prefix)}
            self.reference.load_state_dict(own)
        self.history, self.n_rollouts = state["history"], state["n_rollouts"]
        self._within_step = False
        self.kl_controller.coef = state["kl_controller"]
        self.penalty_controller.coef = state["penalty_controller"]
        self.generator.set_state(
            torch.tensor(list(bytes.fromhex(state["generator"])), dtype=torch.uint8)
        )

    def _trainable(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.policy.named_parameters() if p.requires_grad}


def weights_hash(module: nn.Module) -> str:
    """SHA-256 over names and values of a module's weights: equal hashes, equal models."""
    return _hash(module.state_dict())


def _hash(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, x in tensors.items():
        digest.update(name.encode())
        digest.update(x.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _digest(state: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()


def _read_state(folder: Path, previous: Path) -> dict[str, Any]:
    if not (folder / STATE).is_file():
        fail("PPOTrainer.resume", "folder", f"be a checkpoint (it has no {STATE})", str(folder))
    hint = f"; the checkpoint before it is {previous}" if (previous / STATE).exists() else ""
    try:
        state: dict[str, Any] = json.loads((folder / STATE).read_text())
        recorded, own = state["sha256"], state.pop("own_sha256")
        if own != _digest(state):
            raise ValueError("another content")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"PPOTrainer.resume: {folder / STATE} is damaged{hint}.") from error
    for name, digest in recorded.items():
        if not (folder / name).is_file() or sha256(folder / name) != digest:
            raise ValueError(f"PPOTrainer.resume: {folder / name} is damaged or missing{hint}.")
    return state


def _batch(prompts: Sequence[str], step: int, config: PPOConfig) -> list[str]:
    """The prompts of a step: a function of the seed and the step, so nothing need be saved."""
    n = len(prompts)
    batch: list[str] = []
    for i in range(step * config.rollout_size, (step + 1) * config.rollout_size):
        if i % n == 0 or not batch:
            generator = torch.Generator().manual_seed((config.seed << 32) + i // n)
            order = torch.randperm(n, generator=generator)
        batch.append(prompts[int(order[i % n])])
    return batch


def _add_up(parts: list[Stats]) -> Stats:
    """Micro-batches' statistics are shares of the minibatch's: they add up, but for the largest."""
    return {
        name: (max if name == "ratio_error" else sum)(part[name] for part in parts)
        for name in parts[0]
    }


def _gather(rollout: Rollout) -> Rollout:
    """The whole rollout on every process; rows in the order of the prompts."""

    def whole(x: Tensor) -> Tensor:
        sent = x.float() if x.dtype == torch.bool else x  # padding would make integers of a bool
        if x.dim() == 2:
            sent = pad_across_processes(sent, dim=1)
        return gather(sent).to(x.dtype)

    responses = Responses(*(whole(getattr(rollout.responses, f.name)) for f in fields(Responses)))
    return Rollout(responses, *(whole(getattr(rollout, f.name)) for f in fields(Rollout)[1:]))


def _on_last(x: Tensor, mask: Tensor) -> Tensor:
    """One number a response, put on its last real token."""
    return torch.zeros_like(mask, dtype=x.dtype).scatter(1, mask.sum(1, True) - 1, x.unsqueeze(1))


def _tracker(name: str | None) -> str | None:
    if name is not None and name not in (known := [str(t) for t in get_available_trackers()]):
        must = f"be installed and known to accelerate (here: {', '.join(known) or 'none'})"
        fail("PPOTrainer", "log_with", must, name)
    return name
