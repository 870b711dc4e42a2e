"""From records to batches: which clip comes when, its frames, and what stands in for a clip that
cannot be read.

An epoch is laid out as a sequence of keys before anything is read. What happens to a clip (its
frames, its crop) depends on the seed, the epoch and the clip alone, never on the worker or on what
was read before: so a resumed run skips keys, not videos, and goes on with the very clips that would
have come next.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from datasets import Dataset, IterableDataset

from ..video.decoding import VideoDecodeError
from ..video.timed_frames import sample_video
from ..video.video_processing_timesformer import TimeSformerVideoProcessor
from ..video.views import count_channels
from .augmentation import ClipAugmentation, cut_and_mix_clips, mix_clips
from .faults import BadClipsError, Fault, describe_fault, list_faults
from .record_video import DEFAULT_READING, ReadSettings, decode_record, process_record
from .retries import read_with_retries
from .row_source import ClipKey, ClipSource
from .targets import NO_CLIP, SINGLE_LABEL, UNREADABLE, collate_targets, target_of


@dataclass(frozen=True)
class FrameSampling:
    """Which frames a clip takes: `num_frames` of them, by the policy `sampling` ("clip", with one
    frame in `sampling_rate`, at `target_fps` frames a second where given; or "segments"), as
    `sample_indices` has it.
    """

    num_frames: int
    sampling: str = "clip"
    sampling_rate: float = 32
    target_fps: float | None = None

    @classmethod
    def of(cls, processor: TimeSformerVideoProcessor) -> "FrameSampling":
        """The settings of a processor."""
        return cls(
            processor.num_frames, processor.sampling, processor.sampling_rate, processor.target_fps
        )

    def indices(self, metadata: Any, generator: np.random.Generator | None = None) -> np.ndarray:
        """Choose the frames of one clip.

        Args:
            metadata: of the video, as `probe_video` gives it.
            generator: draws the place of the clip, as in training; None takes the middle.

        Returns:
            Frame numbers `(num_frames,)`.
        """
        return sample_video(
            metadata,
            self.sampling,
            num_frames=self.num_frames,
            sampling_rate=self.sampling_rate,
            target_fps=self.target_fps,
            generator=generator,
        )[0]


class TrainingClips(torch.utils.data.Dataset):
    """Randomly sampled and augmented clips by `ClipKey`; a clip that cannot be read is replaced and
    reported.

    Args:
        source: where the records come from.
        sampling: which frames a clip takes.
        augmentation: what is done to them.
        label_ids: the model's number for each class of the data (`labels.match_labels`).
        seed: with the key it decides all that is drawn for a clip.
        repeats: how many augmented views are made of a clip that is decoded once (Hoffer et al.
            2020, "Augment Your Batch"); with more than 1, an item is a list of them.
        reading: of files.
    """

    def __init__(
        self,
        source: ClipSource,
        sampling: FrameSampling,
        augmentation: ClipAugmentation,
        *,
        label_ids: Sequence[int],
        seed: int,
        repeats: int = 1,
        reading: ReadSettings = DEFAULT_READING,
    ):
        self.source, self.sampling, self.augmentation = source, sampling, augmentation
        self.label_ids, self.seed, self.repeats = label_ids, seed, repeats
        self.reading = reading

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: ClipKey) -> dict[str, Any] | list[dict[str, Any]]:
        """One clip for `ClipCollator`, with `pixel_values` float32 `(T, 3, H, W)`, or a list of
        `repeats` of them.

        Raises:
            BadClipsError: no stand-in can be read either.
        """
        entropy = [self.seed, *key]
        faults = []
        for record in self.source.candidates(key):
            try:
                views = read_with_retries(partial(self._read, record, entropy), record["video_id"])
            except (VideoDecodeError, OSError) as error:
                faults.append(describe_fault(record["video_id"], error))
                continue
            items = [
                {
                    "pixel_values": pixel_values,
                    "labels": target_of(record, self.label_ids),
                    "video_id": record["video_id"],
                    "faults": faults,
                    "entropy": entropy,
                }
                for pixel_values in views
            ]
            return items if self.repeats > 1 else items[0]
        raise BadClipsError(
            f"none of {len(faults)} clips in a row can be read: {list_faults(faults)}"
        )

    def _read(self, record: Mapping[str, Any], entropy: Sequence[int]) -> list[torch.Tensor]:
        """The frames of a record, decoded once, as `repeats` augmented views `(T, 3, H, W)`."""
        generator = np.random.default_rng(entropy)  # made here, so that a second try draws the same
        short_side = self.augmentation.draw_short_side(generator)
        frames, _ = decode_record(
            record,
            lambda metadata: self.sampling.indices(metadata, generator),
            short_side=short_side,
            reading=self.reading,
        )
        return [self.augmentation(frames, short_side, generator) for _ in range(self.repeats)]


class EvaluationClips(torch.utils.data.Dataset):
    """Each video as the processor cuts it, by `ClipKey` or by row; for evaluation during training
    and after it.

    Args:
        source: where the records come from.
        processor: frames, crops and views are as its settings say.
        label_ids: the model's number for each class of the data (`labels.match_labels`).
    """

    def __init__(
        self, source: ClipSource, processor: TimeSformerVideoProcessor, *, label_ids: Sequence[int]
    ):
        self.source, self.processor, self.label_ids = source, processor, label_ids

    def __len__(self) -> int:
        return self.source.num_keys

    def __getitem__(self, key: int | ClipKey) -> dict[str, Any]:
        """The item of `read_for_evaluation`; a place of a stream that has no clip has the label
        `NO_CLIP`.
        """
        record = next(
            self.source.candidates(key if isinstance(key, ClipKey) else ClipKey(0, key)), None
        )
        if record is None:  # a place that only fills up the last batch of a stream
            return {
                "video_id": "",
                "faults": [],
                "pixel_values": _blank(self.processor),
                "labels": NO_CLIP,
            }
        return read_for_evaluation(record, self.processor, self.label_ids)


class StreamedEvaluationClips(torch.utils.data.IterableDataset):
    """As `EvaluationClips`, the videos of a stream in its order, each in exactly one worker of the
    `DataLoader`.

    For streams whose length is not known; `datasets` deals the shards to the workers.
    """

    def __init__(
        self,
        videos: IterableDataset,
        processor: TimeSformerVideoProcessor,
        *,
        label_ids: Sequence[int],
    ):
        self.videos, self.processor, self.label_ids = videos, processor, label_ids

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for record in self.videos:
            yield read_for_evaluation(record, self.processor, self.label_ids)


def read_for_evaluation(
    record: Mapping[str, Any], processor: TimeSformerVideoProcessor, label_ids: Sequence[int]
) -> dict[str, Any]:
    """One record as an item for `ClipCollator`.

    Returns:
        `pixel_values`, float32 `(T, 3, H, W)`, or `(views, T, 3, H, W)` where the processor
        makes several views; `labels`; `video_id`; and `faults`, empty unless the video cannot
        be read. Then it has one entry, `labels` is `UNREADABLE`, and the pixels are zero.
    """
    item = {"video_id": record["video_id"], "faults": []}
    try:
        read = partial(process_record, record, processor)
        pixel_values = read_with_retries(read, record["video_id"])
    except (VideoDecodeError, OSError) as error:
        fault = describe_fault(record["video_id"], error)
        return item | {"pixel_values": _blank(processor), "labels": UNREADABLE, "faults": [fault]}
    return item | {"pixel_values": pixel_values, "labels": target_of(record, label_ids)}


def _blank(processor: TimeSformerVideoProcessor) -> torch.Tensor:
    """Zeros in the shape of a processed video: `(t, c, h, w)`, of several views
    `(views, t, c, h, w)`.
    """
    crop, views = processor.crop_size, processor.num_clips * processor.num_crops
    channels = count_channels(processor.image_mean)
    blank = torch.zeros(views, processor.num_frames, channels, crop["height"], crop["width"])
    return blank if views > 1 else blank[0]


class ClipCollator:
    """Items to batches: `pixel_values` `(B, T, 3, H, W)`, `labels`, plus, for reporting,
    `video_ids` and `faults`.

    The last two only where the items have them; those of plain data sets have `pixel_values` and
    `labels`.

    Args:
        num_classes: classes of the model.
        mixup_alpha: where not 0, training clips are mixed in pairs, in the workers. Class numbers
            then become soft labels `(B, num_classes)`.
        cutmix_alpha: where not 0, a rectangle of each clip comes from another one (CutMix). With
            both, each batch is mixed in one way or the other.
        problem_type: as in `targets`, which has the shapes of `labels`; None is one class a clip.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        mixup_alpha: float = 0.0,
        cutmix_alpha: float = 0.0,
        problem_type: str | None = None,
    ):
        self.num_classes, self.mixup_alpha, self.cutmix_alpha = (
            num_classes,
            mixup_alpha,
            cutmix_alpha,
        )
        self.problem_type = problem_type or SINGLE_LABEL

    def __call__(
        self, items: Sequence[Mapping[str, Any] | list[Mapping[str, Any]]]
    ) -> dict[str, Any]:
        """The batch of some items; an item may be a list of views of one clip, each of which is an
        item then.
        """
        views = [view for item in items for view in (item if isinstance(item, list) else [item])]
        pixel_values = torch.stack([view["pixel_values"] for view in views])
        labels = collate_targets(
            [view["labels"] for view in views], self.num_classes, self.problem_type
        )
        if "entropy" in views[0]:  # a batch to train on
            pixel_values, labels = self._mix(pixel_values, labels, [*views[0]["entropy"], 1])
        batch: dict[str, Any] = {"pixel_values": pixel_values, "labels": labels}
        if "faults" in views[0]:
            batch["video_ids"] = [view["video_id"] for view in views]
            batch["faults"] = [tuple(fault) for view in views for fault in view["faults"]]
        return batch

    def _mix(
        self, pixel_values: torch.Tensor, labels: torch.Tensor, entropy: list[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The batch as it is, or mixed by mixup or CutMix; what is drawn follows from `entropy`.

        Clips `(b, t, c, h, w)` keep their shape. Labels, `(b,)` or `(b, num_classes)`, keep theirs
        too, but class numbers that are mixed become `(b, num_classes)`.
        """
        generator = np.random.default_rng(entropy)
        ways = [(mix_clips, self.mixup_alpha), (cut_and_mix_clips, self.cutmix_alpha)]
        ways = [(mix, alpha) for mix, alpha in ways if alpha]
        if not ways:
            return pixel_values, labels
        mix, alpha = ways[int(generator.integers(2))] if len(ways) == 2 else ways[0]
        return mix(pixel_values, labels, self.num_classes, alpha, generator)


def check_every_class_is_readable(
    records: Dataset, reading: ReadSettings = DEFAULT_READING
) -> list[Fault]:
    """Decode one frame of a clip of every class; the faults met on the way.

    Raises BadClipsError that names the classes without a readable clip.
    """
    faults, unreadable = [], []
    labels = np.asarray(records["label"])
    names = records.features["label"].names
    for label in np.unique(labels):
        tried = []
        for index in np.flatnonzero(labels == label):
            fault = _try_first_frame(records[int(index)], reading)
            if fault is None:
                break
            tried.append(fault)
        else:
            unreadable.append(f"{names[label]!r} ({list_faults(tried)})")
        faults += tried
    if unreadable:
        raise BadClipsError(
            f"no readable clip in class {', '.join(unreadable)}: repair the clips or remove the class folder"
        )
    return faults


def _try_first_frame(record: Mapping[str, Any], reading: ReadSettings) -> Fault | None:
    try:
        read = partial(decode_record, record, [0], reading=reading)
        read_with_retries(read, record["video_id"])
    except (VideoDecodeError, OSError) as error:
        return describe_fault(record["video_id"], error)
    return None
