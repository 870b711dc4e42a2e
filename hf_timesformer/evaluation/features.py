"""Features of whole data sets: one vector a video, in Parquet files that grow part by part and
outlive a kill.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from datasets import Dataset, IterableDataset
from torch.utils.data import DataLoader

from ..data.clips import EvaluationClips, StreamedEvaluationClips
from ..data.faults import Fault
from ..data.records import class_names_of
from ..data.row_source import RecordSource
from ..model.modeling_timesformer import TimeSformerForVideoClassification
from ..video.video_processing_timesformer import TimeSformerVideoProcessor


POOLS = ("cls", "patches")
SETTINGS_FILE = "settings.json"


@dataclass(frozen=True)
class FeatureSettings:
    """Which vector stands for a clip.

    Args:
        pool: `"cls"`, or `"patches"` for the mean of all patch tokens.
        layer: the output of that block, from 1; None is the last, after the final LayerNorm.
    """

    pool: str = "cls"
    layer: int | None = None

    def check(self, model: TimeSformerForVideoClassification) -> None:
        """Raise ValueError for a pool or a layer that there is not."""
        if self.pool not in POOLS:
            raise ValueError(f"pool {self.pool!r} is unknown: choose one of {', '.join(POOLS)}")
        blocks = model.config.num_hidden_layers
        if self.layer is not None and not 1 <= self.layer <= blocks:
            raise ValueError(
                f"layer must be one of the model's blocks, 1 to {blocks}, got {self.layer}"
            )


@torch.inference_mode()
def clip_features(
    model: TimeSformerForVideoClassification, pixel_values: torch.Tensor, settings: FeatureSettings
) -> torch.Tensor:
    """One vector a video: `(b, [views,] t, c, h, w)` -> float32 `(b, hidden)`, the mean over views."""
    views = pixel_values.shape[1] if pixel_values.ndim == 6 else 1
    # (b*v, t, c, h, w)
    clips = pixel_values.flatten(0, 1) if pixel_values.ndim == 6 else pixel_values
    tokens = _tokens(model, clips, settings)  # (b*v, 1 + patches, hidden), or CLS alone
    vectors = tokens[:, 0] if settings.pool == "cls" else tokens[:, 1:].mean(dim=1)
    return vectors.float().unflatten(0, (-1, views)).mean(dim=1)


def _tokens(
    model: TimeSformerForVideoClassification, clips: torch.Tensor, settings: FeatureSettings
) -> torch.Tensor:
    """`(b, t, c, h, w) -> (b, 1 + n, hidden)`, or CLS alone `(b, 1, hidden)`, where the last layer
    is asked for no more. `n` is `h*w` with `space_only`."""
    if settings.layer is None:
        return model.timesformer(clips, cls_only=settings.pool == "cls").last_hidden_state
    hidden = model.timesformer(clips, output_hidden_states=True).hidden_states[settings.layer]
    # space_only runs each frame alone: (b*t, tokens, hidden) -> (b, tokens, hidden), as its last
    # layer does
    return hidden.unflatten(0, (len(clips), -1)).mean(dim=1)


@dataclass
class FeatureFolder:
    """A folder of Parquet parts with the columns `video_id`, `label`, `label_name` and `features`.

    Each process writes parts of its own, whole or not at all, so a killed run loses at most the
    part it was filling. `settings` is what decides the features: a folder of other settings is
    refused with ValueError.
    """

    folder: Path
    settings: dict[str, Any]
    writer: str = "0"  # tells this process's parts from those of others
    done: set[str] = field(default_factory=set)

    def __post_init__(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / SETTINGS_FILE
        settings = json.loads(json.dumps(self.settings))
        if path.is_file():
            found = json.loads(path.read_text(encoding="utf-8"))
            for name in sorted(settings.keys() | found.keys()):
                if settings.get(name) != found.get(name):
                    raise ValueError(
                        f"{self.folder} holds features of {name}={found.get(name)!r}, now it is "
                        f"{settings.get(name)!r}: give another folder, or go on with the same settings"
                    )
        else:
            _write_whole(
                path,
                lambda to: to.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8"),
            )
        for part in self.folder.glob("*.parquet"):
            self.done.update(
                pyarrow.parquet.read_table(part, columns=["video_id"])["video_id"].to_pylist()
            )

    def add(self, rows: list[dict[str, Any]]) -> Path:
        """Write these rows as the next part of this process."""
        number = len(list(self.folder.glob(f"part-{self.writer}-*.parquet")))
        path = self.folder / f"part-{self.writer}-{number:05d}.parquet"
        width = len(rows[0]["features"])
        schema = pyarrow.schema(
            {
                "video_id": pyarrow.string(),
                "label": pyarrow.int64(),
                "label_name": pyarrow.string(),
                "features": pyarrow.list_(pyarrow.float32(), width),
            }
        )
        table = pyarrow.Table.from_pylist(rows, schema)
        _write_whole(path, lambda to: pyarrow.parquet.write_table(table, to))
        self.done.update(row["video_id"] for row in rows)
        return path


def _write_whole(path: Path, write) -> None:
    """Write a file under another name first, so that it is there whole or not at all."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    write(beside)
    os.replace(beside, path)


def extract(
    model: TimeSformerForVideoClassification,
    processor: TimeSformerVideoProcessor,
    videos: Dataset | IterableDataset,
    folder: FeatureFolder,
    settings: FeatureSettings,
    *,
    share: list[int],
    batch_size: int = 8,
    num_workers: int = 0,
    rows_per_part: int = 512,
) -> Iterator[int | Fault]:
    """Write the features of the videos that the folder does not have yet; yields as it goes on.

    Args:
        share: this process's rows of a map-style data set; of a stream `[i, n]`, the i-th of n
            shares of its shards.

    Yields:
        the number of videos that a batch added, or a Fault for a video that cannot be read.
    """
    names = class_names_of(videos.features)
    loader = _loader(videos, processor, folder.done, share, batch_size, num_workers, len(names))
    device, dtype = model.device, model.dtype
    rows: list[dict[str, Any]] = []
    for batch in loader:
        good = [item for item in batch if not item["faults"]]
        yield from (fault for item in batch for fault in item["faults"])
        if good:
            pixel_values = torch.stack([item["pixel_values"] for item in good]).to(device, dtype)
            vectors = clip_features(model, pixel_values, settings).cpu().numpy()
            rows += [_row(item, vector, names) for item, vector in zip(good, vectors)]
        yield len(good)
        if len(rows) >= rows_per_part:
            folder.add(rows)
            rows = []
    if rows:
        folder.add(rows)


def _row(item: dict[str, Any], vector: np.ndarray, names: list[str]) -> dict[str, Any]:
    """What the folder holds of one video; `vector` is `(hidden,)`."""
    label = item["labels"]
    is_class = isinstance(label, int) and 0 <= label < len(names)
    return {
        "video_id": item["video_id"],
        "label": label if is_class else None,
        "label_name": names[label] if is_class else None,
        "features": vector,
    }


def _loader(
    videos: Dataset | IterableDataset,
    processor: TimeSformerVideoProcessor,
    done: set[str],
    share: list[int],
    batch_size: int,
    num_workers: int,
    num_classes: int,
) -> DataLoader:
    options: dict[str, Any] = {"batch_size": batch_size, "collate_fn": list}
    label_ids = range(num_classes)
    if isinstance(videos, Dataset):
        ids = videos["video_id"]
        rows = [row for row in share if ids[row] not in done]
        clips = EvaluationClips(RecordSource(videos), processor, label_ids=label_ids)
        return DataLoader(clips, sampler=rows, num_workers=num_workers, **options)
    part, parts = share
    if part >= videos.num_shards:
        return DataLoader(cast("torch.utils.data.Dataset", []), **options)
    videos = videos.shard(min(parts, videos.num_shards), part, contiguous=False)
    left = videos.filter(lambda record: record["video_id"] not in done)
    stream = StreamedEvaluationClips(left, processor, label_ids=label_ids)
    return DataLoader(stream, num_workers=min(num_workers, videos.num_shards), **options)


def read_features(folder: str | Path) -> dict[str, np.ndarray]:
    """All parts of a folder: `video_id` `(n,)`, `label_name` `(n,)` and `features` float32
    `(n, hidden)`.

    Sorted by `video_id`. Raises ValueError for a folder without a part.
    """
    parts = sorted(Path(folder).glob("*.parquet"))
    if not parts:
        raise ValueError(f"{folder} holds no features (part-*.parquet)")
    table = pyarrow.concat_tables([pyarrow.parquet.read_table(part) for part in parts]).sort_by(
        "video_id"
    )
    return {
        "video_id": np.array(table["video_id"].to_pylist()),
        "label_name": np.array(table["label_name"].to_pylist()),
        "features": np.array(table["features"].to_pylist(), np.float32),
    }
