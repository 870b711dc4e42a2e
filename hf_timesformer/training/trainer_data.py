"""The part of `VideoTrainer` that brings the clips in their order, and counts those that are broken
and those that the loss is divided by.
"""

import functools
from typing import Any

import torch

from ..data.clips import EvaluationClips, TrainingClips
from ..data.faults import FaultTally
from ..data.shard_source import ShardSource
from ..data.targets import is_counted
from .stopping import ignore_sigterm_in_worker
from .wait_clock import WaitClock


class ClipDataMixin:
    """For `VideoTrainer`: what a step trains on follows from the seed and the epoch alone."""

    train_faults: FaultTally
    _clock: WaitClock
    _sampler: Any = None  # of the training clips, once they are laid out

    @property
    def has_clips(self) -> bool:
        """Whether the training data are `TrainingClips`, which come in an order of their own."""
        return isinstance(self.train_dataset, TrainingClips)

    @property
    def num_train_clips(self) -> int:
        """How many clips there are to train on; 0 where nobody can tell."""
        return len(self.train_dataset) if hasattr(self.train_dataset, "__len__") else 0

    @property
    def data_seed(self) -> int:
        """What the order of the clips follows from: `--data_seed`, or `--seed` without one."""
        return self.args.seed if self.args.data_seed is None else self.args.data_seed

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler | None:
        clips = self.train_dataset if train_dataset is None else train_dataset
        if not isinstance(clips, (TrainingClips, EvaluationClips)):
            return super()._get_train_sampler(train_dataset)
        self._sampler = clips.source.make_sampler(self.data_seed)
        return self._sampler

    def make_train_dataloader(self, clips: torch.utils.data.Dataset) -> torch.utils.data.DataLoader:
        """What `get_train_dataloader` makes of `train_dataset`, of other clips from the same
        source.
        """
        return self._get_dataloader(
            dataset=clips,
            description="Training",
            batch_size=self._train_batch_size,
            sampler_fn=self._get_train_sampler,
            is_training=True,
        )

    def _get_dataloader(
        self,
        dataset: Any,
        description: str,
        batch_size: int,
        *args: Any,
        is_training: bool = False,
        **kwargs: Any,
    ) -> torch.utils.data.DataLoader:
        repeats = getattr(self.train_dataset, "repeats", 1) if is_training else 1
        if batch_size % repeats:
            raise ValueError(
                f"a batch of {batch_size} clips cannot be made of {repeats} views of each: "
                "--per_device_train_batch_size must be a multiple of --repeated_augmentation"
            )
        loader = super()._get_dataloader(
            dataset, description, batch_size // repeats, *args, is_training=is_training, **kwargs
        )
        loader.worker_init_fn = functools.partial(ignore_sigterm_in_worker, loader.worker_init_fn)
        return loader

    def set_data_epoch(self, epoch: int) -> None:
        """Have the training clips laid out as that epoch has them, from the next iteration on."""
        if self._sampler is not None:
            self._sampler.set_epoch(epoch)

    def _get_eval_sampler(self, eval_dataset: Any) -> torch.utils.data.Sampler | None:
        if isinstance(eval_dataset, EvaluationClips) and isinstance(
            eval_dataset.source, ShardSource
        ):
            return eval_dataset.source.make_sampler(self.data_seed)
        return super()._get_eval_sampler(eval_dataset)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        # What clips carry beside the model's inputs; the collator needs it, and it is taken out
        # before the model runs.
        for name in ("video_id", "faults", "entropy"):
            if name not in self._signature_columns:
                self._signature_columns.append(name)

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: torch.device
    ) -> tuple[list, Any]:
        """Trainer's own, timed; what the batches carry beside tensors is taken out and counted
        here.
        """
        with self._clock:
            batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        for batch in batches:
            batch.pop("video_ids", None)
            self.train_faults.add(batch.pop("faults", ()))
        return batches, num_items

    def _get_num_items_in_batch(
        self, batch_samples: list, device: torch.device
    ) -> torch.Tensor | None:
        """The clips that count in one step, of all processes, `()`; at least 1. Each batch has
        labels `(B,)` or `(B, classes)`."""
        if not batch_samples or "labels" not in batch_samples[0]:
            return None
        counts = [is_counted(batch["labels"]).sum() for batch in batch_samples]
        count = torch.stack(counts).sum().to(device)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            count = self.accelerator.gather(count).sum()
        return count.clamp(min=1)
