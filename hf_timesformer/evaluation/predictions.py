"""The paper's evaluation: several views a video, logits averaged over them, every video counted exactly once."""

import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset, IterableDataset
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..inference import make_views
from ..model.modeling_timesformer import TimeSformerForVideoClassification
from ..video.decoding import VideoDecodeError
from ..video.video_processing_timesformer import TimeSformerVideoProcessor
from .rank_exchange import ResultExchange


logger = logging.getLogger(__name__)

AUTOCAST_DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class Views:
    """One video's views: float `pixel_values` `(views, frames, channels, height, width)`, or why there are none."""

    video_id: str
    label: int
    pixel_values: torch.Tensor | None = None
    reason: str = ""
    message: str = ""


@dataclass
class Predictions:
    """Logits `(videos, classes)` and labels of the videos that could be read, and one row for each that could not."""

    video_ids: list[str]
    logits: np.ndarray
    labels: np.ndarray
    failures: list[dict[str, str]] = field(default_factory=list)
    seconds: float = 0.0


class VideoViews(torch.utils.data.Dataset):
    """The videos at `indices` of a map-style data set, read in the DataLoader's workers."""

    def __init__(self, videos: Dataset, indices: Sequence[int], processor: TimeSformerVideoProcessor):
        self.videos, self.indices, self.processor = videos, indices, processor

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> Views:
        return read_views(self.videos[int(self.indices[position])], self.processor)


class StreamedVideoViews(torch.utils.data.IterableDataset):
    """The videos of an `IterableDataset`, each to exactly one worker (`datasets` splits the shards)."""

    def __init__(self, videos: IterableDataset, processor: TimeSformerVideoProcessor):
        self.videos, self.processor = videos, processor

    def __iter__(self) -> Iterator[Views]:
        return (read_views(record, self.processor) for record in self.videos)


def read_views(record: dict, processor: TimeSformerVideoProcessor) -> Views:
    """Views of one record; a video that cannot be decoded comes back with the reason instead of pixels."""
    views = Views(record["video_id"], int(record["label"]))
    try:
        views.pixel_values = make_views(processor, record["video"])
    except VideoDecodeError as error:
        views.reason, views.message = error.reason, error.message
    return views


def predict_dataset(
    model: TimeSformerForVideoClassification,
    processor: TimeSformerVideoProcessor,
    videos: Dataset | IterableDataset,
    accelerator: Accelerator,
    *,
    batch_size: int = 4,
    num_workers: int = 0,
    dtype: str = "float32",
) -> Predictions:
    """Run the model over this rank's share of `videos` and gather all ranks' results; each video appears once.

    Nothing is padded: of a map-style data set every `num_processes`-th record goes to a rank, of an IterableDataset
    every `num_processes`-th shard. Labels stay the data set's.
    """
    loader = _view_loader(videos, processor, accelerator, batch_size, num_workers)
    model = model.to(accelerator.device).eval()
    start = time.perf_counter()
    exchange = ResultExchange()
    progress = tqdm(
        total=len(loader.dataset) if isinstance(videos, Dataset) else None,
        desc="evaluate",
        unit="video",
        disable=not accelerator.is_main_process,
    )
    for batch in loader:
        good = [views for views in batch if views.pixel_values is not None]
        logits = _forward(model, good, accelerator.device, AUTOCAST_DTYPES[dtype]) if good else []
        answers = [(views.video_id, views.label, row) for views, row in zip(good, logits)]
        exchange.add(answers + [_failure(views) for views in batch if views.pixel_values is None])
        progress.update(len(batch))
    progress.close()
    rows = exchange.finish()
    seconds = time.perf_counter() - start  # the exchange waits for the slowest rank
    failures = [row for row in rows if isinstance(row, dict)]
    results = [row for row in rows if isinstance(row, tuple)]
    return _collect(results, failures, num_classes=model.config.num_labels, seconds=seconds)


def _view_loader(
    videos: Dataset | IterableDataset,
    processor: TimeSformerVideoProcessor,
    accelerator: Accelerator,
    batch_size: int,
    num_workers: int,
) -> DataLoader:
    rank, world = accelerator.process_index, accelerator.num_processes
    if isinstance(videos, Dataset):
        views = VideoViews(videos, range(rank, len(videos), world), processor)
    elif rank >= videos.num_shards:
        views, num_workers = [], 0
    else:
        videos = videos.shard(min(world, videos.num_shards), rank, contiguous=False)
        views, num_workers = StreamedVideoViews(videos, processor), min(num_workers, videos.num_shards)
    return DataLoader(views, batch_size=batch_size, num_workers=num_workers, collate_fn=list)


def _failure(views: Views) -> dict[str, str]:
    return {"video_id": views.video_id, "reason": views.reason, "message": views.message}


@torch.inference_mode()
def _forward(
    model: TimeSformerForVideoClassification, good: list[Views], device: torch.device, dtype: torch.dtype | None
) -> np.ndarray:
    pixel_values = torch.stack([views.pixel_values for views in good]).to(device)  # (b, views, t, c, h, w)
    with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
        logits = model(pixel_values=pixel_values).logits  # (b, classes): the model averages over views
    return logits.float().cpu().numpy()


def _collect(results: list[tuple], failures: list[dict], *, num_classes: int, seconds: float) -> Predictions:
    results.sort(key=lambda row: row[0])
    video_ids = [row[0] for row in results]
    names = Counter(video_ids + [failure["video_id"] for failure in failures])
    repeated = [name for name, count in names.items() if count > 1]
    if repeated:
        logger.warning("%d names stand for more than one video, such as %s", len(repeated), repeated[0])
    logits = np.stack([row[2] for row in results]) if results else np.empty((0, num_classes), np.float32)
    labels = np.array([row[1] for row in results], np.int64)
    return Predictions(video_ids, logits, labels, sorted(failures, key=lambda row: row["video_id"]), seconds)
