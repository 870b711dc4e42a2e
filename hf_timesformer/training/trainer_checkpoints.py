"""The part of `VideoTrainer` that saves checkpoints, goes on from them, and leaves when it is told
to.
"""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from transformers.trainer_utils import TrainOutput

from ..data.shard_source import ShardSource
from .adapters import merge_adapter
from .checkpoints import (
    BAD_CLIPS,
    DATA_ORDER,
    EVALUATION_DUE,
    INCOMPLETE,
    find_checkpoint,
    remove_half_written,
    remove_old_checkpoints,
)
from .stopping import RunStopped, StopRequest, any_process
from .temporal_choice import TemporalStart


logger = logging.getLogger(__name__)


class CheckpointMixin:
    """For `VideoTrainer`: checkpoints that are whole before anyone takes them for whole, and
    SIGTERM.
    """

    def _init_checkpoints(self) -> None:
        self._stop = StopRequest()
        self._leaves_after_save = False
        self._evaluation_due = False
        self._folder_to_push: str | None = None
        self.temporal_start: TemporalStart | None = None  # of a run from an image ViT
        self.merges_adapter = False  # in the final model

    # Saving

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        self.train_faults.sync()
        if self.args.should_save:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / INCOMPLETE).touch()
        with self._keeping_checkpoints(), self.averaged_weights():
            super()._save_checkpoint(model, trial)
        self.save_raw_weights(folder)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            self._finish_checkpoint(folder)
            remove_old_checkpoints(
                folder.parent, self.args.save_total_limit, self.state.best_model_checkpoint
            )
        if self._folder_to_push is not None and not self._leaves_after_save:
            super()._push_from_checkpoint(self._folder_to_push)
        self._folder_to_push = None

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Trainer's own; the model is whole whatever FSDP's `state_dict_type` is, but for those of
        checkpoints. Without `output_dir` it is the final one, whose adapter is merged where
        `merges_adapter` says so.
        """
        is_checkpoint = _internal_call and output_dir is not None
        with nullcontext() if is_checkpoint else self._saving_whole():
            super().save_model(output_dir, _internal_call)
        if self.merges_adapter and output_dir is None and self.args.should_save:
            config = self.accelerator.unwrap_model(self.model).config
            merge_adapter(self.args.output_dir, config)

    @contextmanager
    def _saving_whole(self) -> Iterator[None]:
        """With `SHARDED_STATE_DICT` Trainer saves no model that can be loaded, and says nothing."""
        plugin = self.accelerator.state.fsdp_plugin if self.is_fsdp_enabled else None
        if plugin is None:
            yield
            return
        usual = plugin.state_dict_type, plugin.state_dict_config, plugin.optim_state_dict_config
        plugin.state_dict_config = plugin.optim_state_dict_config = None
        plugin.set_state_dict_type("FULL_STATE_DICT")
        try:
            yield
        finally:
            plugin.state_dict_type, plugin.state_dict_config, plugin.optim_state_dict_config = usual

    def _finish_checkpoint(self, folder: Path) -> None:
        """Write what makes resuming exact, then take the mark of an unfinished checkpoint away."""
        self.train_faults.save(folder / BAD_CLIPS)
        if self.temporal_start is not None:
            self.temporal_start.save(folder)
        (folder / DATA_ORDER).write_text(json.dumps(self._data_order()), encoding="utf-8")
        (folder / EVALUATION_DUE).unlink(missing_ok=True)
        if self._evaluation_due:
            (folder / EVALUATION_DUE).touch()
        (folder / INCOMPLETE).unlink()

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        # Trainer pushes before the checkpoint is whole; `_save_checkpoint` does so afterwards.
        self._folder_to_push = checkpoint_folder

    def _finalize_training(self, *args: Any, **kwargs: Any) -> TrainOutput:
        self.end_average()  # before the best model, whose weights are averages already, is loaded
        with self._keeping_checkpoints():
            return super()._finalize_training(*args, **kwargs)

    @contextmanager
    def _keeping_checkpoints(self) -> Iterator[None]:
        """Trainer removes no checkpoint: it would do so before the next is whole, and take any
        folder for one.
        """
        keep, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            yield
        finally:
            self.args.save_total_limit = keep

    # Going on

    def _find_start(self, wanted: str | bool | None) -> str | None:
        """The checkpoint to go on from; raises ValueError as `find_checkpoint` does."""
        if not wanted:
            return None
        found = find_checkpoint(self.args.output_dir, "last" if wanted is True else str(wanted))
        return None if found is None else str(found)

    def _clear_output(self) -> None:
        if self.args.should_save:
            remove_half_written(self.args.output_dir)

    def _take_over(self, checkpoint: Path) -> None:
        """Take over what Trainer does not know of a checkpoint; say where going on from it will not
        be exact.
        """
        if not (checkpoint / DATA_ORDER).is_file():
            logger.warning(
                "%s does not say in which order its run read the clips, so resuming is not exact",
                checkpoint,
            )
            return
        self.train_faults.load(checkpoint / BAD_CLIPS)
        before, now = (
            json.loads((checkpoint / DATA_ORDER).read_text(encoding="utf-8")),
            self._data_order(),
        )
        if before.get("model_only"):
            logger.warning(
                "%s was saved with --save_only_model: optimizer and schedule start anew, resuming is not exact",
                checkpoint,
            )
        changed = [
            f"{name} {before.get(name)} -> {now[name]}"
            for name in now
            if now[name] != before.get(name)
        ]
        if changed:
            logger.warning(
                "clips will not come in the order of the run of %s: %s",
                checkpoint,
                ", ".join(changed),
            )

    def _data_order(self) -> dict[str, Any]:
        """What the order of the clips follows from; if it changes, resuming is not exact."""
        source = getattr(self.train_dataset, "source", None)
        streams = (
            [source.layout.num_processes, source.layout.num_workers]
            if isinstance(source, ShardSource)
            else None
        )
        return {
            "seed": self.data_seed,
            "clips": self.num_train_clips,
            "total_batch": self.get_total_train_batch_size(self.args),
            "streams": streams,
            "shares": getattr(source, "fingerprint", None),
            "model_only": self.args.save_only_model,
        }

    def _catch_up(self, checkpoint: Path, trial: Any, ignore_keys: list[str] | None) -> None:
        """Do the evaluation that was due when that checkpoint was saved, as if the run had not been
        stopped.
        """
        if not (checkpoint / EVALUATION_DUE).exists():
            return
        metrics = self._evaluate(trial, ignore_keys)
        if self._determine_best_metric(metrics=metrics, trial=trial):
            self.state.best_model_checkpoint = str(checkpoint)

    # SIGTERM

    def is_stopped(self) -> bool:
        """Whether any process has got SIGTERM; all of them must ask."""
        return self._stop.listens and any_process(self._stop.received, self.accelerator)

    def leave_if_stopped(self) -> None:
        """Raise RunStopped where any process has got SIGTERM; all of them must call it."""
        if self.is_stopped():
            raise RunStopped(self.state.global_step, None)

    def _evaluate(self, trial: Any, *args: Any, **kwargs: Any) -> dict[str, float]:
        try:
            return super()._evaluate(trial, *args, **kwargs)
        except RunStopped:
            if self.args.save_strategy == "no":
                raise
            self._leaves_after_save = self._evaluation_due = True
            self._save_checkpoint(self.model, trial)
            raise self.stopped_here(trial) from None

    def stopped_here(self, trial: Any = None) -> RunStopped:
        """The exception of a run that has been told to leave and has saved; `trial` as Trainer has
        it."""
        folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        return RunStopped(self.state.global_step, folder)
