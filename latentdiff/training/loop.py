"""The one training loop, for every stage, under accelerate.

A step: draw the batch of this step, take each yielded phase's loss back through its networks, guard, clip, move.
Everything random in a step is seeded by (run's seed, step, share of the batch), never carried over from the
step before: that is what makes a resumed run equal to an unbroken one.
"""

import contextlib
import copy
import logging
from collections.abc import Generator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, ProjectConfiguration
from diffusers.optimization import get_scheduler
from torch import nn
from tqdm.auto import tqdm

from latentdiff.config import AnyRecipe, save_config
from latentdiff.data.items import GlobalBatches
from latentdiff.training.averages import Averages
from latentdiff.training.batches import micro_batches, share_out
from latentdiff.training.changes import review_changes
from latentdiff.training.checkpoint import Checkpoints
from latentdiff.training.claim import claimed
from latentdiff.training.guards import Finite, TooLargeError, is_out_of_memory
from latentdiff.training.placing import put_in_place, put_in_place_each
from latentdiff.training.recipe import Losses, Recipe, Step
from latentdiff.training.sharding import keep_from_libraries, requested_sharding, whole
from latentdiff.training.signals import Stopped, StopSignals

logger = logging.getLogger(__name__)

LEAST_SCALE = 2.0**-10
"""fp16's loss scale starts at 2^16; so far down, the values and not the scale are at fault."""


class Trainer:
    """Runs a recipe to its last step, from its newest checkpoint if there is one.

    Args:
        config: of the run.
        recipe_class: the stage.
        stop: the signals that end it, if somebody listens to them.
    """

    def __init__(self, config: AnyRecipe, recipe_class: type[Recipe[Any]], stop: StopSignals | None = None) -> None:
        self.config, train = config, config.train
        self.stop = stop or StopSignals()
        keep_from_libraries()
        self.accelerator = Accelerator(
            # Without this, processes that torchrun starts on a machine with no accelerator would not know each other.
            cpu=not torch.accelerator.is_available(),
            mixed_precision=train.mixed_precision,
            log_with=train.trackers or None,
            project_config=ProjectConfiguration(
                project_dir=str(config.output), logging_dir=str(config.output / "logs")
            ),
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=train.timeout))],
        )
        self.sharding = requested_sharding(config, self.accelerator.device, self.accelerator.num_processes)
        self.micro, self.shares = share_out(train, self.accelerator.num_processes)
        torch.manual_seed(config.seed)
        self.recipe = recipe_class(config, self.accelerator.device)
        self.built = self.recipe.networks
        self.step = self.saved = self.validated = 0
        self.optimizers: dict[str, Any] = {}
        self.schedules: dict[str, Any] = {}
        self._prepare()
        self.averages = Averages(self._averaged_parameters, train.ema_decay) if train.ema_decay else None
        self.checkpoints = Checkpoints(
            self.accelerator,
            config.output / "checkpoints",
            train.keep_checkpoints,
            list(self.schedules.values()),
            self.averages,
        )

    def run(self) -> None:
        """Train, save and validate until ``train.max_steps``; then export.

        Raises:
            Stopped: a signal ended it between two steps; the checkpoint of the last one is there.
            TrainingError: it cannot go on.
        """
        with contextlib.ExitStack() as stack:
            if self.accelerator.is_main_process:
                self.config.output.mkdir(parents=True, exist_ok=True)
                stack.enter_context(claimed(self.config.output))
                if self.checkpoints.any():
                    review_changes(self.config, self.config.output / "config.yaml")
                save_config(self.config, self.config.output / "config.yaml")
            self.accelerator.init_trackers(self.config.stage)
            stack.callback(self.accelerator.end_training)
            self.step = self.saved = self.checkpoints.load_newest()
            self.validated = self.step if self._validation().exists() else 0
            if self.step:
                logger.info("going on from step %d", self.step)
            else:
                self._check_early()
            with self.stop.after_step():
                self._train()
                self._export()

    def _train(self) -> None:
        train = self.config.train
        shown = self.accelerator.is_main_process
        with (
            tqdm(total=train.max_steps, initial=self.step, desc=self.config.stage, disable=not shown) as bar,
            contextlib.closing(self._batches()) as batches,
        ):
            while True:
                if self._is_due(train.validate_every):
                    self._validate()
                if number := self.stop.agreed(self.accelerator):
                    self._save()
                    raise Stopped(number)
                if self.step >= train.max_steps:
                    return
                with self._shrinkable():
                    terms = self._train_step(batches)
                self.step += 1
                bar.update()
                if self.step % train.log_every == 0:
                    self._log(terms, bar)
                if self._is_due(train.checkpoint_every):
                    self._save()

    @contextlib.contextmanager
    def _shrinkable(self) -> Iterator[None]:
        """Out of memory in here is a `TooLargeError`, if there is no other process that would wait for this one."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if self.accelerator.num_processes == 1 and is_out_of_memory(error):
                raise TooLargeError(str(error) or "MemoryError") from error
            raise

    def _is_due(self, every: int) -> bool:
        return self.step > 0 and (self.step % every == 0 or self.step == self.config.train.max_steps)

    def _save(self) -> None:
        if self.step != self.saved:
            self.checkpoints.save(self.step)
            self.saved = self.step

    def _log(self, terms: Losses, bar: tqdm) -> None:
        values = {name: value.item() for name, value in terms.items()}
        bar.set_postfix({name: f"{value:.3g}" for name, value in values.items()})
        rates = {f"lr/{phase}": schedule.get_last_lr()[0] for phase, schedule in self.schedules.items()}
        self.accelerator.log({**{f"train/{name}": value for name, value in values.items()}, **rates}, self.step)

    def _train_step(self, batches: Iterator[dict[str, Any]]) -> Losses:
        """One optimisation step of every phase; returns the loss terms of its last micro-batch."""
        logged: Losses = {}
        finite = Finite(self.step)
        for share in range(self.shares):
            batch = next(batches)
            number = share * self.accelerator.num_processes + self.accelerator.process_index
            step = Step(self.step, seeded_generator(self.config.seed, self.step, number))
            torch.manual_seed(step.generator.initial_seed())  # for what draws by itself: dropout layers
            for phase, terms in self.recipe.losses(batch, step):
                total = weighted_sum(terms, self.recipe.weights)
                finite.note(phase, total, terms, batch.get("row"))
                self._backward(phase, total / self.shares, sync=share == self.shares - 1)
                if share == self.shares - 1:
                    self._move(phase, finite)
                logged |= {name: value.detach() for name, value in terms.items()}
        if self.averages:
            self.averages.step()
        return logged

    def _backward(self, phase: str, loss: torch.Tensor, sync: bool) -> None:
        networks = [self.recipe.networks[name] for name in self.recipe.phases[phase]]
        if sync:
            self.accelerator.backward(loss)
            return
        with self.accelerator.no_sync(*networks):
            self.accelerator.backward(loss)

    def _move(self, phase: str, finite: Finite) -> None:
        """Guard, clip and take the optimiser's step of one phase."""
        optimizer, scaler = self.optimizers[phase], self.accelerator.scaler
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norm = whole(self.accelerator.clip_grad_norm_(parameters, self.config.train.max_grad_norm))
        # fp16's loss scaler skips such steps by itself, and halves its scale each time.
        if scaler is None or scaler.get_scale() < LEAST_SCALE:
            finite.require(phase, norm)
        optimizer.step()
        self.schedules[phase].step()
        optimizer.zero_grad(set_to_none=True)

    def _batches(self) -> Generator[dict[str, Any], None, None]:
        """This process's micro-batches from the current step on, on its device."""
        train, accelerator, items = self.config.train, self.accelerator, self.recipe.items
        sampler = GlobalBatches(
            items=len(items),  # type: ignore[arg-type]
            batch=train.batch_size * train.gradient_accumulation,
            micro=self.micro,
            seed=self.config.seed,
            start=self.step,
            rank=accelerator.process_index,
            processes=accelerator.num_processes,
        )
        return micro_batches(items, sampler, accelerator.device, self.config.data.num_workers, train.timeout)

    def _prepare(self) -> None:
        """Hand the networks to accelerate, or their shards, and make optimisers and learning-rate schedules."""
        recipe, config, sharding = self.recipe, self.config.optimizer, self.sharding
        recipe.networks = {name: self._prepared(network) for name, network in self.built.items()}
        for phase, names in recipe.phases.items():
            parameters = [p for name in names for p in recipe.networks[name].parameters() if p.requires_grad]
            optimizer = new_optimizer(self.config, parameters)
            if sharding:
                sharding.share_optimizer(optimizer)
            self.optimizers[phase] = self.accelerator.prepare_optimizer(optimizer)
            self.schedules[phase] = get_scheduler(
                config.schedule,
                optimizer,
                num_warmup_steps=config.warmup_steps,
                num_training_steps=self.config.train.max_steps,
            )

    def _prepared(self, network: nn.Module) -> nn.Module:
        if not self.sharding:
            return self.accelerator.prepare_model(network)
        # The recipe's own stays whole, without its work, for validation and export.
        sharded = self.accelerator.prepare_model(copy.deepcopy(network), evaluation_mode=True)
        network.cpu()
        self.sharding.shard(sharded)
        return sharded

    def _averaged_parameters(self) -> list[nn.Parameter]:
        return [p for name in self.recipe.averaged for p in self.recipe.networks[name].parameters()]

    @contextlib.contextmanager
    def _as_built(self) -> Iterator[bool]:
        """The recipe has the networks that it built, with the averaged weights, if this is the main process.

        All must enter it. A wrapped network talks to the other processes in each forward pass, and those are waiting.
        """
        prepared, main = self.recipe.networks, self.accelerator.is_main_process
        with self.averages.applied() if self.averages else contextlib.nullcontext():
            for name, network in self.built.items() if self.sharding else ():
                weights = prepared[name].state_dict()
                if main:
                    network.to(self.accelerator.device).load_state_dict(weights)
            self.recipe.networks = self.built
            try:
                yield main
            finally:
                self.recipe.networks = prepared
                for network in self.built.values() if self.sharding else ():
                    network.cpu()

    def _validation(self) -> Path:
        return self.config.output / "validation" / f"step-{self.step:08d}"

    def _validate(self) -> None:
        """The recipe's held-out figures, on one process. A signal gives it up; the resumed run does it."""
        if self.validated != self.step:
            with self._as_built() as main:
                if main:
                    self._measure()
            for network in self.recipe.networks.values():
                network.train()
        self.validated = self.step
        self.accelerator.wait_for_everyone()

    def _measure(self) -> None:
        for network in self.recipe.networks.values():
            network.eval()
        try:
            with torch.no_grad(), self.stop.at_once(), put_in_place(self._validation()) as folder:
                figures = self.recipe.validate(folder)
        except Stopped:
            return  # `_train` asks all processes about it next
        tqdm.write(f"step {self.step}: " + ", ".join(f"{name} {value:.4g}" for name, value in figures.items()))
        self.accelerator.log({f"validation/{name}": value for name, value in figures.items()}, self.step)

    def _export(self) -> None:
        with self._as_built() as main:
            if main:
                with put_in_place_each(self.config.output) as folder:
                    self.recipe.export(folder)
        self.accelerator.wait_for_everyone()

    def _check_early(self) -> None:
        """Say that a run is broken before hours are spent on it."""
        for warning in self.recipe.check():
            logger.warning("%s", warning)
        steps = self.config.train.overfit_check_steps
        if not steps:
            return
        with self._shrinkable():
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
