"""A training run from the clips on disk to the model in the output folder: what `timesformer train`
does.
"""

import logging
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback, TrainerCallback, set_seed
from transformers.modelcard import extract_hyperparameters_from_trainer

from ..data.clips import ClipCollator, TrainingClips, check_every_class_is_readable
from ..data.record_video import ReadSettings
from ..data.targets import SINGLE_LABEL
from ..model.modeling_timesformer import TimeSformerForVideoClassification
from ..video.video_processing_timesformer import TimeSformerVideoProcessor
from .adapters import add_adapter
from .arguments import DataArguments, ModelArguments, VideoTrainingArguments
from .checkpoints import find_checkpoint, list_checkpoints
from .learning_curve import draw_curve
from .objective import ClipMetrics
from .optimization import freeze_parameters
from .preview import write_preview
from .run_clips import (
    draw_clips,
    find_class_weights,
    find_splits,
    make_clips,
    settle_groups,
)
from .run_start import settle_temporal_rate, start_network
from .settle import settle_arguments, settle_depth, settle_evaluation
from .starting_point import (
    load_network,
    make_processor,
    parse_overrides,
    read_size,
)
from .temporal_start import warn_if_blind_to_order
from .trainer import VideoTrainer
from .upstream import whole_weights


logger = logging.getLogger(__name__)


def choose_checkpoint(args: VideoTrainingArguments) -> str | None:
    """The checkpoint to go on from, if any. Raises ValueError where an old run's checkpoints are in
    the way.
    """
    if args.resume_from_checkpoint:
        checkpoint = find_checkpoint(args.output_dir, args.resume_from_checkpoint)
        return None if checkpoint is None else str(checkpoint)
    if list_checkpoints(args.output_dir):
        raise ValueError(
            f"{args.output_dir} has the checkpoints of another run: pass --resume_from_checkpoint (with the value "
            "auto one command starts a run and goes on with it) or remove it"
        )
    return None


def make_network(
    model: ModelArguments,
    class_names: list[str],
    problem_type: str = SINGLE_LABEL,
    **reading: Any,
) -> tuple[TimeSformerForVideoClassification, list[int], TimeSformerVideoProcessor]:
    """The network to train, the id that it gives to each class, and the processor of the run.

    `reading` are the processor's settings `frame_rate` and `limits`; the first is saved with it.
    Raises ValueError where the labels of the checkpoint are not those of the data, or a size does
    not fit.
    """
    overrides = parse_overrides(model.config_overrides)
    with whole_weights():
        network, label_ids = load_network(
            class_names,
            model=model.model,
            from_vit=model.from_vit,
            new_head=model.new_head,
            config_overrides=overrides,
            # a recipe may have the other one
            drop_path_rate=overrides.get("drop_path_rate", model.drop_path_rate),
            attention_type=model.attention_type,
            num_frames=model.num_frames,
            image_size=read_size(model.image_size),
            problem_type=problem_type,
        )
    if model.attn_implementation:
        network.set_attn_implementation(model.attn_implementation)
    names = (
        "image_size",
        "num_frames",
        "sampling",
        "sampling_rate",
        "target_fps",
        "image_mean",
        "image_std",
    )
    settings = {name: getattr(model, name) for name in names} | {
        "image_size": read_size(model.image_size)
    }
    source = model.model or model.from_vit
    processor = make_processor(network.config, source, **settings, **reading)
    return network, label_ids, processor


def save_results(
    trainer: VideoTrainer, metrics: dict, model: ModelArguments, data: DataArguments
) -> None:
    """Write the model, the processor, `train_results.json` and the learning curve to the output
    folder.
    """
    args = trainer.args
    trainer.save_model()
    trainer.save_state()
    metrics |= trainer.final_metrics()
    if trainer.temporal_start is not None:
        metrics["temporal_start"] = asdict(trainer.temporal_start)
    metrics |= {  # what the model card says of the run
        "base_model": model.model or model.from_vit,
        "dataset": data.dataset,
        "data_dir": data.data_dir,
        "recipe": extract_hyperparameters_from_trainer(trainer),
    }
    trainer.log_metrics(
        "train", {name: value for name, value in metrics.items() if isinstance(value, (int, float))}
    )
    trainer.save_metrics("train", metrics)
    if args.process_index == 0:
        curve = Path(args.output_dir) / "training_curve.png"
        drawn = draw_curve(trainer.state.log_history, curve)
        made = f"train_results.json and {curve.name}" if drawn else "train_results.json"
        logger.info("model, processor, %s are in %s", made, args.output_dir)
    if args.push_to_hub:
        trainer.push_to_hub()


def train(
    model_args: ModelArguments, data_args: DataArguments, args: VideoTrainingArguments
) -> VideoTrainer:
    """The whole run, from the clips on disk to the model in the output folder; returns its trainer.

    Raises ValueError for data, a start or arguments that cannot be.
    """
    started = time.time()
    set_seed(args.seed)
    args = settle_arguments(model_args, args)
    checkpoint = choose_checkpoint(args)
    trainer = make_trainer(model_args, data_args, args, checkpoint)
    result = trainer.train(resume_from_checkpoint=checkpoint)
    save_results(
        trainer,
        result.metrics | {"wall_seconds": round(time.time() - started, 1)},
        model_args,
        data_args,
    )
    return trainer


def make_trainer(
    model_args: ModelArguments,
    data_args: DataArguments,
    args: VideoTrainingArguments,
    checkpoint: str | None = None,
) -> VideoTrainer:
    """A trainer with the network, the clips and the metrics that the arguments ask for.

    `checkpoint` is what the run will go on from, for what it says of how its run started.
    """
    train_videos, validation_videos = find_splits(data_args, args)
    problem_type = train_videos.problem_type
    if data_args.max_train_samples is not None:
        train_videos = draw_clips(train_videos, data_args.max_train_samples, args.seed)
    args = settle_evaluation(args, problem_type, has_validation=validation_videos is not None)
    args = settle_depth(args, train_videos)

    network, label_ids, processor = make_network(
        model_args, train_videos.class_names, problem_type, **data_args.reading
    )
    if train_videos.shards is None and problem_type == SINGLE_LABEL:
        check_every_class_is_readable(train_videos.videos, ReadSettings.of(processor))
    freeze_parameters(network, args.freeze, args.freeze_depth or 0.0)
    start = None
    if model_args.from_vit:
        start = start_network(
            network,
            model_args.temporal_start,
            train_videos,
            processor,
            args,
            label_ids=label_ids,
            group_by=settle_groups(data_args)[1],
            checkpoint=checkpoint,
        )
        args = settle_temporal_rate(args, start.name)
    warn_if_blind_to_order(network)
    learner = add_adapter(network, model_args, args)

    clips = make_clips(train_videos, validation_videos, processor, data_args, args, label_ids)
    training, validation = clips
    names = [network.config.id2label[number] for number in range(network.config.num_labels)]
    collator = ClipCollator(
        len(names),
        mixup_alpha=data_args.mixup,
        cutmix_alpha=data_args.cutmix,
        problem_type=problem_type,
    )
    logger.info("%d clips to train on, %d classes", len(training), len(train_videos.class_names))
    if data_args.preview and args.should_save:
        preview(training, collator, data_args.preview, args, names)
    trainer = VideoTrainer(
        model=learner,
        args=args,
        train_dataset=training,
        eval_dataset=validation,
        data_collator=collator,
        callbacks=make_callbacks(args),
        compute_metrics=ClipMetrics(problem_type),
        class_weights=find_class_weights(args.class_weights, train_videos, label_ids, len(names)),
        processing_class=processor,
    )
    trainer.temporal_start = start
    trainer.merges_adapter = model_args.lora_r is not None and model_args.lora_merge
    return trainer


def preview(
    clips: TrainingClips,
    collator: ClipCollator,
    count: int,
    args: VideoTrainingArguments,
    names: list[str],
) -> None:
    """Write contact sheets of `count` training clips to the output folder, and say which."""
    sheets = write_preview(
        clips, collator, count, args.output_dir, names=names, batch_size=args.train_batch_size
    )
    logger.info(
        "%d training clips as the network sees them: %s", count, ", ".join(map(str, sheets))
    )


def make_callbacks(args: VideoTrainingArguments) -> list[TrainerCallback]:
    """What `--early_stopping_patience` asks for."""
    if args.early_stopping_patience is None:
        return []
    return [EarlyStoppingCallback(args.early_stopping_patience)]
