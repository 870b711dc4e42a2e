"""`<data_dir>/<split>/<class>/<clip>`: the layout of a person's own clips."""

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from ..media_files import MediaFiles, find_media, is_numbered_picture, leads_back, stem_of
from ..records import SPLIT_ALIASES, VideoRecords, canonical_split


logger = logging.getLogger(__name__)

# of the `VideoFolder` of `datasets`
VIDEO_FOLDER_LISTS = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


def find_split_folders(data_dir: Path) -> dict[str, Path]:
    """The split folders of `data_dir` by name; with none, `data_dir` itself (classes directly in
    it) as `train`.

    Where everything lies in one folder `data`, as in repositories of the Hub, that is taken for
    `data_dir`. Raises ValueError for several folders of one split, and for a `VideoFolder` with a
    list of its own.
    """
    if not data_dir.is_dir():
        raise ValueError(f"data folder {str(data_dir)!r} does not exist or is no folder")
    _refuse_video_folder(data_dir)
    data_dir = _folder_of_all_data(data_dir)
    present = {folder.name.lower(): folder for folder in _folders(data_dir)}
    splits = {}
    for split, aliases in SPLIT_ALIASES.items():
        found = [present[alias] for alias in aliases if alias in present]
        if len(found) > 1:
            names = ", ".join(folder.name for folder in found)
            raise ValueError(
                f"{data_dir} has several folders for the {split} split ({names}): keep one"
            )
        if found:
            splits[split] = found[0]
            _refuse_video_folder(found[0])
    if splits:
        _warn_of_other_folders(data_dir, splits)
    return splits or {"train": data_dir}


def read_folder(data_dir: Path, split: str, *, extensions: Sequence[str] = ()) -> VideoRecords:
    """Records of one split. Classes are the folder names of all splits together, sorted, so that
    labels agree.

    `extensions` are suffixes of clips beyond the usual ones. The log counts every file that is not
    used, by reason.

    Raises:
        ValueError: there are no class folders, or not this split.
    """
    folders = find_split_folders(data_dir)
    split = canonical_split(split)
    class_names = sorted({path.name for folder in folders.values() for path in _folders(folder)})
    if not class_names:
        raise ValueError(
            f"no class folders in {data_dir}: expected <split>/<class>/<clip> or <class>/<clip>"
        )
    if split not in folders:
        found = ", ".join(f"{name} ({folder})" for name, folder in folders.items())
        raise ValueError(f"{data_dir} has no {split} split; found: {found}")
    records, media = VideoRecords(class_names), MediaFiles()
    for class_folder in _folders(folders[split]):
        media.include(_add_class(records, class_folder, folders[split], extensions))
    _count_files_outside_classes(media, folders[split])
    media.report(folders[split])
    if not records.videos:
        raise ValueError(f"no class folders in {folders[split]}: expected <class>/<clip> in it")
    _warn_of_twins(media)
    labels = cast("list[int]", records.labels)  # a folder is one class
    without = sorted(set(class_names) - {class_names[label] for label in labels})
    if without:
        logger.warning(
            "the %s split in %s has no clips of: %s", split, folders[split], ", ".join(without)
        )
    return records


def _folders(folder: Path) -> list[Path]:
    """Folders in a folder by name, without hidden ones and links that lead back up."""
    inside = sorted(
        path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")
    )
    return [path for path in inside if not leads_back(path)]


def _refuse_video_folder(folder: Path) -> None:
    for name in VIDEO_FOLDER_LISTS:
        if (folder / name).is_file():
            raise ValueError(
                f"{folder} is a VideoFolder, whose {name} lists the clips: its folders are no classes. "
                f"Give --dataset csv --data_dir {folder / name}"
            )


def _folder_of_all_data(data_dir: Path) -> Path:
    """`data_dir`, or the folder `data` in it where that is the only one and has folders in turn."""
    inside = _folders(data_dir)
    if len(inside) == 1 and inside[0].name == "data" and _folders(inside[0]):
        logger.info(
            "%s holds everything in the folder 'data': that is no class, the clips are read from it",
            data_dir,
        )
        _refuse_video_folder(inside[0])
        return inside[0]
    return data_dir


def _warn_of_other_folders(data_dir: Path, splits: dict[str, Path]) -> None:
    others = [folder.name for folder in _folders(data_dir) if folder not in splits.values()]
    if others:
        logger.warning("%s: not used, since it is no split: %s", data_dir, ", ".join(others))


def _add_class(
    records: VideoRecords, class_folder: Path, root: Path, extensions: Sequence[str]
) -> MediaFiles:
    media = find_media(class_folder, extensions)
    if not media.clips:
        seen = media.describe() or "it is empty"
        if any(is_numbered_picture(path.name) for path in media.examples.values()):
            seen += ". Pictures are read as a video from a folder of their own in the class folder"
        raise ValueError(
            f"class folder {class_folder} has no video clip: {seen}. Add clips or remove the folder"
        )
    label = records.class_names.index(class_folder.name)
    for path in media.clips:
        records.add(path.relative_to(root).as_posix(), path, label)
    return media


def _count_files_outside_classes(media: MediaFiles, folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            media.leave_out("hidden folder" if path.is_dir() else "hidden", path)
        elif path.is_dir() and leads_back(path):
            media.leave_out("link back to a folder above", path)
        elif not path.is_dir():
            media.leave_out("outside the class folders", path)


def _warn_of_twins(media: MediaFiles) -> None:
    """Say where two clips of a folder have one name but for the suffix: often one video in two
    formats.
    """
    names = Counter(path.parent / stem_of(path.name) for path in media.clips)
    twins = [path for path in media.clips if names[path.parent / stem_of(path.name)] > 1]
    if twins:
        shown = ", ".join(path.name for path in twins[:2])
        logger.warning(
            "%d clips differ from another in the suffix alone (%s), all are used: remove one of each if they are the "
            "same video twice",
            len(twins),
            shown,
        )
