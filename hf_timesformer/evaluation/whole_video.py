"""All of a long video: as many clips as cover it, a few at a time, their scores averaged (the
paper, section 4.5).

A video of 2000 frames whose clips span 256 takes 8 clips, spread evenly from its first frame to its
last. Its views would fill the memory of a machine if the video were long enough, so they are made
and run in pieces.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset, IterableDataset
from torch.utils.data import DataLoader
from transformers.video_utils import VideoMetadata

from ..data.faults import describe_fault
from ..data.record_video import ReadSettings, segment_of, video_of
from ..data.targets import target_of
from ..video.decoding import VideoDecodeError, decode_video
from ..video.timed_frames import sample_video
from ..video.video_processing_timesformer import TimeSformerVideoProcessor


CLIPS_AT_A_TIME = 4


def clips_that_cover(processor: TimeSformerVideoProcessor, metadata: VideoMetadata) -> int:
    """How many of the processor's clips cover a video; one that samples segments of the whole
    covers it at once.
    """
    if processor.sampling == "segments":
        return 1
    speed = metadata.fps / processor.target_fps if processor.target_fps and metadata.fps else 1
    span = processor.num_frames * processor.sampling_rate * speed  # in frames of the video
    return max(1, ceil(metadata.total_num_frames / span))


def covering_indices(processor: TimeSformerVideoProcessor, metadata: VideoMetadata) -> np.ndarray:
    """The frame numbers of these clips, `(clips, num_frames)`; by time where the rate varies."""
    return sample_video(
        metadata,
        processor.sampling,
        num_frames=processor.num_frames,
        sampling_rate=processor.sampling_rate,
        num_clips=clips_that_cover(processor, metadata),
        target_fps=processor.target_fps,
    )


def views_of_whole_video(
    processor: TimeSformerVideoProcessor,
    source: Any,
    *,
    clips_at_a_time: int = CLIPS_AT_A_TIME,
    allow_urls: bool = False,
    **segment: Any,
) -> Iterator[tuple[torch.Tensor, VideoMetadata]]:
    """The views of some clips after the others, `(clips * crops, t, c, h, w)`, until the video is
    covered.

    With each comes the video's metadata; its `frames_indices` are those of the clips of this piece.
    `segment` may be `start` and `end`, floats, in seconds. Raises VideoDecodeError.
    """
    options = ReadSettings.of(processor).for_video(source) | segment | {"allow_urls": allow_urls}
    plans: list[np.ndarray] = []

    def plan(metadata: VideoMetadata) -> list[int]:
        plans.append(covering_indices(processor, metadata))
        return []  # nothing is decoded yet

    decode_video(source, plan, **options)
    (indices,) = plans
    for begin in range(0, len(indices), clips_at_a_time):
        numbers = indices[begin : begin + clips_at_a_time]
        frames, found = decode_video(source, numbers.ravel().tolist(), **options)
        # (clips * t, c, h, w) -> clips of (t, c, h, w)
        clips = list(frames.unflatten(0, numbers.shape))
        views = processor(clips, do_sample_frames=False, return_tensors="pt")["pixel_values"]
        yield (views.flatten(0, 1) if views.ndim == 6 else views), found


class WholeVideos(torch.utils.data.IterableDataset):
    """Pieces of videos, each video in one worker of the `DataLoader` and its pieces in order.

    Args:
        videos: the records.
        rows: those of a map-style data set that are read; None for a stream, whose shards
            `datasets` deals out.
    """

    def __init__(
        self,
        videos: Dataset | IterableDataset,
        processor: TimeSformerVideoProcessor,
        label_ids: Sequence[int],
        rows: Sequence[int] | None,
        clips_at_a_time: int,
    ):
        self.videos, self.processor, self.label_ids = videos, processor, label_ids
        self.rows, self.clips_at_a_time = rows, clips_at_a_time

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        for record in self._records():
            yield from self._pieces(record)

    def _records(self) -> Iterator[Mapping[str, Any]]:
        if self.rows is None:
            yield from self.videos
            return
        worker = torch.utils.data.get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for row in list(self.rows)[first::step]:
            yield self.videos[row]

    def _pieces(self, record: Mapping[str, Any]) -> Iterator[list[dict[str, Any]]]:
        """Batches of one item, as `EvaluationClips` has them; `is_last` marks the last piece of a
        video.
        """
        item = {"video_id": record["video_id"], "faults": [], "is_last": False}
        held: dict[str, Any] | None = None
        try:
            pieces = views_of_whole_video(
                self.processor,
                video_of(record["video"]),
                clips_at_a_time=self.clips_at_a_time,
                **segment_of(record, ReadSettings.of(self.processor)),
            )
            for views, _ in pieces:
                if held is not None:
                    yield [held]
                held = item | {"pixel_values": views, "labels": target_of(record, self.label_ids)}
        except (VideoDecodeError, OSError) as error:
            yield [item | {"faults": [describe_fault(record["video_id"], error)]}]
            return
        assert held is not None  # at least one clip covers a video
        yield [held | {"is_last": True}]


def whole_video_loader(
    videos: Dataset | IterableDataset,
    processor: TimeSformerVideoProcessor,
    label_ids: Sequence[int],
    accelerator: Accelerator,
    clips_at_a_time: int,
    num_workers: int,
) -> DataLoader:
    """Pieces of this rank's share of the videos."""
    rank, world = accelerator.process_index, accelerator.num_processes
    rows = None
    if isinstance(videos, Dataset):
        rows = range(rank, len(videos), world)
    elif rank >= videos.num_shards:
        # fewer shards than ranks: nothing for this one
        videos, rows = Dataset.from_dict({}), range(0)
    else:
        videos = videos.shard(min(world, videos.num_shards), rank, contiguous=False)
        num_workers = min(num_workers, videos.num_shards)
    clips = WholeVideos(videos, processor, label_ids, rows, clips_at_a_time)
    return DataLoader(clips, batch_size=None, num_workers=num_workers)


@dataclass
class LogitSums:
    """Logits of pieces summed up until their video is complete; a whole video is its own only
    piece.

    `sums` holds, by the video's name, the sum over its views so far `(classes,)` and their number.
    """

    sums: dict[str, tuple[np.ndarray, int]] = field(default_factory=dict)

    def add(
        self, item: Mapping[str, Any], logits: np.ndarray
    ) -> tuple[str, Any, np.ndarray, int] | None:
        """Name, labels, mean logits and number of views of a video that this completes, else None.

        `logits` `(classes,)` are the mean over the item's views; its `pixel_values` are
        `(views, t, c, h, w)`, or `(t, c, h, w)` of one view.
        """
        views = item["pixel_values"].shape[0] if item["pixel_values"].ndim == 5 else 1
        before, count = self.sums.pop(item["video_id"], (0.0, 0))
        total, count = before + logits * views, count + views
        if not item.get("is_last", True):
            self.sums[item["video_id"]] = total, count
            return None
        return item["video_id"], item["labels"], (total / count).astype(np.float32), count
