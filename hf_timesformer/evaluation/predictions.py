"""The paper's evaluation: several views a video, logits averaged over them, every video counted exactly once."""

import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset, IterableDataset
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..data.clips import EvaluationClips, StreamedEvaluationClips
from ..data.records import class_names_of
from ..data.row_source import RecordSource
from ..model.modeling_timesformer import TimeSformerForVideoClassification
from ..video.video_processing_timesformer import TimeSformerVideoProcessor
from .rank_exchange import ResultExchange


logger = logging.getLogger(__name__)

AUTOCAST_DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class Predictions:
    """Logits `(videos, classes)` and labels of the videos that could be read, and one row for each that could not."""

    video_ids: list[str]
    logits: np.ndarray
    labels: np.ndarray
    failures: list[dict[str, str]] = field(default_factory=list)
    seconds: float = 0.0


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
    label_ids = range(len(class_names_of(videos.features)))
    loader = _view_loader(videos, processor, label_ids, accelerator, batch_size, num_workers)
    model = model.to(accelerator.device).eval()
    start = time.perf_counter()
    exchange = ResultExchange()
    progress = tqdm(
        total=len(loader.sampler) if isinstance(videos, Dataset) else None,
        desc="evaluate",
        unit="video",
        disable=not accelerator.is_main_process,
    )
    for batch in loader:
        good = [item for item in batch if not item["faults"]]
        logits = _forward(model, good, accelerator.device, AUTOCAST_DTYPES[dtype]) if good else []
        answers = [(item["video_id"], item["labels"], row) for item, row in zip(good, logits)]
        exchange.add(answers + [fault._asdict() for item in batch for fault in item["faults"]])
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
    label_ids: Sequence[int],
    accelerator: Accelerator,
    batch_size: int,
    num_workers: int,
) -> DataLoader:
    """Batches of this rank's share of the videos, as lists of items of `EvaluationClips`."""
    rank, world = accelerator.process_index, accelerator.num_processes
    options: dict[str, Any] = {"batch_size": batch_size, "collate_fn": list}
    if isinstance(videos, Dataset):
        clips = EvaluationClips(RecordSource(videos), processor, label_ids=label_ids)
        return DataLoader(clips, sampler=range(rank, len(videos), world), num_workers=num_workers, **options)
    if rank >= videos.num_shards:
        return DataLoader([], **options)
    videos = videos.shard(min(world, videos.num_shards), rank, contiguous=False)
    clips = StreamedEvaluationClips(videos, processor, label_ids=label_ids)
    return DataLoader(clips, num_workers=min(num_workers, videos.num_shards), **options)


@torch.inference_mode()
def _forward(
    model: TimeSformerForVideoClassification, good: list[dict], device: torch.device, dtype: torch.dtype | None
) -> np.ndarray:
    pixel_values = torch.stack([item["pixel_values"] for item in good]).to(device)  # (b, [views,] t, c, h, w)
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
