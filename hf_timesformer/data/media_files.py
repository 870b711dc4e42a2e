"""Which files of a data folder are clips. Nothing is left out in silence: what is no clip is
counted by its reason.

A clip is a file with a suffix that the decoder's containers are known by, or one that was asked for
(`extensions`); a file without a suffix is opened to see whether a video is in it. A folder of
numbered pictures is a clip, too. Links are followed, except back to a folder above.
"""

import logging
import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..video.decoding import VideoDecodeError, probe_video
from ..video.decoding_source import CONTAINERS


logger = logging.getLogger(__name__)

# Suffixes by the demuxer that reads them, without the dot and in lower case. Only those of the
# decoder's own list count, so that what it reads and what is listed stay one.
SUFFIXES_OF_CONTAINER = {
    "mov": "3g2 3gp f4v ism ismv m4v mj2 mov mp4 qt",
    "matroska": "mk3d mkv webm",
    "avi": "avi divx xvid",
    "flv": "flv",
    "mpegts": "m2t m2ts mts ts",
    "mpeg": "m2p mpe mpeg mpg vob vro",
    "mpegvideo": "m1v m2v mpv",
    "h264": "264 avc h264",
    "hevc": "265 h265 hevc",
    "m4v": "m4v",
    "mjpeg": "mjpeg mjpg",
    "jpeg_pipe": "mjpeg mjpg",  # how FFmpeg reads a bare stream of JPEGs
    "gif": "gif",
    "apng": "apng",
    "ogg": "ogm ogv",
    "asf": "asf wmv",
    "ivf": "ivf",
    "obu": "obu",
    "yuv4mpegpipe": "y4m",
    "mxf": "mxf",
    "rm": "rm rmvb",
    "dv": "dv dif",
}
VIDEO_EXTENSIONS = frozenset(
    suffix
    for container in CONTAINERS.split(",")
    for suffix in SUFFIXES_OF_CONTAINER.get(container, "").split()
)
# Suffixes of more than videos: what is in the file decides. A picture is a clip only where it is
# animated.
SUFFIXES_TO_PROBE = frozenset(("dat", "mod", "ogg", "tod"))
PICTURE_SUFFIXES = frozenset(("png", "webp"))
# What usually lies beside clips. It is counted, but nobody needs to be told how to make a clip of
# it.
COMPANIONS = frozenset(
    (
        "cls",
        "csv",
        "html",
        "jpeg",
        "jpg",
        "json",
        "jsonl",
        "log",
        "md",
        "npy",
        "parquet",
        "pdf",
        "pkl",
        "png",
        "py",
    )
    + ("srt", "tar", "tsv", "txt", "url", "vtt", "webp", "xml", "yaml", "yml", "zip")
)


@dataclass
class MediaFiles:
    """What lies under a folder: its clips in order, and how many files are none, by reason, with an
    example each.

    `pictures` counts the pictures in those clips that are folders of them.
    """

    clips: list[Path] = field(default_factory=list)
    pictures: Counter[Path] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    examples: dict[str, Path] = field(default_factory=dict)

    def leave_out(self, reason: str, path: Path) -> None:
        """Count a file that is no clip."""
        self.left_out[reason] += 1
        self.examples.setdefault(reason, path)

    def include(self, other: "MediaFiles") -> None:
        """Add what lies under another folder."""
        self.clips += other.clips
        self.pictures += other.pictures
        self.left_out += other.left_out
        self.examples = other.examples | self.examples

    def describe(self) -> str:
        """`4 of 7 files used: 1 .xyz (a.xyz), 2 .txt (b.txt): add --extensions xyz or rename`, or
        "" where all are.
        """
        if not self.left_out:
            return ""
        used = len(self.clips) - len(self.pictures) + self.pictures.total()
        total = used + self.left_out.total()
        reasons = ", ".join(
            f"{n} {why} ({self.examples[why].name})" for why, n in self.left_out.most_common()
        )
        unknown = sorted(
            why[1:] for why in self.left_out if why.startswith(".") and not _is_usual(why)
        )
        cure = (
            f"; for videos among them add --extensions {' '.join(unknown)} or rename"
            if unknown
            else ""
        )
        return f"{used} of {total} files used; left out: {reasons}{cure}"

    def report(self, where: Path | str) -> None:
        """Say in the log what is left out; as a warning unless it is only what usually lies beside
        clips.
        """
        if self.pictures:
            folder = next(iter(self.pictures))
            logger.info(
                "%s: %d folders of numbered pictures are read as videos, such as %s (%d pictures)",
                where,
                len(self.pictures),
                folder,
                self.pictures[folder],
            )
        if self.left_out:
            level = logging.INFO if all(map(_is_usual, self.left_out)) else logging.WARNING
            logger.log(level, "%s: %s", where, self.describe())


def _is_usual(reason: str) -> bool:
    return reason in ("hidden", "hidden folder") or reason.lstrip(".") in COMPANIONS


def is_video(name: str, extensions: Sequence[str] = ()) -> bool:
    """Whether a file name has a video's suffix, or one of `extensions`."""
    return not name.startswith(".") and _suffix(name) in VIDEO_EXTENSIONS.union(
        normalise_extensions(extensions)
    )


def normalise_extensions(extensions: Sequence[str]) -> list[str]:
    """`[".DAT", "vid"]` -> `["dat", "vid"]`."""
    return [extension.lstrip(".").lower() for extension in extensions]


def find_media(folder: Path, extensions: Sequence[str] = ()) -> MediaFiles:
    """The clips under `folder`, those of a folder before those of the folders in it, each in the
    order of names.

    Raises ValueError where `folder` is none.
    """
    if not folder.is_dir():
        raise ValueError(f"data folder {str(folder)!r} does not exist or is no folder")
    media = MediaFiles()
    asked_for = frozenset(normalise_extensions(extensions))
    for inside, files, has_folders in _walk(folder, (os.path.realpath(folder),), media):
        if inside != folder and not has_folders and is_frame_folder(files, asked_for):
            pictures = [path for path in files if is_numbered_picture(path.name)]
            media.clips.append(inside)
            media.pictures[inside] = len(pictures)
            files = [path for path in files if path not in pictures]
        for path in files:
            reason = _why_no_clip(path, asked_for)
            if reason is None:
                media.clips.append(path)
            else:
                media.leave_out(reason, path)
    return media


def is_numbered_picture(name: str) -> bool:
    """Whether a file name is that of one frame: `img_00001.jpg`, `frame12.png`, `000.webp`."""
    return bool(
        re.fullmatch(r"[^.].*?\d+\.(jpe?g|png|webp)|\d+\.(jpe?g|png|webp)", name, re.IGNORECASE)
    )


def is_frame_folder(files: Sequence[Path], asked_for: Collection[str] = ()) -> bool:
    """Whether the files of a folder are the frames of one video: several numbered pictures, and no
    video.
    """
    has_video = any(_suffix(path.name) in VIDEO_EXTENSIONS.union(asked_for) for path in files)
    return not has_video and sum(is_numbered_picture(path.name) for path in files) > 1


def leads_back(folder: Path) -> bool:
    """Whether a link to a folder leads to one that it lies in itself, so that following it would
    never end.
    """
    return folder.is_symlink() and _is_above(
        os.path.realpath(folder), os.path.realpath(folder.parent)
    )


def _is_above(folder: str, other: str) -> bool:
    """Whether `other` is `folder` or lies in it; both are real paths."""
    return other == folder or other.startswith(folder.rstrip(os.sep) + os.sep)


def _walk(
    folder: Path, chain: tuple[str, ...], media: MediaFiles
) -> Iterator[tuple[Path, list[Path], bool]]:
    """Each folder from `folder` down with its files that are not hidden, and whether there are
    folders in it.

    `chain` holds the real paths of the folders that led here.
    """
    with os.scandir(folder) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    files, folders = [], []
    for entry in found:
        path = folder / entry.name
        if entry.name.startswith("."):
            media.leave_out("hidden folder" if entry.is_dir() else "hidden", path)
        elif entry.is_dir():
            folders.append(path)
        elif entry.is_file():
            files.append(path)
        else:
            media.leave_out("broken link" if entry.is_symlink() else "special file", path)
    yield folder, files, bool(folders)
    for path in folders:
        real = os.path.realpath(path)
        if real in chain or _is_above(real, chain[-1]):
            media.leave_out("link back to a folder above", path)
        else:
            yield from _walk(path, (*chain, real), media)


def _why_no_clip(path: Path, asked_for: frozenset[str]) -> str | None:
    """None for a clip; else the reason under which the file is counted."""
    suffix = _suffix(path.name)
    if suffix in VIDEO_EXTENSIONS or suffix in asked_for:
        return None
    if suffix in PICTURE_SUFFIXES:
        return None if _holds_video(path, min_frames=2) else f".{suffix}"
    if suffix in SUFFIXES_TO_PROBE or not suffix:
        if _holds_video(path):
            return None
        return (
            f".{suffix} without a video in it"
            if suffix
            else "without suffix and without a video in it"
        )
    return f".{suffix}"


def _suffix(name: str) -> str:
    """`a.MP4` -> `mp4`; "" where what follows the last dot is no suffix, as in `Mr. Bean` and
    `take 1.5`.
    """
    suffix = name.rpartition(".")[2].lower() if "." in name else ""
    if suffix in VIDEO_EXTENSIONS:
        return suffix  # also 264 and 265, which are numbers alone
    return suffix if re.fullmatch(r"(?=.*[a-z])[a-z0-9]{1,8}", suffix) else ""


def _holds_video(path: Path, min_frames: int = 1) -> bool:
    try:
        return probe_video(path).total_num_frames >= min_frames
    except VideoDecodeError:
        return False


def stem_of(name: str) -> str:
    """A file's name without its suffix, where what follows the last dot is one: `Mr. Bean` stays
    whole.
    """
    return name.rpartition(".")[0] if _suffix(name) else name
