"""Which videos a command line of `timesformer label` names, what their files are called, and which
are finished.
"""

import json
from pathlib import Path
from typing import Any


def find_videos(given: list[str]) -> list[Path]:
    """The videos that the command line names, in its order: files, the videos of folders, those of
    `@LIST`s.

    Raises ValueError for a folder or list without a video, and for an address.
    """
    from ..data.media_files import find_media, is_frame_folder

    videos: list[Path] = []
    for name in given:
        if "://" in name and not Path(name).exists():
            raise ValueError(
                f"{name} is an address; a long video is read from a file: download it first "
                "(`timesformer predict --allow_urls` looks at single clips of an address)"
            )
        if name.startswith("@"):
            lines = Path(name[1:]).read_text(encoding="utf-8").splitlines()
            found = [Path(line.strip()) for line in lines if line.strip()]
        elif Path(name).is_dir():
            if is_frame_folder([path for path in Path(name).iterdir() if path.is_file()]):
                found = [Path(name)]
            else:
                media = find_media(Path(name))
                media.report(name)
                found = media.clips
        else:
            found = [Path(name)]
        if not found:
            raise ValueError(f"{name} holds no video, and no numbered pictures")
        videos += found
    return videos


def output_names(videos: list[Path]) -> list[str]:
    """A name for each video's files: its stem; where two have one stem, with as many folders as
    tell them apart.
    """
    stems = [video.name if video.is_dir() else video.stem for video in videos]
    names = stems
    depth = 1
    while len(set(names)) < len(names):
        longest = max(len(video.parts) for video in videos)
        if depth >= longest:
            repeated = next(name for name in names if names.count(name) > 1)
            raise ValueError(
                f"{repeated} would be written twice: give each video once, and no two that differ in suffix"
            )
        depth += 1
        names = [
            "_".join([*video.parts[-depth:-1], stem]).strip("/")
            for video, stem in zip(videos, stems)
        ]
    return names


def further_files(base: Path, with_film: bool, features: Path | None) -> list[Path]:
    """The files of one video that only some runs write: the film, the features."""
    files = [base.with_name(f"{base.name}.overlay.mp4")] if with_film else []
    return files if features is None else [*files, features_file(base, features)]


def features_file(base: Path, given: Path) -> Path:
    """Where the features of one video go: the Parquet file that is given, or one in that folder."""
    return given if given.suffix else given / f"{base.name}.parquet"


def is_finished(base: Path, further: list[Path], settings: dict[str, Any]) -> bool:
    """Whether a run before has written everything of a video: `base.json`, which comes last, and
    the `further` files that are asked for now. Where one of those is missing, that is said.

    Raises ValueError where it was made with other settings than these.
    """
    path = base.with_name(f"{base.name}.json")
    if not path.is_file():
        return False
    found = json.loads(path.read_text(encoding="utf-8"))
    for name, value in json.loads(json.dumps(settings)).items():
        if found.get(name) != value:
            raise ValueError(
                f"{path} was made with {name}={found.get(name)!r}, now it is {value!r}: choose "
                "another --output_dir, or leave out --resume to label all anew"
            )
    for file in further:
        if not file.is_file():
            print(f"{path} is there, {file} is not: the video is labelled again")
            return False
    return True
