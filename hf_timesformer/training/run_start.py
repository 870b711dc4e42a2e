"""How the temporal half of a run's network starts: as named, as in the run that goes on, or as suits
the clips.
"""

import copy
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from ..data.clips import ClipCollator, EvaluationClips
from ..data.found_videos import FoundVideos
from ..data.hold_out import find_groups
from ..data.row_source import RecordSource
from ..data.targets import SINGLE_LABEL
from ..model.modeling_timesformer import TimeSformerForVideoClassification
from ..video.video_processing_timesformer import TimeSformerVideoProcessor
from .arguments import VideoTrainingArguments
from .first_process import of_first_process
from .run_clips import spread_rows
from .temporal_choice import (
    FEWEST_CLIPS,
    USUAL,
    TemporalStart,
    choose_start,
    clips_to_look_at,
    saved_start,
)
from .temporal_comparisons import CLIPS
from .temporal_start import (
    NEEDS_CLIPS,
    RATES,
    has_temporal_half_that_learns,
    start_blocks,
    start_time_embeddings,
)


logger = logging.getLogger(__name__)

SEED = 0  # of which clips are looked at: the same in every run


def start_network(
    network: TimeSformerForVideoClassification,
    name: str,
    found: FoundVideos,
    processor: TimeSformerVideoProcessor,
    args: VideoTrainingArguments,
    *,
    label_ids: list[int],
    group_by: str | None = None,
    checkpoint: str | Path | None = None,
) -> TemporalStart:
    """Start a network from an image ViT as `--temporal_start` says, and say how; all processes must
    call it.

    Args:
        network: settled which parameters learn.
        name: one of `START_CHOICES`; with `auto` the start is chosen by the clips.
        found: the clips to train on.
        processor: of the run.
        args: of the run.
        label_ids: the model's number for each class of the data.
        group_by: as of `hold_out`.
        checkpoint: that the run goes on from; its start is taken over by `auto`.

    Raises:
        ValueError: a start that must see some clips first, and these are in tar shards, or none can
            be read; in the other processes also where the first one has failed.
    """
    if name == "attention" or not start_time_embeddings(network):
        return TemporalStart("attention")
    if not any(map(has_temporal_half_that_learns, network.timesformer.encoder.layer)):
        logger.info(
            "time embeddings start at random; no temporal attention learns that could start"
        )
        return TemporalStart("attention")
    start = TemporalStart(name)
    if name == "auto":
        choose = partial(_choose, network, found, processor, args, label_ids, group_by)
        start = _go_on(checkpoint) if checkpoint else _settle(network, found, args, choose)
    if start.name in NEEDS_CLIPS:
        look = partial(_some_clips, found, processor, label_ids)
        count = _start_by_clips(network, start.name, look, args)
    else:
        count = start_blocks(network, start.name)
    logger.info(
        "time embeddings start at random, and the temporal heads of %d blocks as in --temporal_start %s",
        count,
        start.name,
    )
    return start


def _start_by_clips(
    network: TimeSformerForVideoClassification,
    name: str,
    look: Callable[[], torch.Tensor],
    args: VideoTrainingArguments,
) -> int:
    """Start with what is learned from the clips that `look` gives; the first process learns it for
    all, so that none differs in a last digit."""
    layers: Any = network.timesformer.encoder.layer
    learning = [layer for layer in layers if has_temporal_half_that_learns(layer)]

    def learn() -> list[dict[str, torch.Tensor]]:
        count = start_blocks(network, name, look(), device=args.device, dtype=_dtype(args))
        return [_temporal_half(layer) for layer in learning[:count]]

    halves = of_first_process(learn, args)
    if args.process_index > 0:
        for layer, weights in zip(learning, halves):
            layer.load_state_dict(weights, strict=False)
    return len(halves)


def _temporal_half(layer: Any) -> dict[str, torch.Tensor]:
    """The weights of a block that `start_blocks` may have changed, by name."""
    return {
        name: weight for name, weight in layer.state_dict().items() if name.startswith("temporal_")
    }


def settle_temporal_rate(args: VideoTrainingArguments, start: str) -> VideoTrainingArguments:
    """A copy of `args` with the learning rate that suits that start of the temporal half."""
    args = copy.copy(args)
    if args.temporal_learning_rate and start in RATES:
        args.temporal_learning_rate *= RATES[start]
        logger.info(
            "--temporal_start %s: the temporal half learns at %g times --temporal_learning_rate, %g",
            start,
            RATES[start],
            args.temporal_learning_rate,
        )
    return args


def _go_on(checkpoint: str | Path) -> TemporalStart:
    start = saved_start(checkpoint)
    if start is None:
        logger.info("%s does not say how its run started: as in --temporal_start parts", checkpoint)
        return TemporalStart(USUAL)
    logger.info("--temporal_start auto took %s when the run of %s began", start.name, checkpoint)
    return start


def _settle(
    network: TimeSformerForVideoClassification,
    found: FoundVideos,
    args: VideoTrainingArguments,
    choose: Callable[[], TemporalStart],
) -> TemporalStart:
    """The start that suits the clips, of all processes the same; where none can be chosen, the usual
    one.
    """
    obstacle = _obstacle(found, args)
    if obstacle is not None:
        logger.info("--temporal_start auto takes %s: %s", USUAL, obstacle)
        return TemporalStart(USUAL)
    choice = of_first_process(choose, args)
    if args.process_index == 0:
        logger.info(choice.describe())
    return choice


def _obstacle(found: FoundVideos, args: VideoTrainingArguments) -> str | None:
    """Why no start can be chosen by the clips; None where one can."""
    if found.shards is not None:
        return "clips in tar shards are not chosen from"
    if found.problem_type != SINGLE_LABEL:
        return f"it is judged by one class a clip, and the problem is {found.problem_type}"
    if args.deepspeed:
        return "DeepSpeed may have spread the network over the processes"
    if not clips_to_look_at(len(found.videos)):
        return f"{len(found.videos)} clips are too few to tell (fewer than {FEWEST_CLIPS})"
    return None


def _choose(
    network: TimeSformerForVideoClassification,
    found: FoundVideos,
    processor: TimeSformerVideoProcessor,
    args: VideoTrainingArguments,
    label_ids: list[int],
    group_by: str | None,
) -> TemporalStart:
    records = _spread(found, clips_to_look_at(len(found.videos)))
    loader = torch.utils.data.DataLoader(
        EvaluationClips(RecordSource(records), _one_view(processor), label_ids=label_ids),
        batch_size=args.eval_batch_size,
        collate_fn=ClipCollator(network.num_labels),
        num_workers=args.dataloader_num_workers,
        generator=torch.Generator().manual_seed(SEED),  # the run's own stays as it is
    )
    return choose_start(
        network,
        loader,
        _group_numbers(records, group_by),
        clips=_some_clips(found, processor, label_ids),
        device=args.device,
        dtype=_dtype(args),
    )


def _some_clips(
    found: FoundVideos, processor: TimeSformerVideoProcessor, label_ids: list[int]
) -> torch.Tensor:
    """A few of the clips, `(n, t, c, h, w)`: the same in every process, and in a run that goes on.

    Raises ValueError for tar shards.
    """
    if found.shards is not None:
        raise ValueError(
            f"--temporal_start {', '.join(NEEDS_CLIPS)} looks at some clips from all over the data before "
            "the training, and shards are read from the front: give parts or changes"
        )
    records = _spread(found, min(CLIPS, len(found.videos)))
    clips = EvaluationClips(RecordSource(records), _one_view(processor), label_ids=label_ids)
    items = [clips[row] for row in range(len(clips))]
    readable = [item["pixel_values"] for item in items if not item["faults"]]
    if not readable:
        raise ValueError(
            f"none of {len(items)} clips can be read, such as {items[0]['faults'][0]}: "
            "--temporal_start comparisons must see some"
        )
    return torch.stack(readable)


def _spread(found: FoundVideos, count: int) -> Dataset:
    """That many of the clips, of each class in proportion; always the same."""
    return found.videos.select(spread_rows(found, count, np.random.default_rng(SEED)))


def _one_view(processor: TimeSformerVideoProcessor) -> TimeSformerVideoProcessor:
    """The processor, with which a clip has one view, in the middle."""
    middle = copy.copy(processor)
    middle.num_clips = middle.num_crops = 1
    return middle


def _dtype(args: VideoTrainingArguments) -> torch.dtype | None:
    """That of the run's autocast."""
    return torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None


def _group_numbers(records: Dataset, group_by: str | None) -> list[int]:
    """The group of each record, by `find_groups`."""
    numbers = [0] * len(records)
    for number, rows in enumerate(find_groups(records, group_by)):
        for row in rows:
            numbers[row] = number
    return numbers
