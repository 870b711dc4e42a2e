"""Fine-tune a TimeSformer on video clips with `transformers.Trainer`.

python scripts/train.py --dataset folder --data_dir clips --from_vit google/vit-base-patch16-224 --output_dir run
accelerate launch scripts/train.py --recipe k400-8x32-224 --dataset kinetics --data_dir k400 --output_dir run
"""

import logging
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

from transformers import HfArgumentParser, set_seed
from transformers.modelcard import extract_hyperparameters_from_trainer
from transformers.trainer_utils import IntervalStrategy
from transformers.utils import logging as transformers_logging

from ..data.augmentation import ClipAugmentation
from ..data.clips import (
    ClipCollator,
    ClipSource,
    EvaluationClips,
    FrameSampling,
    RecordSource,
    TrainingClips,
    check_every_class_is_readable,
)
from ..data.dataset_factory import DATASETS, FoundVideos, available_splits, find_videos
from ..data.shard_source import ShardSource, StreamLayout, count_clips, warn_of_few_shards
from ..training.checkpoints import find_checkpoint, list_checkpoints, only_run_in
from ..training.learning_curve import draw_curve
from ..training.optimization import freeze_parameters
from ..training.recipes import apply_recipe
from ..training.starting_point import hold_out, load_network, make_processor, parse_overrides
from ..training.trainer import VideoTrainer, VideoTrainingArguments, clip_metrics
from ..video.video_processing_timesformer import TimeSformerVideoProcessor
from .common import end_process_group, user_errors, warn_of_lone_process


logger = logging.getLogger("train")
RECIPES = Path(__file__).resolve().parents[1] / "recipes"


@dataclass
class ModelArguments:
    """What to start from, and the clips that it takes."""

    model: str | None = field(default=None, metadata={"help": "TimeSformer to fine-tune: a folder or Hub id."})
    from_vit: str | None = field(
        default=None,
        metadata={"help": "Image ViT to start from: a folder or Hub id, or .safetensors with timm's names."},
    )
    new_head: bool = field(
        default=False,
        metadata={
            "help": "Train a new classifier where the labels of --model are not those of the data.",
            "aliases": ["--ignore_mismatched_sizes"],
        },
    )
    config_overrides: str | None = field(
        default=None, metadata={"help": "Config fields, such as hidden_size=96,drop_path_rate=0.1."}
    )
    attention_type: str | None = field(default=None, metadata={"help": "Attention scheme (see TimeSformerConfig)."})
    drop_path_rate: float | None = field(
        default=None, metadata={"help": "Stochastic depth of the last block, less in those before it."}
    )
    attn_implementation: str | None = field(default=None, metadata={"help": "eager, sdpa, flash_attention_2, ..."})
    num_frames: int | None = field(default=None, metadata={"help": "Frames a clip, if not the checkpoint's."})
    image_size: int | None = field(default=None, metadata={"help": "Side of the square crops, in pixels."})
    sampling: str | None = field(default=None, metadata={"help": "clip (a window) or segments (the whole video)."})
    sampling_rate: int | None = field(
        default=None, metadata={"help": "Source frames from one frame of a clip to the next."}
    )
    target_fps: float | None = field(default=None, metadata={"help": "Frame rate that sampling_rate is meant for."})
    image_mean: list[float] | None = field(default=None, metadata={"help": "Mean of each channel, 0 to 1."})
    image_std: list[float] | None = field(default=None, metadata={"help": "Standard deviation of each channel."})


@dataclass
class DataArguments:
    """Where the clips are, and what is done to them in training."""

    data_dir: str = field(metadata={"help": "Folder of the data set."})
    dataset: str = field(default="folder", metadata={"help": "Layout of --data_dir.", "choices": DATASETS})
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    validation_split: str | None = field(
        default=None, metadata={"help": "Split to evaluate on: validation where there is one."}
    )
    validation_fraction: float = field(
        default=0.1,
        metadata={"help": "Share of the training clips held out where there is no validation split; 0: none."},
    )
    short_side: list[int] | None = field(
        default=None,
        metadata={"help": "Range of the short-side jitter in pixels: 1 to 9/7 of --image_size."},
    )
    flip: bool = field(default=True, metadata={"help": "Mirror half of the clips; ssv2 is never mirrored."})
    shuffle_buffer: int = field(
        default=256, metadata={"help": "Clips of tar shards that each worker shuffles at a time, in memory."}
    )
    stream_processes: int | None = field(
        default=None,
        metadata={
            "help": "Processes that the order of clips from tar shards is laid out for, if not as many as there are: "
            "with the same total batch the same clips then make up each step on fewer processes."
        },
    )
    missing_file: str | None = field(
        default=None, metadata={"help": "Where to list clips that the annotations name and the disk lacks."}
    )
    color_jitter: float = field(default=0.0, metadata={"help": "Strength of brightness, contrast, saturation jitter."})
    mixup: float = field(default=0.0, metadata={"help": "alpha of mixup; 0: none."})
    recipe: str | None = field(
        default="small-set", metadata={"help": "Name or file of a recipe in scripts/recipes, or none."}
    )


def parse_arguments(argv: list[str]) -> tuple[ModelArguments, DataArguments, VideoTrainingArguments]:
    parser = HfArgumentParser((ModelArguments, DataArguments, VideoTrainingArguments), allow_abbrev=False)
    message = apply_recipe(parser, argv, RECIPES, default="small-set")
    model_args, data_args, args = parser.parse_args_into_dataclasses(argv)
    set_up_logging(args)
    if message:
        logger.info(message)
    return model_args, data_args, args


def set_up_logging(args: VideoTrainingArguments) -> None:
    level = logging.INFO if args.process_index == 0 else logging.WARNING
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.WARNING)
    logger.setLevel(level)
    logging.getLogger("hf_timesformer").setLevel(level)
    transformers_logging.set_verbosity(args.get_process_log_level())
    warn_of_lone_process(args.world_size)


def find_splits(data: DataArguments, seed: int) -> tuple[FoundVideos, FoundVideos | None]:
    """The clips to train on and, unless held out later or not wanted, those to evaluate on."""
    missing_file = Path(data.missing_file) if data.missing_file else None
    options = {"missing_file": missing_file} if missing_file else {}
    train = find_videos(data.dataset, data.data_dir, data.train_split, **options)
    splits = available_splits(data.dataset, data.data_dir)
    validation_split = data.validation_split or ("validation" if "validation" in splits else None)
    if validation_split:
        return train, find_videos(data.dataset, data.data_dir, validation_split)
    if data.validation_fraction == 0:
        return train, None
    if train.shards is not None:
        raise ValueError(
            f"{data.data_dir} has no validation split, and clips in tar shards cannot be held out: "
            "give --validation_split, or --validation_fraction 0 to train without evaluation"
        )
    kept, held_out = hold_out(train.videos, data.validation_fraction, seed=seed)
    logger.info("no validation split: %d of %d clips are held out", len(held_out), len(train.videos))
    if not len(held_out):
        logger.warning("no class has two clips, so none can be held out: training goes without evaluation")
        return train, None
    return replace(train, videos=kept), replace(train, videos=held_out)


def make_source(found: FoundVideos, data: DataArguments, args: VideoTrainingArguments, training: bool) -> ClipSource:
    """Rows on disk or tar shards as the source that the batches are read from."""
    if found.shards is None:
        return RecordSource(found.videos)
    if args.auto_find_batch_size:
        raise ValueError(
            "--auto_find_batch_size does not go with tar shards, whose order is laid out for one batch size"
        )
    sizes = found.shard_sizes or count_clips(found.shards)
    processes = (data.stream_processes if training else None) or args.world_size
    total_batch = (args.train_batch_size if training else args.eval_batch_size) * args.world_size
    if processes % args.world_size or total_batch % processes:
        raise ValueError(
            f"stream_processes {processes} must be a multiple of the {args.world_size} processes "
            f"and divide their batch of {total_batch} clips"
        )
    workers = max(args.dataloader_num_workers, 1)
    layout = StreamLayout(sum(sizes), total_batch // processes, num_processes=processes, num_workers=workers)
    if training:
        warn_of_few_shards(len(sizes), layout)
    buffer = data.shuffle_buffer if training else 0
    return ShardSource(found.videos, sizes, layout, shuffle_buffer=buffer, seed=args.seed)


def make_augmentation(processor: TimeSformerVideoProcessor, data: DataArguments) -> ClipAugmentation:
    """Training augmentation for crops of the processor's size."""
    side = processor.crop_size["height"]
    if data.dataset == "ssv2" and data.flip:
        logger.info("ssv2 tells left from right: clips are not mirrored")
    return ClipAugmentation(
        side,
        short_side=tuple(data.short_side or (side, round(side * 9 / 7))),
        flip=data.flip and data.dataset != "ssv2",
        color_jitter=data.color_jitter,
        image_mean=processor.image_mean,
        image_std=processor.image_std,
    )


def choose_checkpoint(args: VideoTrainingArguments) -> str | None:
    """The checkpoint to go on from, if any. Raises ValueError where an old run's checkpoints are in the way."""
    if args.resume_from_checkpoint:
        return str(find_checkpoint(args.output_dir, args.resume_from_checkpoint))
    if list_checkpoints(args.output_dir):
        raise ValueError(
            f"{args.output_dir} has the checkpoints of another run: pass --resume_from_checkpoint or remove it"
        )
    return None


def make_network(model: ModelArguments, class_names: list[str], args: VideoTrainingArguments):
    """The network with what is frozen in it, the id that it gives to each class, and the processor of the run."""
    overrides = parse_overrides(model.config_overrides)
    network, label_ids = load_network(
        class_names,
        model=model.model,
        from_vit=model.from_vit,
        new_head=model.new_head,
        config_overrides=overrides,
        drop_path_rate=overrides.get("drop_path_rate", model.drop_path_rate),  # a recipe may have the other one
        attention_type=model.attention_type,
        num_frames=model.num_frames,
        image_size=model.image_size,
    )
    if model.attn_implementation:
        network.set_attn_implementation(model.attn_implementation)
    names = ("image_size", "num_frames", "sampling", "sampling_rate", "target_fps", "image_mean", "image_std")
    settings = {name: getattr(model, name) for name in names}
    processor = make_processor(network.config, model.model or model.from_vit, **settings)
    if not (model.model or model.from_vit) and args.freeze_depth:
        logger.info("nothing is pretrained, so nothing is frozen")
        args.freeze_depth = 0.0
    if not (model.from_vit or model.new_head) and args.probe_passes:
        logger.info("the classifier is not a new one on a pretrained network: it is not fitted before the training")
        args.probe_passes, args.refit_classifier = 0, False
    if not model.from_vit and args.temporal_learning_rate:
        logger.info("not from an image ViT: temporal attention and time embeddings learn at --learning_rate, too")
        args.temporal_learning_rate = None
    freeze_parameters(network, args.freeze, args.freeze_depth)
    return network, label_ids, processor


def save_results(trainer: VideoTrainer, metrics: dict, model: ModelArguments, data: DataArguments) -> None:
    """Write the model, the processor, `train_results.json` and the learning curve to the output folder."""
    args = trainer.args
    trainer.save_model()
    trainer.save_state()
    metrics |= trainer.final_metrics()
    metrics |= {  # what the model card says of the run
        "base_model": model.model or model.from_vit,
        "dataset": data.dataset,
        "data_dir": data.data_dir,
        "recipe": extract_hyperparameters_from_trainer(trainer),
    }
    trainer.log_metrics("train", {name: value for name, value in metrics.items() if isinstance(value, (int, float))})
    trainer.save_metrics("train", metrics)
    if args.process_index == 0:
        draw_curve(trainer.state.log_history, Path(args.output_dir) / "training_curve.png")
        logger.info("model, processor, train_results.json and training_curve.png are in %s", args.output_dir)
    if args.push_to_hub:
        trainer.push_to_hub()


def train(model_args: ModelArguments, data_args: DataArguments, args: VideoTrainingArguments) -> None:
    """The whole run, from the clips on disk to the model in the output folder."""
    started = time.time()
    set_seed(args.seed)
    checkpoint = choose_checkpoint(args)

    train_videos, validation_videos = find_splits(data_args, args.seed)
    if train_videos.shards is None:
        check_every_class_is_readable(train_videos.videos)
    network, label_ids, processor = make_network(model_args, train_videos.class_names, args)
    args.scale_learning_rates()

    source = make_source(train_videos, data_args, args, training=True)
    augmentation = make_augmentation(processor, data_args)
    training = TrainingClips(source, FrameSampling.of(processor), augmentation, label_ids=label_ids, seed=args.seed)
    validation = None
    if validation_videos is not None:
        source = make_source(validation_videos, data_args, args, training=False)
        validation = EvaluationClips(source, processor, label_ids=label_ids)
    else:
        args.eval_strategy, args.load_best_model_at_end = IntervalStrategy.NO, False
    logger.info("%d clips to train on, %d classes", len(training), len(train_videos.class_names))

    trainer = VideoTrainer(
        model=network,
        args=args,
        train_dataset=training,
        eval_dataset=validation,
        data_collator=ClipCollator(network.config.num_labels, mixup_alpha=data_args.mixup),
        compute_metrics=clip_metrics,
        processing_class=processor,
    )
    result = trainer.train(resume_from_checkpoint=checkpoint)
    save_results(trainer, result.metrics | {"wall_seconds": round(time.time() - started, 1)}, model_args, data_args)


def main() -> None:
    with user_errors():
        model_args, data_args, args = parse_arguments(sys.argv[1:])
        with only_run_in(args.output_dir) if args.process_index == 0 else nullcontext():
            train(model_args, data_args, args)
        end_process_group()


if __name__ == "__main__":
    main()
