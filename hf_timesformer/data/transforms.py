"""Rows of any `datasets` data set as inputs of the model, for plain `transformers.Trainer`.

    data = load_dataset(...).with_transform(TrainingTransform(processor))
    Trainer(model, args, train_dataset=data, data_collator=ClipCollator(num_labels),
    compute_metrics=ClipMetrics())

with `remove_unused_columns=False` among the arguments, since the transform needs the columns.
`VideoTrainer` adds an order of clips from which a run resumes exactly, and stand-ins for clips that
cannot be read; here one of these raises VideoDecodeError.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..video.video_processing_timesformer import TimeSformerVideoProcessor
from .augmentation import ClipAugmentation
from .clips import FrameSampling
from .record_video import ReadSettings, decode_record, process_record, video_of
from .targets import problem_type_of, target_of


class _Transform:
    """Rows with a video column and `label`, `labels` or `target` -> `pixel_values` and `labels`."""

    def __init__(
        self,
        processor: TimeSformerVideoProcessor,
        *,
        video_column: str = "video",
        label_ids: Sequence[int] | None = None,
    ):
        self.processor, self.video_column, self.label_ids = processor, video_column, label_ids

    def __call__(self, rows: Mapping[str, Sequence[Any]]) -> dict[str, list]:
        """Some rows, as `datasets` gives them (a list for each column), as lists of inputs and
        labels.
        """
        count = len(rows[self.video_column])
        records = [
            {name: values[number] for name, values in rows.items()} for number in range(count)
        ]
        for record in records:
            record["video"] = video_of(record[self.video_column])
        problem_type_of(rows)  # raises for none, or several, of the columns
        return {
            "pixel_values": [self.read(record) for record in records],
            "labels": [target_of(record, self._ids_of(record)) for record in records],
        }

    def _ids_of(self, record: Mapping[str, Any]) -> Sequence[int]:
        """The model's number for each class: those given, or the data set's own."""
        if self.label_ids is not None or "target" in record:
            return self.label_ids or []
        labels = record["labels"] if "labels" in record else [record["label"]]
        return range(max(labels, default=0) + 1)

    def read(self, record: Mapping[str, Any]) -> torch.Tensor:
        """The pixels of one record, whose `video` is a path or bytes: `(t, c, h, w)`, or
        `(views, t, c, h, w)` for several views.
        """
        raise NotImplementedError


class TrainingTransform(_Transform):
    """Randomly sampled and augmented clips `(T, 3, H, W)`, for `datasets.Dataset.with_transform`.

    What is drawn follows from torch's random numbers, which a DataLoader seeds anew in each worker
    and epoch.

    Args:
        processor: frames, crop size, mean and standard deviation are as its settings say.
        augmentation: what is done to the frames; by default short-side jitter (1 to 9/7 of the
            crop), a random crop and a flip. Pass `ClipAugmentation(..., flip=False)` where classes
            tell left from right.
        video_column: name of the column with the videos: paths, bytes, or
            `datasets.Video(decode=False)`.
        label_ids: the model's number for each class of the data set, by default the same
            (`labels.match_labels`).

    Raises, when called:
        VideoDecodeError: a video cannot be read.
        ValueError: the rows have no column with labels.
    """

    def __init__(
        self,
        processor: TimeSformerVideoProcessor,
        augmentation: ClipAugmentation | None = None,
        *,
        video_column: str = "video",
        label_ids: Sequence[int] | None = None,
    ):
        super().__init__(processor, video_column=video_column, label_ids=label_ids)
        self.sampling = FrameSampling.of(processor)
        self.augmentation = augmentation or _default_augmentation(processor)

    def read(self, record: Mapping[str, Any]) -> torch.Tensor:
        """One augmented clip `(T, 3, H, W)`, float32, of the video in a row of the data set,
        `record`."""
        generator = np.random.default_rng(int(torch.randint(2**63 - 1, ())))
        short_side = self.augmentation.draw_short_side(generator)
        frames, _ = decode_record(
            record,
            lambda metadata: self.sampling.indices(metadata, generator),
            short_side=short_side,
            reading=ReadSettings.of(self.processor),
        )
        return self.augmentation(frames, short_side, generator)


class EvaluationTransform(_Transform):
    """Clips as the processor cuts them, `(T, 3, H, W)` or `(views, T, 3, H, W)`; arguments as
    `TrainingTransform`.
    """

    def read(self, record: Mapping[str, Any]) -> torch.Tensor:
        """The processor's view `(t, c, h, w)`, or views `(views, t, c, h, w)`, of one record,
        float32.
        """
        return process_record(record, self.processor)


def _default_augmentation(processor: TimeSformerVideoProcessor) -> ClipAugmentation:
    side = processor.crop_size["height"]
    return ClipAugmentation(
        side,
        short_side=(side, round(side * 9 / 7)),
        image_mean=processor.image_mean,
        image_std=processor.image_std,
    )
