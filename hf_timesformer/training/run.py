"""A training run from the clips on disk to the model in the output folder: what `timesformer train`
does.
"""

import copy
import logging
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from transformers import EarlyStoppingCallback, TrainerCallback, set_seed
from transformers.modelcard import extract_hyperparameters_from_trainer
from transformers.trainer_utils import IntervalStrategy

from ..data.augmentation import ClipAugmentation
from ..data.balance import draw_shares
from ..data.clips import (
    ClipCollator,
    EvaluationClips,
    FrameSampling,
    TrainingClips,
    check_every_class_is_readable,
)
from ..data.dataset_factory import FoundVideos, available_splits, find_videos
from ..data.hold_out import hold_out
from ..data.readers.table import has_column
from ..data.row_source import ClipSource, RecordSource
from ..data.shard_source import ShardSource, StreamLayout, count_clips, warn_of_few_shards
from ..data.targets import LABEL_COLUMNS, REGRESSION, SINGLE_LABEL
from ..model.modeling_timesformer import TimeSformerForVideoClassification
from ..video.video_processing_timesformer import TimeSformerVideoProcessor
from .adapters import add_adapter, merge_adapter
from .arguments import DataArguments, ModelArguments, VideoTrainingArguments
from .checkpoints import find_checkpoint, list_checkpoints
from .learning_curve import draw_curve
from .objective import BEST_METRICS, ClipMetrics, balanced_weights
from .optimization import freeze_parameters
from .preview import write_preview
from .starting_point import load_network, make_processor, parse_overrides, read_size
from .trainer import VideoTrainer


logger = logging.getLogger(__name__)


def find_splits(
    data: DataArguments, args: VideoTrainingArguments
) -> tuple[FoundVideos, FoundVideos | None]:
    """The clips to train on and, unless held out later or not wanted, those to evaluate on."""
    # all find the same: one writes it down
    missing_file = data.missing_file if args.process_index == 0 else None
    options = data.reader_options
    group_by = data.group_by
    if (
        data.dataset == "csv"
        and group_by
        and has_column(Path(data.data_dir).expanduser(), group_by)
    ):
        options["group_column"], group_by = group_by, "group"
    train = find_videos(
        data.dataset, data.data_dir, data.train_split, missing_file=missing_file, **options
    )
    splits = available_splits(data.dataset, data.data_dir, **options)
    validation_split = data.validation_split or ("validation" if "validation" in splits else None)
    if validation_split:
        if group_by:
            logger.warning(
                "--group_by does nothing: clips to evaluate on come from the %s split",
                validation_split,
            )
        return train, find_videos(data.dataset, data.data_dir, validation_split, **options)
    if data.validation_fraction == 0:
        return train, None
    if train.shards is not None:
        raise ValueError(
            f"{data.data_dir} has no validation split, and clips in tar shards cannot be held out: "
            "give --validation_split, or --validation_fraction 0 to train without evaluation"
        )
    kept, held_out = hold_out(
        train.videos, data.validation_fraction, seed=args.seed, group_by=group_by
    )
    logger.info(
        "no validation split: %d of %d clips are held out", len(held_out), len(train.videos)
    )
    if not len(held_out):
        logger.warning(
            "no class has two clips, so none can be held out: training goes without evaluation"
        )
        return train, None
    return replace(train, videos=kept), replace(train, videos=held_out)


def make_source(
    found: FoundVideos, data: DataArguments, args: VideoTrainingArguments, training: bool
) -> ClipSource:
    """Rows on disk or tar shards as the source that the batches are read from."""
    if found.shards is None:
        shares = draw_shares(found.videos, balanced=data.balanced_sampling) if training else None
        return RecordSource(found.videos, shares=shares)
    if training and data.balanced_sampling:
        raise ValueError(
            "--balanced_sampling does not go with tar shards, which are read in the order of their clips: train from "
            "the files, or pack the clips of rare classes more than once"
        )
    if args.auto_find_batch_size:
        raise ValueError(
            "--auto_find_batch_size does not go with tar shards, whose order is laid out for one batch size"
        )
    sizes = found.shard_sizes or count_clips(found.shards)
    processes = (data.stream_processes if training else None) or args.world_size
    batch = (
        args.train_batch_size // data.repeated_augmentation if training else args.eval_batch_size
    )
    total_batch = batch * args.world_size
    if processes % args.world_size or total_batch % processes:
        raise ValueError(
            f"stream_processes {processes} must be a multiple of the {args.world_size} processes "
            f"and divide their batch of {total_batch} clips"
        )
    workers = max(args.dataloader_num_workers, 1)
    layout = StreamLayout(
        sum(sizes), total_batch // processes, num_processes=processes, num_workers=workers
    )
    if training:
        warn_of_few_shards(len(sizes), layout)
    buffer = data.shuffle_buffer if training else 0
    return ShardSource(found.videos, sizes, layout, shuffle_buffer=buffer, seed=data_seed(args))


def make_augmentation(
    processor: TimeSformerVideoProcessor, data: DataArguments
) -> ClipAugmentation:
    """Training augmentation for crops of the processor's size."""
    height, width = processor.crop_size["height"], processor.crop_size["width"]
    side = min(height, width)
    if data.dataset == "ssv2" and data.flip:
        logger.info("ssv2 tells left from right: clips are not mirrored")
    return ClipAugmentation(
        (height, width),
        short_side=_pair_of(data.short_side, "short_side") or (side, round(side * 9 / 7)),
        inverse_short_side=data.inverse_short_side,
        flip=data.flip and data.dataset != "ssv2",
        color_jitter=data.color_jitter,
        random_resized_crop=_pair_of(data.random_resized_crop, "random_resized_crop"),
        rand_augment=_pair_of(data.rand_augment, "rand_augment"),
        random_erasing=data.random_erasing,
        image_mean=processor.image_mean,
        image_std=processor.image_std,
    )


def _pair_of(values: list | None, name: str) -> tuple | None:
    if values is not None and len(values) != 2:
        raise ValueError(f"--{name} takes two values, got {' '.join(map(str, values))}")
    return None if values is None else tuple(values)


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


def settle_arguments(model: ModelArguments, args: VideoTrainingArguments) -> VideoTrainingArguments:
    """A copy of `args` without what makes no sense for that start; each thing left out is said in
    the log.

    Freezing needs pretrained weights. Fitting the classifier first needs a new classifier on a
    pretrained network. A learning rate of its own for temporal attention is for one that no
    checkpoint has trained yet.
    """
    args = copy.copy(args)
    is_pretrained = bool(model.model or model.from_vit)
    has_new_head = bool(model.from_vit or model.new_head)
    if args.freeze_depth and not is_pretrained:
        logger.info("nothing is pretrained, so nothing is frozen")
        args.freeze_depth = 0.0
    if args.probe_passes and not has_new_head:
        logger.info(
            "the classifier is not a new one on a pretrained network: it is not fitted before the training"
        )
        args.probe_passes, args.refit_classifier = 0, False
    if args.temporal_learning_rate and not model.from_vit:
        logger.info(
            "not from an image ViT: temporal attention and time embeddings learn at --learning_rate, too"
        )
        args.temporal_learning_rate = None
    return args


def make_network(
    model: ModelArguments, class_names: list[str], problem_type: str = SINGLE_LABEL
) -> tuple[TimeSformerForVideoClassification, list[int], TimeSformerVideoProcessor]:
    """The network to train, the id that it gives to each class, and the processor of the run.

    Raises ValueError where the labels of the checkpoint are not those of the data, or a size does
    not fit.
    """
    overrides = parse_overrides(model.config_overrides)
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
    processor = make_processor(network.config, model.model or model.from_vit, **settings)
    return network, label_ids, processor


def save_results(
    trainer: VideoTrainer, metrics: dict, model: ModelArguments, data: DataArguments
) -> None:
    """Write the model, the processor, `train_results.json` and the learning curve to the output
    folder.
    """
    args = trainer.args
    trainer.save_model()
    if model.lora_r is not None and model.lora_merge and args.should_save:
        merge_adapter(trainer.model, args.output_dir)
    trainer.save_state()
    metrics |= trainer.final_metrics()
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
        draw_curve(trainer.state.log_history, Path(args.output_dir) / "training_curve.png")
        logger.info(
            "model, processor, train_results.json and training_curve.png are in %s", args.output_dir
        )
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
    trainer = make_trainer(model_args, data_args, args)
    result = trainer.train(resume_from_checkpoint=checkpoint)
    save_results(
        trainer,
        result.metrics | {"wall_seconds": round(time.time() - started, 1)},
        model_args,
        data_args,
    )
    return trainer


def make_trainer(
    model_args: ModelArguments, data_args: DataArguments, args: VideoTrainingArguments
) -> VideoTrainer:
    """A trainer with the network, the clips and the metrics that the arguments ask for."""
    train_videos, validation_videos = find_splits(data_args, args)
    problem_type = train_videos.problem_type
    if data_args.max_train_samples is not None:
        train_videos = draw_clips(train_videos, data_args.max_train_samples, args.seed)
    if train_videos.shards is None and problem_type == SINGLE_LABEL:
        check_every_class_is_readable(train_videos.videos)
    args = settle_evaluation(args, problem_type, has_validation=validation_videos is not None)

    network, label_ids, processor = make_network(model_args, train_videos.class_names, problem_type)
    names = [network.config.id2label[number] for number in range(network.config.num_labels)]
    freeze_parameters(network, args.freeze, args.freeze_depth)
    learner = add_adapter(network, model_args, args)

    training = TrainingClips(
        make_source(train_videos, data_args, args, training=True),
        FrameSampling.of(processor),
        make_augmentation(processor, data_args),
        label_ids=label_ids,
        seed=data_seed(args),
        repeats=data_args.repeated_augmentation,
    )
    validation = None
    if validation_videos is not None:
        source = make_source(validation_videos, data_args, args, training=False)
        validation = EvaluationClips(source, processor, label_ids=label_ids)
    collator = ClipCollator(
        len(names),
        mixup_alpha=data_args.mixup,
        cutmix_alpha=data_args.cutmix,
        problem_type=problem_type,
    )
    logger.info("%d clips to train on, %d classes", len(training), len(train_videos.class_names))
    if data_args.preview and args.should_save:
        size = args.train_batch_size
        sheets = write_preview(
            training, collator, data_args.preview, args.output_dir, names=names, batch_size=size
        )
        logger.info(
            "%d training clips as the network sees them: %s",
            data_args.preview,
            ", ".join(map(str, sheets)),
        )
    return VideoTrainer(
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


def make_callbacks(args: VideoTrainingArguments) -> list[TrainerCallback]:
    """What `--early_stopping_patience` asks for."""
    if args.early_stopping_patience is None:
        return []
    return [EarlyStoppingCallback(args.early_stopping_patience)]


def data_seed(args: VideoTrainingArguments) -> int:
    """What the order of the clips, and what is drawn for each, follows from."""
    return args.seed if args.data_seed is None else args.data_seed


def draw_clips(found: FoundVideos, count: int, seed: int) -> FoundVideos:
    """`count` of the clips, drawn with the seed, of each class in proportion; all of them where
    there are no more.

    Raises ValueError for tar shards, or a count below 1.
    """
    if count < 1:
        raise ValueError(f"max_train_samples must be at least 1, got {count}")
    if found.shards is not None:
        raise ValueError(
            "--max_train_samples does not go with tar shards: name fewer of them, such as train-000*.tar"
        )
    if count >= len(found.videos):
        return found
    generator = np.random.default_rng(seed)
    classes = np.zeros(len(found.videos), np.int64)
    if found.problem_type == SINGLE_LABEL:
        classes = np.asarray(found.videos["label"])
    # Every clip gets its place within its class, as a share: a quarter of each class comes before
    # 0.25.
    places = np.zeros(len(classes))
    for label in np.unique(classes):
        rows = generator.permutation(np.flatnonzero(classes == label))
        places[rows] = (np.arange(len(rows)) + 0.5) / len(rows)
    rows = np.sort(np.argsort(places, kind="stable")[:count])
    logger.info("%d of %d clips are trained on", count, len(found.videos))
    return replace(found, videos=found.videos.select(rows))


def settle_evaluation(
    args: VideoTrainingArguments, problem_type: str, *, has_validation: bool
) -> VideoTrainingArguments:
    """A copy of `args` without evaluations where there are no clips for them, and with a metric
    that there is.
    """
    args = copy.copy(args)
    if not has_validation:
        args.eval_strategy, args.load_best_model_at_end = IntervalStrategy.NO, False
    if args.early_stopping_patience is not None:
        if str(args.eval_strategy) == str(IntervalStrategy.NO):
            raise ValueError(
                "--early_stopping_patience needs clips to evaluate on, and an --eval_strategy"
            )
        # how long it has been without a better one
        args.restore_callback_states_from_checkpoint = True
    if problem_type != SINGLE_LABEL and args.metric_for_best_model == BEST_METRICS[SINGLE_LABEL]:
        args.metric_for_best_model = BEST_METRICS[problem_type]
        args.greater_is_better = problem_type != REGRESSION
    return args


def find_class_weights(
    kind: str, found: FoundVideos, label_ids: list[int], num_labels: int
) -> torch.Tensor | None:
    """The weight of each class in the loss `(num_labels,)`, or None where all weigh the same.

    Raises ValueError for clips that have no classes, or whose classes nobody can count beforehand.
    """
    if kind == "none":
        return None
    if found.problem_type == REGRESSION or found.shards is not None:
        what = (
            "the targets are numbers"
            if found.shards is None
            else "nobody has counted the classes of tar shards"
        )
        raise ValueError(f"--class_weights {kind} does not go with these data: {what}")
    column = found.videos[LABEL_COLUMNS[found.problem_type]]
    classes = [
        label for labels in column for label in (labels if isinstance(labels, list) else [labels])
    ]
    counts = np.bincount(np.asarray(label_ids)[classes], minlength=num_labels)
    return balanced_weights(counts)
