"""`transformers.Trainer` for clips: its data order, its losses and learning rates, and checkpoints that are whole."""

import copy
import json
import logging
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput, EvalPrediction, TrainOutput, rotate_checkpoints

from ..data.clips import NO_CLIP, UNREADABLE
from ..data.shard_source import ShardSource
from ..evaluation.accuracy import classification_metrics
from ..hub.publish import PublishMixin
from .checkpoints import BAD_CLIPS, DATA_ORDER, INCOMPLETE, remove_half_written
from .classifier_fit import can_fit_classifier, fit_new_classifier
from .learning_curve import FaultTally
from .optimization import FREEZE_CHOICES, parameter_groups, step_schedule


logger = logging.getLogger(__name__)

CLIP_LOSS = "clip_loss"  # of `clip_metrics`, until it takes the place of Trainer's own


@dataclass
class VideoTrainingArguments(TrainingArguments):
    """`TrainingArguments` with what fine-tuning on clips needs beyond them, and defaults that suit it."""

    freeze: str = field(
        default="none",
        metadata={
            "help": "What does not learn: `backbone` (all but the classifier), `spatial` (all that came from the "
            "image ViT: time embeddings, temporal attention and classifier learn) or `none`.",
            "choices": FREEZE_CHOICES,
        },
    )
    freeze_depth: float = field(
        default=0.0,
        metadata={"help": "Share of the blocks, from the first on, that does not learn, nor do the embeddings."},
    )
    head_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the classifier, if not --learning_rate."}
    )
    temporal_learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "Learning rate of what an image ViT does not have (time embeddings, temporal attention), if not "
            "--learning_rate: new parameters have further to go."
        },
    )
    probe_passes: int = field(
        default=0,
        metadata={
            "help": "Augmented passes over the training clips that a new classifier is first fitted to, beside their "
            "evaluation views, with the network frozen."
        },
    )
    refit_classifier: bool = field(
        default=False,
        metadata={
            "help": "Whether the classifier is fitted anew, in the same way, to the network that training ends with. "
            "Needs --probe_passes."
        },
    )
    layer_decay: float = field(
        default=1.0, metadata={"help": "Factor on the learning rate from each block to the one below it."}
    )
    reference_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Total batch that the learning rates are meant for: with another one (devices x batch x "
            "accumulation) they are scaled in proportion, and the log says so."
        },
    )
    lr_milestones: list[float] | None = field(
        default=None,
        metadata={
            "help": "Epochs at which the learning rates are multiplied by --lr_factor, in place of a scheduler."
        },
    )
    lr_factor: float = field(default=0.1, metadata={"help": "See --lr_milestones."})
    max_bad_fraction: float = field(
        default=0.1,
        metadata={
            "help": "Stop with a list once more than this share of the training clips, and at least 5 of them, turned "
            "out to be unreadable. Fewer are replaced, counted and reported."
        },
    )
    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={
            "help": "Go on from this checkpoint folder, or, without a value, from the last whole one in --output_dir.",
            "nargs": "?",
            "const": "last",
        },
    )
    per_device_eval_batch_size: int = field(default=8, metadata={"help": "Clips a device evaluates at once."})
    eval_strategy: str = field(default="epoch", metadata={"help": "When to evaluate: `no`, `steps` or `epoch`."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to save: `no`, `steps`, `epoch` or `best`."})
    save_total_limit: int | None = field(
        default=2, metadata={"help": "Checkpoints to keep; the best and the last always stay."}
    )
    load_best_model_at_end: bool = field(
        default=True, metadata={"help": "Whether the model that is saved at the end is the best one evaluated."}
    )
    metric_for_best_model: str | None = field(
        default="top1_accuracy", metadata={"help": "Metric that says which model is the best."}
    )
    logging_steps: float = field(default=10, metadata={"help": "Log every so many steps, or every such share of all."})
    dataloader_num_workers: int = field(default=2, metadata={"help": "Processes that decode, for each device."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must stay off: clips carry their names."})
    ddp_find_unused_parameters: bool | None = field(
        default=False,
        metadata={"help": "Whether DDP looks in each step for parameters without a gradient. This network has none."},
    )

    def __post_init__(self):
        # Without evaluations or checkpoints there is no best model to load.
        self.load_best_model_at_end &= "no" not in (self.eval_strategy, self.save_strategy)
        self.use_cpu |= not torch.accelerator.is_available()  # else --bf16 is refused where there are CPUs only
        super().__post_init__()
        self.dataloader_pin_memory &= torch.accelerator.is_available()

    def scale_learning_rates(self) -> None:
        """Scale the learning rates from `reference_batch_size` to the total batch, and say so."""
        total = self.train_batch_size * self.gradient_accumulation_steps * self.world_size
        if self.reference_batch_size is None or total == self.reference_batch_size:
            return
        factor = total / self.reference_batch_size
        before = self.learning_rate
        for name in ("learning_rate", "head_learning_rate", "temporal_learning_rate"):
            if getattr(self, name) is not None:
                setattr(self, name, getattr(self, name) * factor)
        logger.info(
            "learning rate %g is for a batch of %d: %g for a total of %d (%d processes x %d x %d accumulated)",
            before,
            self.reference_batch_size,
            self.learning_rate,
            total,
            self.world_size,
            self.train_batch_size,
            self.gradient_accumulation_steps,
        )


def clip_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Top-1, top-5 and mean class accuracy, one clip a video; clips that could not be read are counted apart."""
    logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
    labels = prediction.label_ids
    if not (labels >= 0).any():
        raise ValueError("no validation clip can be read, so nothing can be evaluated; see the warnings above")
    counts = {"videos": int((labels >= 0).sum()), "videos_unreadable": int((labels == UNREADABLE).sum())}
    logits, labels = logits[labels >= 0], labels[labels >= 0]
    loss = functional.cross_entropy(torch.from_numpy(logits).double(), torch.from_numpy(labels).long())
    return classification_metrics(logits, labels) | counts | {CLIP_LOSS: loss.item()}


class VideoTrainer(PublishMixin, Trainer):
    """Trainer whose epochs follow from the seed alone, that counts broken clips and the time spent waiting for data.

    `train_dataset` and `eval_dataset` are `TrainingClips` and `EvaluationClips`.
    """

    loss_is_scaled_for_ga = False  # compute_loss gives the mean over its own batch

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        num_clips = len(self.train_dataset) if self.train_dataset is not None else 0
        self.train_faults = FaultTally(num_clips, limit=self.args.max_bad_fraction)
        self.eval_faults = FaultTally(num_clips, limit=math.inf, remedy="left out of the evaluation")
        self._clock = _WaitClock()
        self.add_callback(_EpochCallback(self))

    # Data

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler:
        self._sampler = (train_dataset or self.train_dataset).source.make_sampler(self.args.seed)
        return self._sampler

    def make_train_dataloader(self, clips: torch.utils.data.Dataset) -> torch.utils.data.DataLoader:
        """What `get_train_dataloader` makes of `train_dataset`, of other clips from the same source."""
        return self._get_dataloader(
            dataset=clips,
            description="Training",
            batch_size=self._train_batch_size,
            sampler_fn=self._get_train_sampler,
            is_training=True,
        )

    def set_data_epoch(self, epoch: int) -> None:
        """Have the training clips laid out as that epoch has them, from the next iteration on."""
        self._sampler.set_epoch(epoch)

    def _get_eval_sampler(self, eval_dataset: Any) -> torch.utils.data.Sampler | None:
        if isinstance(eval_dataset.source, ShardSource):
            return eval_dataset.source.make_sampler(self.args.seed)
        return super()._get_eval_sampler(eval_dataset)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list, Any]:
        """Trainer's own, timed; what the batches carry beside tensors is taken out and counted here."""
        with self._clock:
            batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        for batch in batches:
            batch.pop("video_ids")
            self.train_faults.add(batch.pop("faults"))
        return batches, num_items

    def prediction_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> tuple:
        """Trainer's own, without what the batch carries beside tensors."""
        self.eval_faults.add(inputs.pop("faults"))
        inputs.pop("video_ids")
        return super().prediction_step(model, inputs, *args, **kwargs)

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> EvalLoopOutput:
        """Trainer's own, with the loss of the clips that count: Trainer's counts those twice that fill up batches."""
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        loss = output.metrics.pop(f"{metric_key_prefix}_{CLIP_LOSS}", None)
        return (
            output if loss is None else output._replace(metrics=output.metrics | {f"{metric_key_prefix}_loss": loss})
        )

    # Loss, learning rates

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean cross-entropy of hard `(B,)` or soft `(B, classes)` labels; negative labels are left out."""
        labels = inputs["labels"]
        outputs = model(**{name: value for name, value in inputs.items() if name != "labels"})
        smoothing = self.args.label_smoothing_factor if model.training else 0.0
        logits = outputs["logits"].float()
        if labels.ndim == 1:
            labels = labels.clamp(min=NO_CLIP)
        loss = functional.cross_entropy(
            logits, labels, label_smoothing=smoothing, ignore_index=NO_CLIP, reduction="none"
        )
        loss = loss.sum() / max((labels != NO_CLIP).sum(), 1) if labels.ndim == 1 else loss.mean()
        return (loss, {"logits": logits}) if return_outputs else loss

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The optimizer of `--optim` over `parameter_groups`."""
        if self.optimizer is None:
            model = self.model if model is None else model
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, model)
            groups = parameter_groups(
                model,
                learning_rate=self.args.learning_rate,
                head_learning_rate=self.args.head_learning_rate,
                temporal_learning_rate=self.args.temporal_learning_rate,
                weight_decay=self.args.weight_decay,
                layer_decay=self.args.layer_decay,
            )
            self.optimizer = optimizer_class(groups, **options)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The scheduler of `--lr_scheduler_type`, or steps at `--lr_milestones`."""
        if self.lr_scheduler is None and self.args.lr_milestones:
            per_epoch = num_training_steps / self.args.num_train_epochs
            self.lr_scheduler = step_schedule(
                self.optimizer if optimizer is None else optimizer,
                [round(epoch * per_epoch) for epoch in self.args.lr_milestones],
                factor=self.args.lr_factor,
                num_warmup_steps=self.args.get_warmup_steps(num_training_steps),
            )
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)

    # Reports

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Trainer's own, with the share of time since the last log that was spent waiting for data."""
        if "loss" in logs:
            logs["data_wait_percent"] = self._clock.percent_since_last()
            self.train_faults.sync()
        super().log(logs, start_time)

    def final_metrics(self) -> dict[str, Any]:
        """What `train_results.json` holds beside Trainer's own; all processes must call it."""
        self.train_faults.sync()
        return {
            "train_samples": len(self.train_dataset),
            "best_metric": self.state.best_metric,
            "data_wait_percent": self._clock.percent_in_all(),
        } | self.train_faults.metrics()

    # Checkpoints

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        self.train_faults.sync()
        if self.args.should_save:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / INCOMPLETE).touch()
        # Older checkpoints go only once this one is whole, on every process.
        keep, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = keep
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            self.train_faults.save(folder / BAD_CLIPS)
            (folder / DATA_ORDER).write_text(json.dumps(self._data_order()), encoding="utf-8")
            (folder / INCOMPLETE).unlink()
            rotate_checkpoints(
                output_dir=str(folder.parent),
                save_total_limit=keep,
                best_model_checkpoint=self.state.best_model_checkpoint,
            )

    def train(self, resume_from_checkpoint: str | None = None, **kwargs: Any) -> TrainOutput:
        """Trainer's own; with a checkpoint, goes on with the clips that would have come next.

        With `probe_passes` the classifier is fitted first; with `refit_classifier` once more at the end.
        """
        if self.args.should_save:
            remove_half_written(self.args.output_dir)
        fits = bool(self.args.probe_passes) and can_fit_classifier(self)
        if self.args.refit_classifier and not self.args.probe_passes:
            logger.warning("refit_classifier is left out: it needs --probe_passes")
        if resume_from_checkpoint is not None:
            self._take_over(Path(resume_from_checkpoint))
        elif fits:
            fit_new_classifier(self)
        output = super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        if fits and self.args.refit_classifier:
            self._refit_classifier()
        return output

    def _refit_classifier(self) -> None:
        """Fit the classifier to the network that training ends with, unless it evaluates worse than the best one."""
        before = copy.deepcopy(self.model.classifier.state_dict())
        fit_new_classifier(self)
        best = self.state.best_metric
        if not self.args.load_best_model_at_end or best is None:
            return
        name = self.args.metric_for_best_model
        value = self.evaluate()[name if name.startswith("eval_") else f"eval_{name}"]
        is_worse = value < best if self.args.greater_is_better else value > best
        logger.info(
            "with the classifier fitted anew %s is %.4f, the best one before %.4f: the %s is kept",
            name,
            value,
            best,
            "one before" if is_worse else "new one",
        )
        if is_worse:
            self.model.classifier.load_state_dict(before)
        else:
            self.state.best_metric = value

    def _take_over(self, checkpoint: Path) -> None:
        if not (checkpoint / DATA_ORDER).is_file():
            logger.warning(
                "%s does not say in which order its run read the clips, so resuming is not exact", checkpoint
            )
            return
        self.train_faults.load(checkpoint / BAD_CLIPS)
        before, now = json.loads((checkpoint / DATA_ORDER).read_text(encoding="utf-8")), self._data_order()
        changed = [f"{name} {before.get(name)} -> {now[name]}" for name in now if now[name] != before.get(name)]
        if changed:
            logger.warning("clips will not come in the order of the run of %s: %s", checkpoint, ", ".join(changed))

    def _data_order(self) -> dict[str, Any]:
        """What the order of the clips follows from; if it changes, resuming is not exact."""
        source = self.train_dataset.source
        streams = [source.layout.num_processes, source.layout.num_workers] if isinstance(source, ShardSource) else None
        return {
            "seed": self.args.seed,
            "clips": len(source),
            "total_batch": self.get_total_train_batch_size(self.args),
            "streams": streams,
        }


class _EpochCallback(TrainerCallback):
    """Tells the sampler which epoch begins, and has something logged at the end of even the shortest one."""

    def __init__(self, trainer: VideoTrainer):
        self.trainer = trainer

    def on_epoch_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        # Where batches are skipped on several processes, neither Trainer nor accelerate reaches the sampler.
        self.trainer.set_data_epoch(int(state.epoch or 0))

    def on_epoch_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> TrainerControl:
        control.should_log = True
        return control


class _WaitClock:
    """Seconds inside its `with` blocks, as a percentage of all seconds: since it was last asked, and in all."""

    def __init__(self):
        self.waited = self.waited_before = 0.0
        self.started = self.asked = time.perf_counter()

    def __enter__(self) -> None:
        self.entered = time.perf_counter()

    def __exit__(self, *exception: object) -> None:
        self.waited += time.perf_counter() - self.entered

    def percent_since_last(self) -> float:
        now = time.perf_counter()
        percent = 100 * (self.waited - self.waited_before) / max(now - self.asked, 1e-9)
        self.waited_before, self.asked = self.waited, now
        return round(percent, 1)

    def percent_in_all(self) -> float:
        return round(100 * self.waited / max(time.perf_counter() - self.started, 1e-9), 1)
