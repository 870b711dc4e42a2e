"""One split of a data set, found."""

from dataclasses import dataclass

from datasets import Dataset, IterableDataset

from .targets import SINGLE_LABEL


@dataclass
class FoundVideos:
    """One split of a data set.

    Attributes: videos: the records as a `datasets` object, with the columns of
        `records.video_features`. class_names: names of the classes in order; of a regression the
        name of what is predicted. num_expected: videos that the annotations list; None for tar
        shards that no manifest describes. num_found: videos that are on disk; None for the same.
        shards: names of the tar shards, where there are any. shard_sizes: the videos in each shard,
        where the manifest says it. problem_type: one of `targets`' three kinds.
    """

    videos: Dataset | IterableDataset
    class_names: list[str]
    num_expected: int | None
    num_found: int | None
    shards: list[str] | None = None
    shard_sizes: list[int] | None = None
    problem_type: str = SINGLE_LABEL
