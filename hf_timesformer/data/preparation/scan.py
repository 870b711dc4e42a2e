"""Scanning a data set: is every video readable, how long and how large is it? The answers go into a
manifest.
"""

import json
import logging
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm.auto import tqdm

from ...video.decoding import VideoDecodeError, decode_video, probe_video
from ...video.decoding_limits import DecodeLimits
from ...video.decoding_source import open_source
from ..record_video import DEFAULT_READING, ReadSettings, segment_of
from ..records import SEGMENT_COLUMNS, VideoRecords
from ..retries import read_with_retries
from ..targets import LABEL_COLUMNS, REGRESSION, SINGLE_LABEL
from .worker_pool import PROCESS_DIED, run_in_workers


logger = logging.getLogger(__name__)

SCAN_LOG, MANIFEST = "scan.jsonl", "manifest.parquet"

# How much of each video is read: packets only; also the first, middle and last frame; every frame.
CHECKS = ("header", "frames", "full")

MANIFEST_SCHEMA = pa.schema(
    {
        "split": pa.string(),
        "video_id": pa.string(),
        "source": pa.string(),  # path from the data folder
        "label": pa.int64(),  # class number; null where a video has several classes, or a number
        "labels": pa.list_(pa.int64()),  # class numbers of a video that may have several
        "target": pa.float64(),  # of a regression
        "label_name": pa.string(),  # names of several are joined by `|`
        "start": pa.float64(),  # seconds; the record is a segment of the video, to before `end`
        "end": pa.float64(),
        "status": pa.string(),  # ok, partial (damaged near its end, still of use), fault or missing
        # of all but ok: the decoder's short word, "process-died", "encode" or "missing"
        "reason": pa.string(),
        "message": pa.string(),
        "frames": pa.int64(),  # as many as the file has packets for
        # as many as can be decoded; null where only the header was read
        "usable_frames": pa.int64(),
        "fps": pa.float64(),
        "seconds": pa.float64(),
        "width": pa.int64(),
        "height": pa.int64(),
        "codec": pa.string(),
        "bytes": pa.int64(),
        "check": pa.string(),
        "shard": pa.string(),  # where it was packed, or null
        "key": pa.string(),
    }
)


@dataclass(frozen=True)
class Listed:
    """One video that is to be scanned or packed."""

    split: str
    video_id: str
    path: str
    source: str  # the path as the data folder has it
    label: int | tuple[int, ...] | float  # as the data set's `problem_type` has it
    label_name: str
    problem_type: str = SINGLE_LABEL
    extras: tuple[tuple[str, Any], ...] = ()  # entries in `records.OPTIONAL_COLUMNS`

    @property
    def identity(self) -> tuple[str, str]:
        """What tells it from all others."""
        return self.split, self.video_id

    @property
    def is_segment(self) -> bool:
        """Whether it is a part of the video at `path`."""
        return any(name in SEGMENT_COLUMNS for name, _ in self.extras)

    def options(self, reading: ReadSettings) -> dict[str, Any]:
        """Keywords of `decode_video`: `start` and `end` in seconds, whose frame numbers are looked
        up in the file, and how the file is read.
        """
        segment = segment_of({"video": self.path} | dict(self.extras), reading)
        return segment | reading.for_video(self.path)


def list_records(splits: dict[str, VideoRecords], data_dir: Path) -> list[Listed]:
    """The videos of all splits that are on disk, in order; `data_dir` may be a table of clips in a
    folder.
    """
    root = data_dir.parent if data_dir.is_file() else data_dir
    return [
        Listed(
            split,
            video_id,
            path,
            os.path.relpath(path, root),
            tuple(label) if isinstance(label, list) else label,
            _label_name(label, records),
            records.problem_type,
            tuple(extras.items()),
        )
        for split, records in splits.items()
        for video_id, path, label, extras in zip(
            records.video_ids, records.videos, records.labels, records.extras, strict=True
        )
    ]


def _label_name(label: int | list[int] | float, records: VideoRecords) -> str:
    if records.problem_type == REGRESSION:
        return f"{label:g}"
    labels = label if isinstance(label, list) else [cast(int, label)]  # class numbers
    return "|".join(records.class_names[number] for number in labels)


def scan_video(
    video: Listed, check: str, reading: ReadSettings = DEFAULT_READING
) -> dict[str, Any]:
    """One row of the manifest: frames, rate, size and codec of one video, or why it cannot be read."""
    row = _row(video) | {"check": check, "status": "ok"}
    try:
        row |= read_with_retries(partial(_look_at, video, check, reading), video.video_id)
    except VideoDecodeError as error:
        # A file that cannot be read still has a size, by which a later run knows that it has not
        # changed.
        return (
            row
            | {"status": "fault", "reason": error.reason, "message": error.message}
            | _size_if_there(video)
        )
    except OSError as error:
        return row | {"status": "fault", "reason": "not-found", "message": str(error)}
    if row.get("usable_frames", row["frames"]) < row["frames"]:
        message = f"only the first {row['usable_frames']} of {row['frames']} frames can be decoded"
        row |= {"status": "partial", "reason": "damaged", "message": message}
    return row


def _look_at(video: Listed, check: str, reading: ReadSettings) -> dict[str, Any]:
    options = video.options(reading)
    segment = {edge: options[edge] for edge in ("start", "end") if edge in options}
    row = {"bytes": size_of(video.path)} | segment | _describe(video.path, options)
    if check != "header":
        every = check == "full"
        row["usable_frames"] = usable_frames(video.path, row["frames"], every=every, **options)
    return row


def size_of(path: str) -> int:
    """Bytes of a file, or of the pictures in a folder of them."""
    if os.path.isdir(path):
        return sum(entry.stat().st_size for entry in os.scandir(path) if entry.is_file())
    return os.path.getsize(path)


def _size_if_there(video: Listed) -> dict[str, int]:
    return {"bytes": size_of(video.path)} if os.path.exists(video.path) else {}


def _row(video: Listed) -> dict[str, Any]:
    row = {name: getattr(video, name) for name in ("split", "video_id", "source", "label_name")}
    row[LABEL_COLUMNS[video.problem_type]] = (
        list(video.label) if isinstance(video.label, tuple) else video.label
    )
    return row


def _describe(path: str, options: dict[str, Any]) -> dict[str, Any]:
    metadata = probe_video(path, **options)
    return {
        "frames": metadata.total_num_frames,
        "fps": metadata.fps,
        "seconds": metadata.duration,
        "width": metadata.width,
        "height": metadata.height,
        "codec": _codec(path),
    }


def _codec(path: str) -> str:
    if os.path.isdir(path):
        return "pictures"
    with open_source(path, DecodeLimits(), False) as video, video.open_stream() as (_, stream):
        return stream.codec_context.name


def usable_frames(path: str, count: int, *, every: bool = False, **options: Any) -> int:
    """How many of the `count` frames can be decoded, counted from the first; VideoDecodeError if
    not even half can.

    Looks at the first, the middle and the last frame, and with `every` at all those between.
    `options` are those of `decode_video`; with `start` or `end` all is counted within that segment.
    """
    decode: Callable[..., Any] = partial(decode_video, path, **options)

    def decodes(frames: int) -> bool:
        wanted = range(frames) if every else [frames - 1]
        try:
            decode(wanted, short_side=8)  # small, since all frames are kept
        except VideoDecodeError as error:
            if error.reason != "damaged":
                raise
            return False
        return True

    if decodes(count):
        decode([0, count // 2])
        return count
    good, bad = (count + 1) // 2, count
    decode(range(good) if every else [0, good - 1], short_side=8)
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if decodes(middle) else (good, middle)
    return good


def scan(
    videos: Iterable[Listed],
    output_dir: Path,
    *,
    check: str = "frames",
    num_workers: int = 2,
    log: str = SCAN_LOG,
    reading: ReadSettings = DEFAULT_READING,
) -> dict[tuple[str, str], dict[str, Any]]:
    """Scan all videos in parallel; rows by `Listed.identity`.

    Every answer is appended to the file `log` at once; a later run takes it from there, unless the
    file's size has changed since, this `check` looks deeper, or a folder of pictures has got
    another frame rate.
    """
    videos = list(videos)
    with resumed_log(output_dir / log) as (answers, append):
        known = {(row["split"], row["video_id"]): row for row in answers}
        rows = {
            video.identity: known[video.identity]
            for video in videos
            if _is_current(video, known, check, reading)
        }
        todo = [video for video in videos if video.identity not in rows]
        if rows:
            logger.info("%d of %d videos were scanned before", len(rows), len(videos))
        faults = Counter(row["reason"] for row in rows.values() if row["status"] != "ok")
        with tqdm(total=len(videos), initial=len(rows), desc="scan", unit="video") as progress:
            scan_one = partial(scan_video, check=check, reading=reading)
            for video, row in run_in_workers(
                scan_one, todo, num_workers=num_workers, preload=[__name__]
            ):
                if row is PROCESS_DIED:
                    row = _row(video) | _died(video) | {"check": check}
                append(row)
                rows[video.identity] = row
                faults.update([row["reason"]] if row["status"] != "ok" else [])
                progress.set_postfix(faults, refresh=False)
                progress.update()
    return rows


def _is_current(
    video: Listed, known: dict[tuple[str, str], dict], check: str, reading: ReadSettings
) -> bool:
    row = known.get(video.identity)
    if row is None or CHECKS.index(row["check"]) < CHECKS.index(check):
        return False
    if not os.path.exists(video.path) or row.get("bytes") != size_of(video.path):
        return False
    rate, asked = row.get("fps") or 0.0, reading.frame_rate or 0.0
    return not os.path.isdir(video.path) or math.isclose(rate, asked)


def _died(video: Listed) -> dict[str, Any]:
    message = "the process that read it was killed (a crash of the decoder, or too little memory)"
    return {
        "status": "fault",
        "reason": "process-died",
        "message": message,
        "bytes": size_of(video.path),
    }


@contextmanager
def resumed_log(path: Path) -> Iterator[tuple[list[dict], Callable[[dict], None]]]:
    """The rows of a JSON-lines file and a function that appends one; a last line cut by a kill is
    dropped.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        file.seek(0)
        content = file.read()
        whole = content.rpartition(b"\n")[0] + b"\n" if b"\n" in content else b""
        file.truncate(len(whole))
        yield [json.loads(line) for line in whole.splitlines()], partial(_append, file)


def _append(file: BinaryIO, row: dict[str, Any]) -> None:
    file.write(json.dumps(row, ensure_ascii=False).encode("utf-8") + b"\n")
    file.flush()


def write_manifest(
    output_dir: Path,
    splits: dict[str, VideoRecords],
    rows: Iterable[dict[str, Any]],
    name: str = MANIFEST,
) -> tuple[Path, pa.Table]:
    """Write `manifest.parquet`, or `name`: every listed video, the missing ones too; whole or not
    at all.
    """
    missing = [
        {
            "split": split,
            "video_id": video_id,
            "status": "missing",
            "reason": "missing",
            "message": "not on disk",
        }
        for split, records in splits.items()
        for video_id in records.missing
    ]
    table = pa.Table.from_pylist([*rows, *missing], schema=MANIFEST_SCHEMA)
    with written_whole(output_dir / name) as file:
        pq.write_table(table, file)
    return output_dir / name, table


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write under a temporary name (`*.part`); it gets its own name only when all of it
    is on disk.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
