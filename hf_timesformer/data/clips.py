"""From records to batches: which clip comes when, its frames, and what stands in for a clip that cannot be read.

An epoch is laid out as a sequence of keys before anything is read. What happens to a clip (its frames, its crop)
depends on the seed, the epoch and the clip alone, never on the worker or on what was read before: so a resumed run
skips keys, not videos, and goes on with the very clips that would have come next.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from ..video.decoding import VideoDecodeError, decode_video
from ..video.sampling import sample_indices
from ..video.video_processing_timesformer import TimeSformerVideoProcessor
from .augmentation import ClipAugmentation, mix_clips
from .faults import BadClipsError, Fault, describe_fault, list_faults
from .row_source import ClipKey, ClipSource


# Labels of what no loss and no metric counts: a place without a clip, and a clip that cannot be read.
NO_CLIP = -100
UNREADABLE = -101


@dataclass(frozen=True)
class FrameSampling:
    """Which frames a clip takes; the names and meanings of `sampling.sample_indices`."""

    num_frames: int
    sampling: str = "clip"
    sampling_rate: float = 32
    target_fps: float | None = None

    @classmethod
    def of(cls, processor: TimeSformerVideoProcessor) -> "FrameSampling":
        """The settings of a processor."""
        return cls(processor.num_frames, processor.sampling, processor.sampling_rate, processor.target_fps)

    def indices(self, metadata: Any, generator: np.random.Generator | None = None) -> np.ndarray:
        """Frame numbers `(num_frames,)` for a video of that metadata; at random where a generator is given."""
        return sample_indices(
            self.sampling,
            metadata.total_num_frames,
            num_frames=self.num_frames,
            sampling_rate=self.sampling_rate,
            fps=metadata.fps,
            target_fps=self.target_fps,
            generator=generator,
        )[0]


class TrainingClips(torch.utils.data.Dataset):
    """Randomly sampled and augmented clips by `ClipKey`; a clip that cannot be read is replaced and reported."""

    def __init__(
        self,
        source: ClipSource,
        sampling: FrameSampling,
        augmentation: ClipAugmentation,
        *,
        label_ids: Sequence[int],
        seed: int,
    ):
        self.source, self.sampling, self.augmentation = source, sampling, augmentation
        self.label_ids, self.seed = label_ids, seed

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: ClipKey) -> dict[str, Any]:
        """Item with `pixel_values` `(T, 3, H, W)`. Raises BadClipsError where no stand-in can be read either."""
        entropy = [self.seed, *key]
        faults = []
        for record in self.source.candidates(key):
            try:
                pixel_values = self._read(record["video"], np.random.default_rng(entropy))
            except (VideoDecodeError, OSError) as error:
                faults.append(describe_fault(record["video_id"], error))
                continue
            return {
                "pixel_values": pixel_values,
                "labels": self.label_ids[record["label"]],
                "video_id": record["video_id"],
                "faults": faults,
                "entropy": entropy,
            }
        raise BadClipsError(f"none of {len(faults)} clips in a row can be read: {list_faults(faults)}")

    def _read(self, video: str | bytes, generator: np.random.Generator) -> torch.Tensor:
        short_side = self.augmentation.draw_short_side(generator)
        frames, _ = decode_video(
            video, lambda metadata: self.sampling.indices(metadata, generator), short_side=short_side
        )
        return self.augmentation(frames, short_side, generator)


class EvaluationClips(torch.utils.data.Dataset):
    """Each video as the processor cuts it; one that cannot be read has the label `UNREADABLE`.

    `pixel_values` are `(T, 3, H, W)`, or `(views, T, 3, H, W)` where the processor makes more than one view.
    """

    def __init__(self, source: ClipSource, processor: TimeSformerVideoProcessor, *, label_ids: Sequence[int]):
        self.source, self.processor, self.label_ids = source, processor, label_ids

    def __len__(self) -> int:
        return self.source.num_keys

    def __getitem__(self, key: int | ClipKey) -> dict[str, Any]:
        record = next(self.source.candidates(key if isinstance(key, ClipKey) else ClipKey(0, key)), None)
        if record is None:  # a place that only fills up the last batch of a stream
            return {"video_id": "", "faults": [], "pixel_values": self._blank(), "labels": NO_CLIP}
        item = {"video_id": record["video_id"], "faults": []}
        try:
            pixel_values = self.processor(record["video"], return_tensors="pt")["pixel_values"][0]
            return item | {"pixel_values": pixel_values, "labels": self.label_ids[record["label"]]}
        except (VideoDecodeError, OSError) as error:
            item["faults"] = [describe_fault(record["video_id"], error)]
            return item | {"pixel_values": self._blank(), "labels": UNREADABLE}

    def _blank(self) -> torch.Tensor:
        crop, views = self.processor.crop_size, self.processor.num_clips * self.processor.num_crops
        blank = torch.zeros(views, self.processor.num_frames, 3, crop["height"], crop["width"])
        return blank if views > 1 else blank[0]


class ClipCollator:
    """Batch with `pixel_values` `(B, T, 3, H, W)`, `labels`, and by the way `video_ids` and `faults`.

    With `mixup_alpha` training clips are mixed in the workers and `labels` are soft, `(B, num_classes)`.
    """

    def __init__(self, num_classes: int, *, mixup_alpha: float = 0.0):
        self.num_classes, self.mixup_alpha = num_classes, mixup_alpha

    def __call__(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        pixel_values = torch.stack([item["pixel_values"] for item in items])
        labels = torch.tensor([item["labels"] for item in items])
        if self.mixup_alpha and "entropy" in items[0]:
            generator = np.random.default_rng([*items[0]["entropy"], 1])
            pixel_values, labels = mix_clips(pixel_values, labels, self.num_classes, self.mixup_alpha, generator)
        return {
            "pixel_values": pixel_values,
            "labels": labels,
            "video_ids": [item["video_id"] for item in items],
            "faults": [tuple(fault) for item in items for fault in item["faults"]],
        }


def check_every_class_is_readable(records: Dataset) -> list[Fault]:
    """Decode one frame of a clip of every class; the faults met on the way.

    Raises BadClipsError that names the classes without a readable clip.
    """
    faults, unreadable = [], []
    labels = np.asarray(records["label"])
    names = records.features["label"].names
    for label in np.unique(labels):
        tried = []
        for index in np.flatnonzero(labels == label):
            fault = _try_first_frame(records[int(index)])
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


def _try_first_frame(record: Mapping[str, Any]) -> Fault | None:
    try:
        decode_video(record["video"], [0])
    except (VideoDecodeError, OSError) as error:
        return describe_fault(record["video_id"], error)
    return None
