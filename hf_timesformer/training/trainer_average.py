"""The part of `VideoTrainer` that keeps an exponential moving average of the weights, which
evaluates and is saved.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import load_fsdp_model, save_fsdp_model
from safetensors.torch import load_file, save_file

from .upstream import shards_of


logger = logging.getLogger(__name__)

# beside the averages, which are the checkpoint's model
RAW_WEIGHTS = "weights_in_training.safetensors"
# the same of a network that FSDP spreads over the processes, in the form that FSDP saves it in
RAW_SHARDS = "weights_in_training"


class WeightAverageMixin:
    """For `VideoTrainer`: with `--ema_decay`, evaluations, checkpoints and the final model have
    averaged weights.

    Training itself goes on with the weights as they are. After each step

        average = decay * average + (1 - decay) * weight

    where the first steps have a smaller decay, `(1 + step) / (10 + step)`, so that the start is
    soon forgotten (Polyak and Juditsky 1992; the schedule is TensorFlow's). Under FSDP each process
    averages its own share of every weight.
    """

    def _init_average(self) -> None:
        self._average: dict[str, torch.Tensor] = {}
        self._is_swapped = False

    def _check_average(self) -> None:
        decay = self.args.ema_decay
        if decay is None:
            return
        if not 0 < decay < 1:
            raise ValueError(f"ema_decay lies between 0 and 1, such as 0.999; got {decay}")
        if self.is_deepspeed_enabled:
            raise ValueError(
                "--ema_decay does not go with DeepSpeed, which keeps the weights to itself: take --fsdp"
            )

    def _learning_weights(self) -> dict[str, torch.Tensor]:
        """The parameters that learn, by name, each of its own shape, or under FSDP this process'
        share of it; the network's own memory."""
        if self.is_fsdp_enabled:
            return shards_of(self.model)
        model = self.accelerator.unwrap_model(self.model)
        return {
            name: weight.data for name, weight in model.named_parameters() if weight.requires_grad
        }

    def start_average(self, checkpoint: str | None) -> None:
        """Begin with the weights as they are; those of a checkpoint are averages, and its raw
        weights lie beside. A run that goes on without averages is told of that.
        """
        if self.args.ema_decay is None:
            names = (RAW_WEIGHTS, RAW_SHARDS)
            if checkpoint is not None and any((Path(checkpoint) / name).exists() for name in names):
                logger.warning(
                    "the weights of %s are averages, and training goes on with them: with --ema_decay it would go on "
                    "with those that were averaged, exactly",
                    checkpoint,
                )
            return
        weights = self._learning_weights()
        self._average = {name: weight.detach().clone().float() for name, weight in weights.items()}
        if checkpoint is None:
            return
        if (path := Path(checkpoint) / RAW_WEIGHTS).is_file():
            for name, weight in load_file(path).items():
                weights[name].copy_(weight)
        if (path := Path(checkpoint) / RAW_SHARDS).is_dir():
            load_fsdp_model(*self._fsdp_parts(), str(path), adapter_only=True)

    def _fsdp_parts(self) -> tuple[Any, Any, Any]:
        """What accelerate saves and loads a network under FSDP by."""
        return self.accelerator.state.fsdp_plugin, self.accelerator, self.model

    def update_average(self) -> None:
        """Take the weights after a step into the average."""
        if not self._average:
            return
        step = self.state.global_step
        decay = min(self.args.ema_decay, (1 + step) / (10 + step))
        for name, weight in self._learning_weights().items():
            self._average[name].lerp_(weight.float(), 1 - decay)

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """The network has the averaged weights inside this block."""
        if not self._average or self._is_swapped:
            yield
            return
        weights = self._learning_weights()
        raw = {name: weight.clone() for name, weight in weights.items()}
        self._is_swapped = True
        try:
            self._set_weights(self._average)
            yield
        finally:
            self._set_weights(raw)
            self._is_swapped = False

    def _set_weights(self, values: dict[str, torch.Tensor]) -> None:
        """Copy `values`, by name and of the parameters' shapes, into the parameters that learn."""
        for name, weight in self._learning_weights().items():
            weight.copy_(values[name])

    def save_raw_weights(self, folder: Path) -> None:
        """Write the weights that training goes on with beside a checkpoint's averages, in its
        `folder`; all processes must call it."""
        if not self._average:
            return
        if self.is_fsdp_enabled:
            save_fsdp_model(*self._fsdp_parts(), str(folder / RAW_SHARDS), adapter_only=True)
        elif self.args.should_save:
            raw = {
                name: weight.contiguous().cpu() for name, weight in self._learning_weights().items()
            }
            save_file(raw, folder / RAW_WEIGHTS)

    def end_average(self) -> None:
        """The network has the averaged weights from now on."""
        if self._average:
            self._set_weights(self._average)
            self._average = {}

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Trainer's own, with the averaged weights."""
        with self.averaged_weights():
            return super().evaluation_loop(*args, **kwargs)
