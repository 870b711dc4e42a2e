"""The part of `VideoTrainer` that sets the learning rates: the optimizer's groups and the schedule."""

import logging
from typing import Any

import torch
from transformers.trainer import is_optimizer_factory
from transformers.training_args import OptimizerNames

from .optimization import parameter_groups, step_schedule


logger = logging.getLogger(__name__)

RATES = ("learning_rate", "head_learning_rate", "temporal_learning_rate")


class OptimizerMixin:
    """For `VideoTrainer`: learning rates by a parameter's place in the network."""

    optimizer: Any
    lr_scheduler: Any

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The optimizer of `--optim`, or of `optimizer_cls_and_kwargs`, over `parameter_groups`.

        Raises:
            ValueError: an optimizer that chooses rates for parameters by itself.
        """
        if self.optimizer is not None:
            return self.optimizer
        model = self.model if model is None else model
        if self.optimizer_cls_and_kwargs is not None:
            optimizer_class, options = self.optimizer_cls_and_kwargs
        else:
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, model)
        groups_itself = {"params", "model", "optimizer_dict"} & options.keys()
        if is_optimizer_factory(optimizer_class) or groups_itself:
            name = OptimizerNames(self.args.optim).value
            raise ValueError(
                f"--optim {name} chooses by itself which parameters learn at which rate, and VideoTrainer does so by "
                "their place in the network: choose an optimizer of all parameters, such as adamw_torch"
            )
        groups = parameter_groups(
            model,
            **self._scaled_learning_rates(),
            weight_decay=self.args.weight_decay,
            decay_all=self.args.decay_all,
            layer_decay=self.args.layer_decay,
        )
        self.optimizer = optimizer_class(groups, **options)
        return self.optimizer

    def _scaled_learning_rates(self) -> dict[str, Any]:
        """The learning rates for the total batch of this run, in place of `reference_batch_size`;
        says so.
        """
        args = self.args
        rates = {name: getattr(args, name) for name in RATES}
        factor = args.learning_rate_factor(self._train_batch_size)
        if factor == 1:
            return rates
        logger.info(
            "learning rate %g is for a batch of %d: %g for a total of %d (%d processes x %d x %d accumulated)",
            args.learning_rate,
            args.reference_batch_size,
            args.learning_rate * factor,
            round(factor * args.reference_batch_size),
            args.world_size,
            self._train_batch_size,
            args.gradient_accumulation_steps,
        )
        return {name: None if rate is None else rate * factor for name, rate in rates.items()}

    def set_initial_training_values(self, *args: Any, **kwargs: Any) -> tuple:
        """Trainer's own; the steps of an epoch are kept, for milestones in epochs."""
        values = super().set_initial_training_values(*args, **kwargs)
        # (epochs, steps an epoch, ...), in transformers 5.20 to 5.24
        self._steps_per_epoch = values[1]
        return values

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The scheduler of `--lr_scheduler_type`, or steps at `--lr_milestones`."""
        if self.lr_scheduler is None and self.args.lr_milestones:
            per_epoch = self._steps_per_epoch or num_training_steps / self.args.num_train_epochs
            milestones = [round(epoch * per_epoch) for epoch in self.args.lr_milestones]
            late = [milestone for milestone in milestones if milestone >= num_training_steps]
            if late:
                logger.warning(
                    "%d of the %d --lr_milestones come after the last of %d steps (%g an epoch)",
                    len(late),
                    len(milestones),
                    num_training_steps,
                    per_epoch,
                )
            self.lr_scheduler = step_schedule(
                self.optimizer if optimizer is None else optimizer,
                milestones,
                factor=self.args.lr_factor,
                num_warmup_steps=self.args.get_warmup_steps(num_training_steps),
            )
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)
