"""`transformers.Trainer` for clips: its data order, its losses and learning rates, and checkpoints that are whole."""

import copy
import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from tqdm.auto import tqdm
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_utils import EvalLoopOutput, EvalPrediction, TrainOutput, rotate_checkpoints

from ..data.clips import EvaluationClips
from ..data.faults import FaultTally
from ..data.shard_source import ShardSource
from ..data.targets import NO_CLIP, UNREADABLE
from ..evaluation.accuracy import classification_metrics
from ..hub.publish import PublishMixin
from .checkpoints import BAD_CLIPS, DATA_ORDER, INCOMPLETE, remove_half_written
from .classifier_fit import fit_new_classifier
from .optimization import parameter_groups, step_schedule
from .wait_clock import WaitClock


logger = logging.getLogger(__name__)

CLIP_LOSS = "clip_loss"  # of `clip_metrics`, until it takes the place of Trainer's own
RATES = ("learning_rate", "head_learning_rate", "temporal_learning_rate")
EVALUATION_CROPS = 3  # of the paper's protocol


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
        self._clock = WaitClock()
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
                **self._scaled_learning_rates(),
                weight_decay=self.args.weight_decay,
                layer_decay=self.args.layer_decay,
            )
            self.optimizer = optimizer_class(groups, **options)
        return self.optimizer

    def _scaled_learning_rates(self) -> dict[str, float | None]:
        """The learning rates for the total batch of this run, in place of `reference_batch_size`; says so."""
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

    # The classifier before and after the training

    def can_fit_classifier(self) -> bool:
        """Whether `fit_classifier` can do its work; where it cannot, a warning says why."""
        classifier = self.model.classifier
        obstacle = None
        if not isinstance(classifier, nn.Linear):
            obstacle = f"it is a {type(classifier).__name__}, and only a linear one can be"
        elif self.is_deepspeed_enabled or self.is_fsdp_enabled:
            obstacle = "DeepSpeed and FSDP spread the network over the processes"
        if obstacle is not None:
            logger.warning(
                "the classifier is not fitted to the frozen network (probe_passes=%d): %s",
                self.args.probe_passes,
                obstacle,
            )
        return obstacle is None

    def fit_classifier(self) -> None:
        """Fit the model's classifier to `probe_passes` augmented passes over the clips and their evaluation views.

        All processes must call it; each ends with the same classifier.
        """
        with self.accelerator.autocast():
            fit_new_classifier(
                self.model,
                self.fitting_batches(self.args.probe_passes),
                gather=self.accelerator.gather,
                label_smoothing=self.args.label_smoothing_factor,
            )

    def fitting_batches(self, passes: int) -> Iterator[dict[str, Any]]:
        """The clips of the epochs after the last, which training itself does not see, then their evaluation views.

        Where the trainer has a processor, the views are the three crops of every clip that an evaluation would cut:
        objects look smaller there than in random crops of enlarged frames (Touvron et al. 2019, "Fixing the train-test
        resolution discrepancy"), and a classifier fitted to the latter alone is off for the former.
        """
        first = math.ceil(self.args.num_train_epochs)
        clips, processor = self.train_dataset, self.processing_class
        rounds = [(clips, range(first, first + passes))]
        if processor is not None:
            processor = copy.copy(processor)
            processor.num_crops = EVALUATION_CROPS
            views = EvaluationClips(clips.source, processor, label_ids=clips.label_ids)
            rounds.append((views, [first + passes]))
        hidden = self.args.disable_tqdm or not self.accelerator.is_main_process
        with tqdm(desc="features", total=0, disable=hidden) as bar:
            for dataset, epochs in rounds:
                loader = self.make_train_dataloader(dataset)
                bar.total += len(epochs) * len(loader)
                for epoch in epochs:
                    loader.set_epoch(epoch)  # accelerate's own count, which it tells the sampler
                    self.set_data_epoch(epoch)
                    for batch in loader:
                        self.train_faults.add(batch["faults"])
                        yield batch
                        bar.update()

    def _refit_classifier(self) -> None:
        """Fit the classifier to the network that training ends with, unless it evaluates worse than the best one."""
        before = copy.deepcopy(self.model.classifier.state_dict())
        self.fit_classifier()
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
        fits = bool(self.args.probe_passes) and self.can_fit_classifier()
        if self.args.refit_classifier and not self.args.probe_passes:
            logger.warning("refit_classifier is left out: it needs --probe_passes")
        if resume_from_checkpoint is not None:
            self._take_over(Path(resume_from_checkpoint))
        elif fits:
            self.fit_classifier()
        output = super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        if fits and self.args.refit_classifier:
            self._refit_classifier()
        return output

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
