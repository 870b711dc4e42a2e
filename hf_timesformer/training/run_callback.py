"""What happens between the steps of Trainer's loop: epochs, averages, SIGTERM, and answers that are
not finite.
"""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from .objective import NON_FINITE


class RunCallback(TrainerCallback):
    """What a `VideoTrainer` does between the steps of Trainer's loop."""

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self.non_finite = 0.0

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self.trainer.catch_up()

    def on_epoch_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        # Where batches are skipped on several processes, neither Trainer nor accelerate reaches the
        # sampler.
        self.trainer.set_data_epoch(int(state.epoch or 0))

    def on_step_end(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        self.trainer.update_average()
        # After the last step of an epoch `on_epoch_end` comes at once, and says whether an
        # evaluation is due.
        is_last_of_epoch = state.global_step % max(self.trainer._steps_per_epoch, 1) == 0
        if not (is_last_of_epoch or control.should_training_stop):
            self._stop_where_told(args, state, control)
        return control

    def on_epoch_end(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        control.should_log = True  # also of the shortest epoch
        self._stop_where_told(args, state, control)
        return control

    def _stop_where_told(self, args: Any, state: TrainerState, control: TrainerControl) -> None:
        """After SIGTERM, have a checkpoint saved and nothing else done."""
        if not self.trainer.is_stopped():
            return
        if args.save_strategy == "no":
            self.trainer.leave_if_stopped()
        self.trainer._evaluation_due = control.should_evaluate
        self.trainer._leaves_after_save = True
        control.should_evaluate, control.should_save = False, True

    def on_evaluate(
        self,
        args: Any,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        **kwargs: Any,
    ) -> TrainerControl:
        self.non_finite = max(
            (value for name, value in metrics.items() if name.endswith(NON_FINITE)), default=0
        )
        if self.non_finite and args.on_non_finite == "stop" and self.trainer.is_in_train:
            if args.save_strategy == "no":
                self._stop_for_non_finite(state)
            control.should_save = True
        return control

    def on_save(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.trainer._leaves_after_save:
            raise self.trainer.stopped_here()
        if self.non_finite and args.on_non_finite == "stop":
            self._stop_for_non_finite(state)

    def _stop_for_non_finite(self, state: TrainerState) -> None:
        raise ValueError(
            f"the logits of {self.non_finite:g} validation clips are NaN or infinite at step {state.global_step}: a "
            "lower --learning_rate, --bf16 in place of --fp16, or --max_grad_norm may help; --on_non_finite go_on "
            "trains on"
        )
