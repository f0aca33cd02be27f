"""The one training loop, for every stage, under accelerate.

A step: draw the batch of this step, take each yielded phase's loss back through its networks, guard, clip, move.
Everything random in a step is seeded by (run's seed, step, share of the batch), never carried over from the
step before: that is what makes a resumed run equal to an unbroken one.
"""

import copy
import logging
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from latentdiff.config import AnyRecipe, save_config
from latentdiff.data.items import GlobalBatches, collate
from latentdiff.training.checkpoint import load_newest, save_checkpoint
from latentdiff.training.recipe import Losses, Recipe, Step

logger = logging.getLogger(__name__)


class NonFiniteError(RuntimeError):
    """A loss or gradient is not finite; nothing was changed by that step."""


class Trainer:
    """Runs a recipe to its last step, from its newest checkpoint if there is one."""

    def __init__(self, config: AnyRecipe, recipe_class: type[Recipe[Any]]) -> None:
        self.config, train = config, config.train
        self.accelerator = Accelerator(
            # Without this, processes that torchrun starts on a machine with no accelerator would not know each other.
            cpu=not torch.accelerator.is_available(),
            mixed_precision=train.mixed_precision,
            log_with=train.trackers or None,
            project_config=ProjectConfiguration(
                project_dir=str(config.output), logging_dir=str(config.output / "logs")
            ),
        )
        torch.manual_seed(config.seed)
        self.recipe = recipe_class(config, self.accelerator.device)
        self.step = 0
        self.optimizers: dict[str, Any] = {}
        self.schedulers: dict[str, Any] = {}
        for phase, names in self.recipe.phases.items():
            parameters = [p for name in names for p in self.recipe.networks[name].parameters() if p.requires_grad]
            self.optimizers[phase] = new_optimizer(config, parameters)
        self._prepare()
        self.ema = self._new_ema() if train.ema_decay else None
        if self.ema:
            self.accelerator.register_for_checkpointing(self.ema)

    def run(self) -> None:
        """Train, validate and save until ``train.max_steps``; then export."""
        config, train, accelerator = self.config, self.config.train, self.accelerator
        if accelerator.is_main_process:
            config.output.mkdir(parents=True, exist_ok=True)
            save_config(config, config.output / "config.yaml")
        accelerator.init_trackers(config.stage)
        self.step = load_newest(accelerator, config.output / "checkpoints")
        if self.step:
            logger.info("going on from step %d", self.step)
        else:
            self._check_early()
        bar = tqdm(
            total=train.max_steps,
            initial=self.step,
            desc=config.stage,
            disable=not accelerator.is_main_process,
        )
        batches = self._batches()
        while self.step < train.max_steps:
            terms = self._train_step(batches)
            self.step += 1
            bar.update()
            if self.step % train.log_every == 0:
                logged = {name: value.item() for name, value in terms.items()}
                bar.set_postfix({name: f"{value:.3g}" for name, value in logged.items()})
                rates = {f"lr/{phase}": s.get_last_lr()[0] for phase, s in self.schedulers.items()}
                accelerator.log({**{f"train/{name}": value for name, value in logged.items()}, **rates}, self.step)
            if self.step % train.validate_every == 0 or self.step == train.max_steps:
                self._validate()
            if self.step % train.checkpoint_every == 0 or self.step == train.max_steps:
                save_checkpoint(accelerator, config.output / "checkpoints", self.step, train.keep_checkpoints)
        bar.close()
        if accelerator.is_main_process:
            self._with_averages(lambda: self.recipe.export(config.output))
        accelerator.wait_for_everyone()
        accelerator.end_training()

    def _train_step(self, batches: Iterator[dict[str, Any]]) -> Losses:
        """One optimisation step of every phase; returns the loss terms of its last micro-batch."""
        shares = self.config.train.gradient_accumulation
        logged: Losses = {}
        for share in range(shares):
            batch = next(batches)
            number = share * self.accelerator.num_processes + self.accelerator.process_index
            step = Step(self.step, seeded_generator(self.config.seed, self.step, number))
            torch.manual_seed(step.generator.initial_seed())  # for what draws by itself: dropout layers
            for phase, terms in self.recipe.losses(batch, step):
                total = weighted_sum(terms, self.recipe.weights)
                self._backward(phase, total / shares, sync=share == shares - 1)
                if share == shares - 1:
                    self._move(phase, total, terms, batch)
                logged |= {name: value.detach() for name, value in terms.items()}
        if self.ema:
            self.ema.step(self._averaged_parameters())
        return logged

    def _backward(self, phase: str, loss: torch.Tensor, sync: bool) -> None:
        networks = [self.recipe.networks[name] for name in self.recipe.phases[phase]]
        if sync:
            self.accelerator.backward(loss)
            return
        with self.accelerator.no_sync(*networks):
            self.accelerator.backward(loss)

    def _move(self, phase: str, total: torch.Tensor, terms: Losses, batch: dict[str, Any]) -> None:
        """Guard, clip and take the optimiser's step of one phase."""
        optimizer = self.optimizers[phase]
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norm = self.accelerator.clip_grad_norm_(parameters, self.config.train.max_grad_norm)
        scaled = self.accelerator.scaler is not None  # fp16's loss scaler skips such steps by itself
        if not scaled and not (math.isfinite(float(norm)) and math.isfinite(float(total.detach()))):
            values = ", ".join(f"{name} {value.item():.4g}" for name, value in terms.items())
            where = f"step {self.step}, phase {phase}, rows {batch.get('row')}"
            raise NonFiniteError(
                f"{where}: gradient norm {float(norm):.4g} ({values}); "
                "nothing was changed. Lower optimizer.lr or look at these rows; the last checkpoint is good."
            )
        optimizer.step()
        self.schedulers[phase].step()
        optimizer.zero_grad(set_to_none=True)

    def _batches(self) -> Iterator[dict[str, Any]]:
        """This process's micro-batches from the current step on, on its device."""
        train, accelerator, items = self.config.train, self.accelerator, self.recipe.items
        sampler = GlobalBatches(
            items=len(items),  # type: ignore[arg-type]
            batch=train.batch_size * train.gradient_accumulation * accelerator.num_processes,
            micro=train.batch_size,
            seed=self.config.seed,
            start=self.step,
            rank=accelerator.process_index,
            processes=accelerator.num_processes,
        )
        workers = self.config.data.num_workers
        loader = DataLoader(items, batch_sampler=sampler, collate_fn=collate, num_workers=workers)
        for batch in loader:
            yield {k: v.to(accelerator.device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}

    def _prepare(self) -> None:
        """Hand networks and optimisers to accelerate, and make the learning-rate schedules."""
        recipe, optimizer = self.recipe, self.config.optimizer
        names, phases = list(recipe.networks), list(self.optimizers)
        ready = self.accelerator.prepare(*recipe.networks.values(), *self.optimizers.values())
        ready = ready if isinstance(ready, tuple) else (ready,)
        recipe.networks = dict(zip(names, ready, strict=False))
        self.optimizers = dict(zip(phases, ready[len(names) :], strict=True))
        for phase, prepared in self.optimizers.items():
            schedule = get_scheduler(
                optimizer.schedule,
                prepared.optimizer,
                num_warmup_steps=optimizer.warmup_steps,
                num_training_steps=self.config.train.max_steps,
            )
            self.accelerator.register_for_checkpointing(schedule)
            self.schedulers[phase] = schedule

    def _averaged_parameters(self) -> list[nn.Parameter]:
        return [p for name in self.recipe.averaged for p in self.recipe.networks[name].parameters()]

    def _new_ema(self) -> EMAModel:
        # use_ema_warmup: the average follows quickly at first, so that short runs have a useful one too.
        ema = EMAModel(self._averaged_parameters(), self.config.train.ema_decay, use_ema_warmup=True, power=0.75)
        ema.to(self.accelerator.device)
        return ema

    def _with_averages(self, act: Any) -> Any:
        """Do something with the averaged weights in place of the current ones."""
        if not self.ema:
            return act()
        self.ema.store(self._averaged_parameters())
        self.ema.copy_to(self._averaged_parameters())
        try:
            return act()
        finally:
            self.ema.restore(self._averaged_parameters())

    def _validate(self) -> None:
        """The recipe's held-out figures, on one process: the networks are unwrapped, since a wrapped one talks to the
        other processes in each forward pass, and those are waiting."""
        if self.accelerator.is_main_process:
            folder = self.config.output / "validation" / f"step-{self.step:08d}"
            folder.mkdir(parents=True, exist_ok=True)
            wrapped = self.recipe.networks
            self.recipe.networks = {name: self.accelerator.unwrap_model(network) for name, network in wrapped.items()}
            for network in self.recipe.networks.values():
                network.eval()
            with torch.no_grad():
                figures = self._with_averages(lambda: self.recipe.validate(folder))
            for network in wrapped.values():
                network.train()
            self.recipe.networks = wrapped
            tqdm.write(f"step {self.step}: " + ", ".join(f"{name} {value:.4g}" for name, value in figures.items()))
            self.accelerator.log({f"validation/{name}": value for name, value in figures.items()}, self.step)
        self.accelerator.wait_for_everyone()

    def _check_early(self) -> None:
        """Say that a run is broken before hours are spent on it."""
        for warning in self.recipe.check():
            logger.warning("%s", warning)
        steps = self.config.train.overfit_check_steps
        if not steps:
            return
        first, last = overfit_one_batch(self, steps)
        verdict = "falls" if last < first else "does NOT fall: the run is broken or optimizer.lr is far off"
        (logger.info if last < first else logger.warning)(
            "one-batch overfit check, %d steps: loss %.4g -> %.4g, %s", steps, first, last, verdict
        )


def overfit_one_batch(trainer: Trainer, steps: int) -> tuple[float, float]:
    """Loss on the first batch, same noise, before and after ``steps`` steps on it; all weights are put back."""
    recipe, config = trainer.recipe, trainer.config
    saved = {name: copy.deepcopy(network.state_dict()) for name, network in recipe.networks.items()}
    parameters = {
        phase: [p for group in optimizer.param_groups for p in group["params"]]
        for phase, optimizer in trainer.optimizers.items()
    }
    optimizers = {phase: new_optimizer(config, group) for phase, group in parameters.items()}
    batch, totals = next(trainer._batches()), []
    for _ in range(steps + 1):
        totals.append(0.0)
        for phase, terms in recipe.losses(batch, Step(0, seeded_generator(config.seed, 0, 0))):
            total = weighted_sum(terms, recipe.weights)
            totals[-1] = float(total.detach())  # of the last phase: the generator's, where there is one
            optimizers[phase].zero_grad()
            trainer.accelerator.backward(total)
            torch.nn.utils.clip_grad_norm_(parameters[phase], config.train.max_grad_norm)
            optimizers[phase].step()
    for name, network in recipe.networks.items():
        network.load_state_dict(saved[name])
        network.zero_grad(set_to_none=True)
    return totals[0], totals[-1]


def new_optimizer(config: AnyRecipe, parameters: list[nn.Parameter]) -> torch.optim.AdamW:
    """AdamW as the configuration has it."""
    o = config.optimizer
    return torch.optim.AdamW(parameters, lr=o.lr, betas=o.betas, weight_decay=o.weight_decay, fused=True)


def weighted_sum(terms: Losses, weights: dict[str, float]) -> torch.Tensor:
    """sum over terms of weight * term, over the terms that have a weight."""
    return torch.stack([weights[name] * value for name, value in terms.items() if name in weights]).sum()


def seeded_generator(seed: int, step: int, share: int) -> torch.Generator:
    """The generator of one share of one step's batch."""
    state = np.random.SeedSequence([seed, step, share]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> 1))
