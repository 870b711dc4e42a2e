"""Packing scanned videos into tar shards for streaming, each shard whole or not there at all."""

import hashlib
import io
import json
import logging
import tarfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, cast

import av
import numpy as np
from tqdm.auto import tqdm
from transformers.video_utils import VideoMetadata

from ...video.decoding import VideoDecodeError, probe_video
from ...video.encoding import UNKNOWN_RATE, encode_video
from ..media_files import is_video
from ..readers.shard_files import INDEX_FILE, LABELS_FILE, PLAN_FILE
from ..record_video import DEFAULT_READING, ReadSettings
from ..records import SEGMENT_COLUMNS
from ..retries import read_with_retries
from ..targets import LABEL_COLUMNS, REGRESSION, SINGLE_LABEL
from .parts import Part
from .scan import Listed, resumed_log, usable_frames, written_whole
from .worker_pool import PROCESS_DIED, run_in_workers


logger = logging.getLogger(__name__)

PACK_LOG = "pack.jsonl"
WHOLE = Part()


@dataclass(frozen=True)
class PackSettings:
    """How videos become shards.

    Attributes:
        videos_per_shard: videos in each shard but the last.
        short_side: larger videos are re-encoded to this size; None keeps files as they are.
            Segments of a video and folders of pictures are always encoded.
        seed: order of the videos in the shards.
        key_frame_every, fast_decode: of the encoder, see `encode_video`. For clips at random places
            these read almost twice as fast as a key frame every 64 frames and no `fast_decode`, in
            files a sixth larger (scripts/benchmarks/packing.py).

    Raises:
        ValueError: a number that is too small.
    """

    videos_per_shard: int = 256
    short_side: int | None = None
    seed: int = 0
    key_frame_every: int = 32
    fast_decode: bool = True

    def __post_init__(self):
        if self.videos_per_shard < 1:
            raise ValueError(f"videos_per_shard must be at least 1, got {self.videos_per_shard}")
        if self.short_side is not None and self.short_side < 16:
            raise ValueError(f"short_side must be at least 16 pixels, got {self.short_side}")
        if self.key_frame_every < 1:
            raise ValueError(f"key_frame_every must be at least 1, got {self.key_frame_every}")


@dataclass(frozen=True)
class Shard:
    """One tar file to write: its videos, and the key of each."""

    path: Path
    videos: list[Listed]
    keys: list[str]


def plan_shards(
    videos: list[Listed], output_dir: Path, settings: PackSettings, tag: str = ""
) -> list[Shard]:
    """Shards of all splits: videos shuffled by the seed, so that a shard holds a mixture of
    classes.

    `tag` stands in the name of each shard: `train<tag>-000000.tar`.
    """
    shards = []
    for split in dict.fromkeys(video.split for video in videos):
        chosen = [video for video in videos if video.split == split]
        order = np.random.default_rng(settings.seed).permutation(len(chosen))
        for number, start in enumerate(range(0, len(chosen), settings.videos_per_shard)):
            places = order[start : start + settings.videos_per_shard]
            keys = [f"{split}_{start + offset:08d}" for offset in range(len(places))]
            path = output_dir / f"{split}{tag}-{number:06d}.tar"
            shards.append(Shard(path, [chosen[place] for place in places], keys))
    return shards


def pack(
    videos: list[Listed],
    class_names: list[str],
    output_dir: Path,
    settings: PackSettings,
    *,
    expected: dict[str, int],
    num_workers: int = 2,
    part: Part = WHOLE,
    reading: ReadSettings = DEFAULT_READING,
) -> dict[tuple[str, str], dict[str, Any]]:
    """Write all shards, `labels.json` and, last of all, `shards.json`; what became of each video,
    by its identity.

    Shards that an earlier run has finished are left alone.

    Args:
        videos: what to pack.
        class_names: names of the classes in order.
        output_dir: where the shards go.
        settings: how videos become shards.
        expected: listed videos of each split, packed or not.
        num_workers: processes that read and encode; 0: this one.
        part: which part of the data set `videos` are; its files have its name (`shards-1-of-4.json`).
        reading: of the videos' files. Folders of pictures whose rate nobody tells are packed at
            `encoding.UNKNOWN_RATE`, which is said in the log.

    Raises:
        ValueError: the folder holds shards of other videos or settings.
        OSError: the disk is full.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    plan = asdict(settings) | {"frame_rate": reading.frame_rate}
    _hold_to_plan(videos, output_dir / part.name(PLAN_FILE), plan)
    _say_what_rate_is_assumed(videos, reading)
    # others' are being written
    for stale in output_dir.glob(f".*{part.tag}-*.part" if part.tag else ".*.part"):
        stale.unlink()
    _write_json(output_dir / LABELS_FILE, class_names)
    shards = plan_shards(videos, output_dir, settings, part.tag)
    with resumed_log(output_dir / part.name(PACK_LOG)) as (entries, append):
        known = {entry["shard"]: entry["videos"] for entry in entries}
        packed = {
            shard.path.name: known[shard.path.name] for shard in shards if _is_done(shard, known)
        }
        todo = [shard for shard in shards if shard.path.name not in packed]
        clips = [video for shard in todo for video in shard.videos]
        prepare = partial(prepare_clip, settings=settings, reading=reading)
        with tqdm(
            total=len(videos), initial=len(videos) - len(clips), desc="pack", unit="video"
        ) as progress:
            results = run_in_workers(prepare, clips, num_workers=num_workers, preload=[__name__])
            prepared = _in_order(clips, results, progress)
            for shard in todo:
                packed[shard.path.name] = _write_shard(shard, prepared)
                append({"shard": shard.path.name, "videos": packed[shard.path.name]})
    _write_json(
        output_dir / part.name(INDEX_FILE), _index(shards, packed, class_names, settings, expected)
    )
    return {(row["split"], row["video_id"]): row for rows in packed.values() for row in rows}


def _say_what_rate_is_assumed(videos: list[Listed], reading: ReadSettings) -> None:
    if reading.frame_rate is not None:
        return
    folders = [video.path for video in videos if Path(video.path).is_dir()]
    if folders:
        logger.warning(
            "%d folders of pictures, such as %s, do not tell their frame rate: they are packed at %d frames a "
            "second; --frame_rate sets another",
            len(folders),
            folders[0],
            UNKNOWN_RATE,
        )


def _hold_to_plan(videos: list[Listed], path: Path, settings: dict[str, Any]) -> None:
    """Note what is packed here and how; refuse to mix it with an earlier run's shards of something
    else.
    """
    listed = json.dumps([asdict(video) for video in videos], sort_keys=True)
    plan = settings | {
        "videos": len(videos),
        "digest": hashlib.sha256(listed.encode()).hexdigest(),
    }
    if path.exists():
        earlier = json.loads(path.read_text(encoding="utf-8"))
        changed = [
            f"{name} ({earlier.get(name, 'unknown')} -> {plan[name]})"
            for name in plan
            if earlier.get(name) != plan[name]
        ]
        if changed:
            raise ValueError(
                f"{path.parent} holds shards of an earlier run with another {', '.join(changed)}: "
                "choose a new output folder, or delete this one"
            )
    else:
        _write_json(path, plan)


def _is_done(shard: Shard, known: dict[str, list[dict]]) -> bool:
    rows = known.get(shard.path.name)
    return rows is not None and (shard.path.exists() or not any("shard" in row for row in rows))


def _in_order(
    clips: list[Listed], results: Iterator[tuple[Listed, Any]], progress: tqdm
) -> Iterator[Any]:
    """Results in the order of `clips`, whichever worker was faster."""
    early = {}
    for clip in clips:
        while clip not in early:
            finished, result = next(results)
            early[finished] = result
            progress.update()
        yield early.pop(clip)


def _write_shard(shard: Shard, prepared: Iterator[Any]) -> list[dict[str, Any]]:
    """Write one tar file under a temporary name and rename it; the fate of each of its videos."""
    rows = []
    with (
        written_whole(shard.path) as file,
        tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for video, key in zip(shard.videos, shard.keys):
            clip = next(prepared)
            if clip is PROCESS_DIED:
                clip = {
                    "reason": "process-died",
                    "message": "the process that packed it was killed",
                }
            row = {"split": video.split, "video_id": video.video_id}
            if "content" in clip:
                _add_file(tar, f"{key}.{clip['suffix']}", clip["content"])
                _add_file(
                    tar,
                    f"{key}.json",
                    json.dumps(clip["about"], ensure_ascii=False).encode("utf-8"),
                )
                rows.append(row | {"shard": shard.path.name, "key": key})
            else:
                rows.append(row | {"status": "fault"} | clip)
    if not any("shard" in row for row in rows):
        shard.path.unlink()  # nothing in it
    return rows


def _add_file(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)  # time and owner stay 0: the same videos give the same bytes
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def prepare_clip(
    video: Listed, settings: PackSettings, reading: ReadSettings = DEFAULT_READING
) -> dict[str, Any]:
    """A clip's `content`, `suffix` and description, encoded anew where it must be; or why it cannot
    be packed.
    """
    try:
        return read_with_retries(partial(_prepare_clip, video, settings, reading), video.video_id)
    except VideoDecodeError as error:
        return {"reason": error.reason, "message": error.message}
    except av.error.FFmpegError as error:
        return {"reason": "encode", "message": str(error)}
    except OSError as error:
        return {"reason": "not-found", "message": str(error)}


def _prepare_clip(video: Listed, settings: PackSettings, reading: ReadSettings) -> dict[str, Any]:
    options = video.options(reading)
    metadata = probe_video(video.path, **options)
    side = settings.short_side
    is_large = side is not None and min(metadata.width, metadata.height) > side
    is_encoded = is_large or video.is_segment or Path(video.path).is_dir()
    if is_encoded:
        content = _encode_usable(
            video.path, metadata, side if is_large else None, settings, options
        )
        metadata = probe_video(content)
    else:
        content = Path(video.path).read_bytes()
    label = list(video.label) if isinstance(video.label, tuple) else video.label
    about = {
        "video_id": video.video_id,
        LABEL_COLUMNS[video.problem_type]: label,
        "label_name": video.label_name,
        "source": video.source,
        "frames": metadata.total_num_frames,
        "fps": metadata.fps,
        "width": metadata.width,
        "height": metadata.height,
        "reencoded": is_encoded,
    }
    about |= {name: value for name, value in video.extras if name not in SEGMENT_COLUMNS}
    # the clip itself is whole now
    about |= {f"source_{edge}": options[edge] for edge in ("start", "end") if edge in options}
    # Whoever reads a shard knows a video by its suffix, the decoder by what is in it: an unusual
    # suffix gives way.
    keeps_suffix = not is_encoded and is_video(PurePosixPath(video.path).name)
    suffix = PurePosixPath(video.path).suffix[1:].lower() if keeps_suffix else "mp4"
    return {"content": content, "suffix": suffix, "about": about}


def _encode_usable(
    path: str,
    metadata: VideoMetadata,
    short_side: int | None,
    settings: PackSettings,
    options: dict[str, Any],
) -> bytes:
    """`encode_video` of the whole video or, where its end is damaged, of the frames before that."""
    encode = partial(
        encode_video,
        path,
        short_side=short_side,
        key_frame_every=settings.key_frame_every,
        fast_decode=settings.fast_decode,
        **options,
    )
    try:
        return encode(metadata=metadata)
    except VideoDecodeError as error:
        if error.reason != "damaged":
            raise
    usable = usable_frames(path, metadata.total_num_frames, every=True, **options)
    return encode(metadata=replace(metadata, total_num_frames=usable))


def _index(
    shards: list[Shard],
    packed: dict[str, list[dict]],
    class_names: list[str],
    settings: PackSettings,
    expected: dict[str, int],
) -> dict[str, Any]:
    """The content of `shards.json`: shards and videos of each split."""
    splits = {}
    for split in expected:
        clips = [
            video
            for shard in shards
            for video, row in zip(shard.videos, packed[shard.path.name], strict=True)
            if video.split == split and "shard" in row
        ]
        names = [shard.path.name for shard in shards if shard.videos[0].split == split]
        counts = {name: sum("shard" in row for row in packed[name]) for name in names}
        counts = {name: count for name, count in counts.items() if count}
        splits[split] = {
            "videos": sum(counts.values()),
            "expected": expected[split],
            "shards": counts,
            "clips_of_class": _count_classes(clips, len(class_names)),
        }
    first = next((video for shard in shards for video in shard.videos), None)
    optional = {name for shard in shards for video in shard.videos for name, _ in video.extras}
    return {
        "splits": splits,
        "classes": len(class_names),
        "settings": asdict(settings),
        "problem_type": first.problem_type if first else SINGLE_LABEL,
        "columns": sorted(optional.difference(SEGMENT_COLUMNS)),  # beside the video and its label
    }


def _count_classes(clips: list[Listed], num_classes: int) -> list[int] | None:
    """Clips of each class; None where their targets are numbers."""
    counts = [0] * num_classes
    for clip in clips:
        if clip.problem_type == REGRESSION:
            return None
        for label in clip.label if isinstance(clip.label, tuple) else (clip.label,):
            counts[cast(int, label)] += 1
    return counts


def _write_json(path: Path, content: Any) -> None:
    with written_whole(path) as file:
        file.write((json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode("utf-8"))
