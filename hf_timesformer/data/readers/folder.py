"""`<data_dir>/<split>/<class>/<clip>`: the layout of a person's own clips."""

import logging
from pathlib import Path

from ..records import SPLIT_ALIASES, VideoRecords, canonical_split, is_video, walk_files


logger = logging.getLogger(__name__)


def find_split_folders(data_dir: Path) -> dict[str, Path]:
    """The split folders of `data_dir` by name; with none, `data_dir` itself (classes directly in it) as `train`."""
    if not data_dir.is_dir():
        raise ValueError(f"data folder {str(data_dir)!r} does not exist or is no folder")
    present = {folder.name.lower(): folder for folder in sorted(data_dir.iterdir()) if folder.is_dir()}
    splits = {}
    for split, aliases in SPLIT_ALIASES.items():
        found = [present[alias] for alias in aliases if alias in present]
        if len(found) > 1:
            names = ", ".join(folder.name for folder in found)
            raise ValueError(f"{data_dir} has several folders for the {split} split ({names}): keep one")
        if found:
            splits[split] = found[0]
    return splits or {"train": data_dir}


def read_folder(data_dir: Path, split: str) -> VideoRecords:
    """Records of one split. Classes are the folder names of all splits together, sorted, so that labels agree."""
    folders = find_split_folders(data_dir)
    split = canonical_split(split)
    class_names = sorted({path.name for folder in folders.values() for path in _class_folders(folder)})
    if not class_names:
        raise ValueError(f"no class folders in {data_dir}: expected <split>/<class>/<clip> or <class>/<clip>")
    if split not in folders:
        found = ", ".join(f"{name} ({folder})" for name, folder in folders.items())
        raise ValueError(f"{data_dir} has no {split} split; found: {found}")
    records = VideoRecords(class_names)
    for class_folder in _class_folders(folders[split]):
        _add_class(records, class_folder, root=folders[split])
    if not records.videos:
        raise ValueError(f"no class folders in {folders[split]}: expected <class>/<clip> in it")
    without = sorted(set(class_names) - {class_names[label] for label in records.labels})
    if without:
        logger.warning("the %s split in %s has no clips of: %s", split, folders[split], ", ".join(without))
    return records


def _class_folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _add_class(records: VideoRecords, class_folder: Path, root: Path) -> None:
    files = list(walk_files(class_folder))
    clips = [path for path in files if is_video(path.name)]
    if not clips:
        seen = f"it holds {len(files)} other files, such as {files[0].name}" if files else "it is empty"
        raise ValueError(f"class folder {class_folder} has no video clip: {seen}. Add clips or remove the folder")
    label = records.class_names.index(class_folder.name)
    for path in clips:
        records.add(path.relative_to(root).as_posix(), path, label)
