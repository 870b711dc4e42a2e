"""The clips of a training run: which they are, in what order they come, and what is done to them."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ..data.augmentation import ClipAugmentation
from ..data.balance import draw_shares
from ..data.clips import EvaluationClips, FrameSampling, TrainingClips
from ..data.dataset_factory import FoundVideos, available_splits, find_videos
from ..data.hold_out import hold_out
from ..data.readers.table import has_column
from ..data.record_video import ReadSettings
from ..data.row_source import ClipSource, RecordSource
from ..data.shard_source import ShardSource, StreamLayout, count_clips, warn_of_few_shards
from ..data.targets import REGRESSION, SINGLE_LABEL
from ..video.video_processing_timesformer import TimeSformerVideoProcessor
from .arguments import DataArguments, VideoTrainingArguments
from .objective import balanced_weights


logger = logging.getLogger(__name__)


def find_splits(
    data: DataArguments, args: VideoTrainingArguments
) -> tuple[FoundVideos, FoundVideos | None]:
    """The clips to train on and, unless held out later or not wanted, those to evaluate on.

    Raises:
        ValueError: there is no validation split, and clips of tar shards cannot be held out.
    """
    # all find the same: one writes it down
    missing_file = data.missing_file if args.process_index == 0 else None
    options = data.reader_options
    column, group_by = settle_groups(data)
    if column is not None:
        options["group_column"] = column
    train = find_videos(
        data.dataset, data.data_dir, data.train_split, missing_file=missing_file, **options
    )
    splits = available_splits(data.dataset, data.data_dir, **options)
    validation_split = data.validation_split or ("validation" if "validation" in splits else None)
    if validation_split:
        if group_by:
            logger.warning(
                "--group_by holds nothing out: clips to evaluate on come from the %s split",
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


def settle_groups(data: DataArguments) -> tuple[str | None, str | None]:
    """The column of a table that `--group_by` names, if it names one, and what `hold_out` takes."""
    if (
        data.dataset == "csv"
        and data.group_by
        and has_column(Path(data.data_dir).expanduser(), data.group_by)
    ):
        return data.group_by, "group"
    return None, data.group_by


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
    rows = spread_rows(found, count, np.random.default_rng(seed))
    logger.info("%d of %d clips are trained on", count, len(found.videos))
    return replace(found, videos=found.videos.select(rows))


def spread_rows(found: FoundVideos, count: int, generator: np.random.Generator) -> np.ndarray:
    """Rows of `count` clips, int64 `(count,)`, drawn of each class in proportion, in order."""
    classes = np.zeros(len(found.videos), np.int64)
    if found.problem_type == SINGLE_LABEL:
        classes = np.asarray(found.videos["label"])
    # Every clip gets its place within its class, as a share: a quarter of each class comes before
    # 0.25.
    places = np.zeros(len(classes))
    for label in np.unique(classes):
        rows = generator.permutation(np.flatnonzero(classes == label))
        places[rows] = (np.arange(len(rows)) + 0.5) / len(rows)
    return np.sort(np.argsort(places, kind="stable")[:count])


def make_clips(
    train: FoundVideos,
    validation: FoundVideos | None,
    processor: TimeSformerVideoProcessor,
    data: DataArguments,
    args: VideoTrainingArguments,
    label_ids: list[int],
) -> tuple[TrainingClips, EvaluationClips | None]:
    """The clips to train on, and those to evaluate on, if any.

    Args:
        train: as `find_splits` gives it, with `validation`.
        validation: None makes no clips.
        processor: of the run.
        data: what is done to clips in training.
        args: of the run.
        label_ids: the model's number for each class of the data.

    Raises:
        ValueError: arguments of the run that do not go with these clips.
    """
    training = TrainingClips(
        make_source(train, data, args, training=True),
        FrameSampling.of(processor),
        make_augmentation(processor, data),
        label_ids=label_ids,
        seed=data_seed(args),
        repeats=data.repeated_augmentation,
        reading=ReadSettings.of(processor),
    )
    if validation is None:
        return training, None
    source = make_source(validation, data, args, training=False)
    return training, EvaluationClips(source, processor, label_ids=label_ids)


def make_source(
    found: FoundVideos, data: DataArguments, args: VideoTrainingArguments, training: bool
) -> ClipSource:
    """Rows on disk or tar shards as the source that the batches are read from.

    Raises:
        ValueError: arguments of the run that do not go with tar shards.
    """
    shares = None
    if training and (data.balanced_sampling or "weight" in found.videos.features):
        shares = draw_shares(found.labels_and_weights(), balanced=data.balanced_sampling)
    if found.shards is None:
        return RecordSource(found.videos, shares=shares)
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
    return ShardSource(
        found.videos, sizes, layout, shuffle_buffer=buffer, seed=data_seed(args), shares=shares
    )


def data_seed(args: VideoTrainingArguments) -> int:
    """What the order of the clips, and what is drawn for each, follows from."""
    return args.seed if args.data_seed is None else args.data_seed


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


def find_class_weights(
    kind: str, found: FoundVideos, label_ids: list[int], num_labels: int
) -> torch.Tensor | None:
    """The weight of each class in the loss `(num_labels,)`, or None where all weigh the same.

    Raises ValueError for clips that have no classes, and for shards that are not on disk and have
    no manifest that counts them.
    """
    if kind == "none":
        return None
    if found.problem_type == REGRESSION:
        raise ValueError(
            f"--class_weights {kind} does not go with these data: the targets are numbers"
        )
    counts = np.zeros(num_labels, np.int64)
    np.add.at(counts, label_ids, found.count_classes())
    return balanced_weights(counts)
