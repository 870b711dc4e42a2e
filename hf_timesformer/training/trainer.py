"""`transformers.Trainer` for clips: its evaluations, losses and reports; with the order of the data,
the learning rates and the checkpoints, which have files of their own.
"""

import logging
import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput, TrainOutput

from ..data.clips import TrainingClips
from ..data.faults import FaultTally
from ..data.targets import REGRESSION, SINGLE_LABEL
from ..hub.publish import PublishMixin
from ..run_lock import Work, only_run_in
from .arguments import VideoTrainingArguments
from .objective import CLIP_LOSS, NON_FINITE, clip_loss
from .refused_arguments import refuse
from .run_callback import RunCallback
from .trainer_average import WeightAverageMixin
from .trainer_checkpoints import CheckpointMixin
from .trainer_classifier import ClassifierFitMixin
from .trainer_data import ClipDataMixin
from .trainer_optimizer import OptimizerMixin
from .wait_clock import WaitClock


logger = logging.getLogger(__name__)


class VideoTrainer(
    ClipDataMixin,
    OptimizerMixin,
    ClassifierFitMixin,
    CheckpointMixin,
    WeightAverageMixin,
    PublishMixin,
    Trainer,
):
    """transformers' `Trainer`, whose epochs follow from the seed alone, and which counts broken clips
    and the time spent waiting for data.

    On SIGTERM `train` saves a checkpoint and raises `RunStopped`.

    Args:
        model: as Trainer takes it.
        args: a `VideoTrainingArguments`.
        class_weights: `(classes,)`, factors of the loss of each class; None weighs all alike.
        kwargs: what Trainer takes. `train_dataset` and `eval_dataset` are `TrainingClips` and
            `EvaluationClips`, or any data sets that Trainer takes, whose items hold `pixel_values`
            and `labels`.

    Raises:
        TypeError: `args` are of another class.
        ValueError: for an argument that would do nothing, or something else, with clips.
    """

    # compute_loss divides by the clips of the whole step, over all its batches
    loss_is_scaled_for_ga = True

    def __init__(
        self, model: Any = None, args: VideoTrainingArguments | None = None, *, class_weights: Any = None,
        **kwargs: Any,
    ):  # fmt: skip
        if args is None:
            args = VideoTrainingArguments(output_dir="tmp_trainer")
        if not isinstance(args, VideoTrainingArguments):
            raise TypeError(f"VideoTrainer takes VideoTrainingArguments, not {type(args).__name__}")
        if args.enable_jit_checkpoint:
            logger.info(
                "enable_jit_checkpoint is what happens in any case: SIGTERM saves and leaves"
            )
            args.enable_jit_checkpoint = False
        refuse(args, has_clips=isinstance(kwargs.get("train_dataset"), TrainingClips))
        self._init_checkpoints()
        self._init_average()
        self._steps_per_epoch = 0
        super().__init__(model, args, **kwargs)
        self.class_weights = (
            None if class_weights is None else torch.as_tensor(class_weights, dtype=torch.float32)
        )
        self._check_parallel()
        self._check_problem()
        self._check_average()
        self.train_faults = FaultTally(self.num_train_clips, limit=args.max_bad_fraction)
        self.eval_faults = FaultTally(
            self.num_train_clips, limit=math.inf, remedy="left out of the evaluation"
        )
        self._clock = WaitClock()
        self._is_own_optimizer = self.optimizer is None
        self.add_callback(RunCallback(self))

    @property
    def problem_type(self) -> str:
        """What the network is trained for: the config's `problem_type`, by default one class a
        clip.
        """
        return (
            getattr(self.accelerator.unwrap_model(self.model).config, "problem_type", None)
            or SINGLE_LABEL
        )

    def _check_parallel(self) -> None:
        """Accelerate leaves FSDP and DeepSpeed out on CPUs, and says nothing; PEFT's adapters wait
        forever under FSDP1.
        """
        is_sharded = self.is_fsdp_enabled or self.is_fsdp_xla_enabled
        for name, given, is_on in (
            ("fsdp", self.args.fsdp, is_sharded),
            ("deepspeed", self.args.deepspeed, self.is_deepspeed_enabled),
        ):
            if given and not is_on:
                raise ValueError(
                    f"--{name} does nothing on CPUs: leave it out there, and several processes train as with DDP"
                )
        if is_sharded and hasattr(self.model, "peft_config") and not self.accelerator.is_fsdp2:
            raise ValueError(
                "adapters (--lora_r) cannot be saved under FSDP1: leave `version` out of --fsdp_config, or make it 2"
            )

    def _check_problem(self) -> None:
        if self.problem_type == REGRESSION and self.class_weights is not None:
            raise ValueError(
                "class_weights are for classes, and the network is trained to give a number"
            )
        if self.problem_type != SINGLE_LABEL and self.args.label_smoothing_factor:
            logger.info(
                "labels are not smoothed: that is for one class a clip (%s)", self.problem_type
            )
            self.args.label_smoothing_factor = 0.0

    # Evaluation

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> tuple:
        """Trainer's own, without what the batch carries beside tensors. Raises RunStopped after
        SIGTERM.
        """
        self.leave_if_stopped()
        self.eval_faults.add(inputs.pop("faults", ()))
        inputs.pop("video_ids", None)
        return super().prediction_step(model, inputs, *args, **kwargs)

    def evaluation_loop(
        self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> EvalLoopOutput:
        """Trainer's own, with the loss of the clips that count: Trainer's counts those twice that
        fill up batches.

        It leaves the random generators as they are, so that training does not depend on when it is
        evaluated.
        """
        devices = [self.args.device] if self.args.device.type == "cuda" else []
        with torch.random.fork_rng(devices):  # a DataLoader draws a number when it begins
            output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        bad = output.metrics.get(f"{metric_key_prefix}_{NON_FINITE}", 0)
        if bad:
            logger.error(
                "the logits of %d clips are NaN or infinite: they count as wrong, the loss as infinite",
                bad,
            )
        loss = output.metrics.pop(f"{metric_key_prefix}_{CLIP_LOSS}", None)
        if loss is None:
            return output
        return output._replace(metrics=output.metrics | {f"{metric_key_prefix}_loss": loss})

    # Loss

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The loss of a batch, or its part of the loss of a step of `num_items_in_batch` clips.

        `compute_loss_func` where the trainer has one, else `clip_loss` of the config's
        `problem_type`. Labels are smoothed in training only.
        """
        labels = inputs["labels"]
        outputs = model(**{name: value for name, value in inputs.items() if name != "labels"})
        if self.compute_loss_func is not None:
            loss = self.compute_loss_func(outputs, labels, num_items_in_batch=num_items_in_batch)
        else:
            weights = None if self.class_weights is None else self.class_weights.to(labels.device)
            loss = clip_loss(
                outputs["logits"],
                labels,
                problem_type=self.problem_type,
                num_items=num_items_in_batch,
                label_smoothing=self.args.label_smoothing_factor if model.training else 0.0,
                class_weights=weights,
            )
        if num_items_in_batch is not None:
            loss = loss * self._share_of_step()
        return (loss, {"logits": outputs["logits"].float()}) if return_outputs else loss

    def _share_of_step(self) -> int:
        """What a process' part of the loss is multiplied by, where the clips of all processes
        divide it.

        DDP, FSDP and DeepSpeed average the gradients over the processes; their sum is wanted.
        """
        return self.args.world_size if self.args.average_tokens_across_devices else 1

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
            "train_samples": self.num_train_clips,
            "best_metric": self.state.best_metric,
            "data_wait_percent": self._clock.percent_in_all(),
        } | self.train_faults.metrics()

    # The run

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> TrainOutput:
        """Trainer's own; with a checkpoint, goes on with the clips that would have come next.

        `resume_from_checkpoint` is a checkpoint's folder, `"last"` (or True), or `"auto"`: the last
        one if there is one. With `probe_passes` the classifier is fitted first; with
        `refit_classifier` once more at the end.

        Raises ValueError where another run is at work in the output folder, and RunStopped after
        SIGTERM.
        """
        with (
            only_run_in(self.args.output_dir, Work("train"))
            if self.args.should_save
            else nullcontext(),
            self._stop,
        ):
            self._leaves_after_save = self._evaluation_due = False
            self._clear_output()
            checkpoint = self._find_start(resume_from_checkpoint)
            self._fits = bool(self.args.probe_passes) and self.can_fit_classifier()
            if self.args.refit_classifier and not self.args.probe_passes:
                logger.warning("refit_classifier is left out: it needs --probe_passes")
            output = super().train(resume_from_checkpoint=checkpoint, **kwargs)
            self._average = {}
            if self._fits and self.args.refit_classifier:
                self.refit_classifier()
            return output

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any
    ) -> tuple:
        """Trainer's own, with what is to be taken over of a checkpoint, or the fit of a new
        classifier.
        """
        if self.args.auto_find_batch_size and self._is_own_optimizer:
            self.optimizer = None  # its rates were for the batch before, which did not fit
        if resume_from_checkpoint is not None:
            self._take_over(Path(resume_from_checkpoint))
        begins_with_fit = self._fits and resume_from_checkpoint is None
        if begins_with_fit and not self.is_fsdp_enabled:
            # training goes on with augmented clips; DDP gives all processes the first one's fit
            self.fit_classifier(with_views=False)
        prepared = super()._prepare_for_training(
            max_steps, train_dataloader, resume_from_checkpoint
        )
        if begins_with_fit and self.is_fsdp_enabled:
            # a network that one device does not hold runs only when it is spread over all
            self.fit_classifier(with_views=False)
        self.start_average(resume_from_checkpoint)
        return prepared

    def _inner_training_loop(
        self, batch_size: Any = None, args: Any = None, resume_from_checkpoint: Any = None, trial: Any = None,
        ignore_keys_for_eval: Any = None,
    ) -> TrainOutput:  # fmt: skip
        self._due = (resume_from_checkpoint, trial, ignore_keys_for_eval)
        return super()._inner_training_loop(
            batch_size, args, resume_from_checkpoint, trial, ignore_keys_for_eval
        )

    def catch_up(self) -> None:
        """Do the evaluation that was due when the checkpoint that this run goes on from was saved."""
        checkpoint, trial, ignore_keys = self._due
        if checkpoint is not None:
            self._catch_up(Path(checkpoint), trial, ignore_keys)
