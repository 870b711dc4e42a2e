"""The paper's evaluation: several views a video, logits averaged over them, every video counted
exactly once.
"""

import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset, IterableDataset
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..data.clips import EvaluationClips, StreamedEvaluationClips
from ..data.records import class_names_of
from ..data.row_source import RecordSource
from ..data.targets import SINGLE_LABEL, collate_targets
from ..data.targets import problem_type_of as target_kind
from ..model.modeling_timesformer import TimeSformerForVideoClassification
from ..video.video_processing_timesformer import TimeSformerVideoProcessor
from .rank_exchange import ResultExchange
from .whole_video import LogitSums, whole_video_loader


if TYPE_CHECKING:
    from ..conversion.exported_classifier import ExportedClassifier

logger = logging.getLogger(__name__)

AUTOCAST_DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class Predictions:
    """What the model said of the videos that could be read, and one row for each that could not.

    `logits` `(videos, classes)`, the mean over each video's views; `labels` as `data.targets` has
    them for batches of the `problem_type`: class numbers `(videos,)`, 0/1 `(videos, classes)` or
    numbers `(videos,)`; `views` `(videos,)`, how many views each mean is of; `video_ids` in their
    order; `failures`, the videos that could not be read and why; `seconds`, how long it took.
    """

    video_ids: list[str]
    logits: np.ndarray
    labels: np.ndarray
    failures: list[dict[str, str]] = field(default_factory=list)
    seconds: float = 0.0
    problem_type: str = SINGLE_LABEL
    views: np.ndarray | None = None


def predict_dataset(
    model: "TimeSformerForVideoClassification | ExportedClassifier",
    processor: TimeSformerVideoProcessor,
    videos: Dataset | IterableDataset,
    accelerator: Accelerator,
    *,
    label_ids: Sequence[int] | None = None,
    whole_videos: bool = False,
    batch_size: int = 4,
    num_workers: int = 0,
    dtype: str = "float32",
) -> Predictions:
    """Run the model over this rank's share of `videos` and gather all ranks' results; each video
    appears once.

    Nothing is padded: of a map-style data set every `num_processes`-th record goes to a rank, of an
    IterableDataset every `num_processes`-th shard.

    Args:
        label_ids: the model's number for each class of the data set (`labels.match_labels`); None
            where they are the same.
        whole_videos: as many clips of each video as cover it, whatever the processor's `num_clips`.
        batch_size: videos that run together; of whole videos, clips.
        dtype: the precision of autocast.
    """
    problem_type = target_kind(videos.column_names or list(videos.features))
    if label_ids is None:
        label_ids = range(len(class_names_of(videos.features)))
    if whole_videos:
        loader = whole_video_loader(
            videos, processor, label_ids, accelerator, batch_size, num_workers
        )
    else:
        loader = _view_loader(videos, processor, label_ids, accelerator, batch_size, num_workers)
    model = model.to(accelerator.device).eval()
    start = time.perf_counter()
    exchange = ResultExchange()
    with _progress_bar(videos, accelerator) as progress:
        for rows in _rows_of_batches(model, loader, accelerator.device, AUTOCAST_DTYPES[dtype]):
            exchange.add(rows)
            progress.update(len(rows))
    rows = exchange.finish()
    seconds = time.perf_counter() - start  # the exchange waits for the slowest rank
    failures = [row for row in rows if isinstance(row, dict)]
    results = [row for row in rows if isinstance(row, tuple)]
    return _collect(results, failures, model.config.num_labels, problem_type, seconds)


def _progress_bar(videos: Dataset | IterableDataset, accelerator: Accelerator) -> tqdm:
    """A bar of this rank's videos; only the first rank shows its own."""
    total = None
    if isinstance(videos, Dataset):
        total = len(range(accelerator.process_index, len(videos), accelerator.num_processes))
    return tqdm(total=total, desc="evaluate", unit="video", disable=not accelerator.is_main_process)


def _rows_of_batches(
    model: "TimeSformerForVideoClassification | ExportedClassifier",
    loader: DataLoader,
    device: torch.device,
    dtype: torch.dtype | None,
) -> Iterator[list[tuple | dict]]:
    """After each batch the answers about the videos that it completes, as `LogitSums` gives them, and
    the faults, as dictionaries."""
    sums = LogitSums()
    for batch in loader:
        good = [item for item in batch if not item["faults"]]
        rows: list[tuple | dict] = []
        if good:
            for item, logits in zip(good, _forward(model, good, device, dtype)):
                answer = sums.add(item, logits)
                if answer is not None:
                    rows.append(answer)
        rows += [fault._asdict() for item in batch for fault in item["faults"]]
        yield rows


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
        return DataLoader(
            clips, sampler=range(rank, len(videos), world), num_workers=num_workers, **options
        )
    if rank >= videos.num_shards:
        return DataLoader(cast("torch.utils.data.Dataset", []), **options)
    videos = videos.shard(min(world, videos.num_shards), rank, contiguous=False)
    stream = StreamedEvaluationClips(videos, processor, label_ids=label_ids)
    return DataLoader(stream, num_workers=min(num_workers, videos.num_shards), **options)


@torch.inference_mode()
def _forward(
    model: "TimeSformerForVideoClassification | ExportedClassifier",
    good: list[dict],
    device: torch.device,
    dtype: torch.dtype | None,
) -> np.ndarray:
    """The logits of a batch of videos: items' `pixel_values ([views,] t, c, h, w)` -> float32
    `(b, classes)`."""
    # (b, [views,] t, c, h, w)
    pixel_values = torch.stack([item["pixel_values"] for item in good]).to(device)
    with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
        # (b, classes): the model averages over views
        logits = model(pixel_values=pixel_values).logits
    return logits.float().cpu().numpy()


def _collect(
    results: list[tuple], failures: list[dict], num_classes: int, problem_type: str, seconds: float
) -> Predictions:
    results.sort(key=lambda row: row[0])
    video_ids = [row[0] for row in results]
    names = Counter(video_ids + [failure["video_id"] for failure in failures])
    repeated = [name for name, count in names.items() if count > 1]
    if repeated:
        logger.warning(
            "%d names stand for more than one video, such as %s", len(repeated), repeated[0]
        )
    logits = (
        np.stack([row[2] for row in results]) if results else np.empty((0, num_classes), np.float32)
    )
    return Predictions(
        video_ids,
        logits,
        collate_targets([row[1] for row in results], num_classes, problem_type).numpy(),
        sorted(failures, key=lambda row: row["video_id"]),
        seconds,
        problem_type,
        np.array([row[3] for row in results], np.int64),
    )
