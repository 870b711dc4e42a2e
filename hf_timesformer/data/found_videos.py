"""One split of a data set, found."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from datasets import Dataset, IterableDataset

from .targets import LABEL_COLUMNS, REGRESSION, SINGLE_LABEL


@dataclass
class FoundVideos:
    """One split of a data set.

    Attributes:
        videos: the records as a `datasets` object, with the columns of `records.video_features`.
        class_names: names of the classes in order; of a regression the name of what is predicted.
        num_expected: videos that the annotations list; None for tar shards that no manifest
            describes.
        num_found: videos that are on disk; None for the same.
        shards: names of the tar shards, where there are any.
        shard_sizes: the videos in each shard, where the manifest says it.
        problem_type: one of `targets`' three kinds.
        describe: of a stream, reads the label, and the weight where there is one, of each clip,
            shard by shard in the order of the files, without the videos. Raises ValueError where
            that cannot be had.
        class_counts: clips of each class, where the manifest says it.
    """

    videos: Dataset | IterableDataset
    class_names: list[str]
    num_expected: int | None
    num_found: int | None
    shards: list[str] | None = None
    shard_sizes: list[int] | None = None
    problem_type: str = SINGLE_LABEL
    describe: Callable[[], Dataset] | None = None
    class_counts: list[int] | None = None

    def count_classes(self) -> np.ndarray:
        """Clips of each class, int64 `(classes,)`; a clip of several classes counts for each.

        Raises:
            ValueError: the targets are numbers, or `describe` cannot tell.
        """
        if self.problem_type == REGRESSION:
            raise ValueError("clips whose targets are numbers have no classes to count")
        if self.class_counts is not None:
            return np.array(self.class_counts, np.int64)
        column = self.labels_and_weights()[LABEL_COLUMNS[self.problem_type]]
        classes = [
            label
            for labels in column
            for label in (labels if isinstance(labels, list) else [labels])
        ]
        return np.bincount(np.array(classes, np.int64), minlength=len(self.class_names))

    def labels_and_weights(self) -> Dataset:
        """The columns of all clips that tell their labels and weights; of a stream as `describe`
        reads them.
        """
        if isinstance(self.videos, Dataset):
            return self.videos
        assert self.describe is not None  # every reader of streams gives it
        return self.describe()
