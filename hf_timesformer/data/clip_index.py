"""Clips found by name, for data sets that list names and leave open where the files lie."""

import logging
import os
from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath

from ..video.decoding import VideoDecodeError, decode_video
from .media_files import find_media, stem_of


logger = logging.getLogger(__name__)

# how the folder of Kinetics begins that mends unreadable originals
REPLACEMENTS = "replacement_for_corrupted"


class ClipIndex:
    """The clips under a data folder by their names, for data sets that list names and leave open
    where the files lie.

    Where several files have one name (`a.mp4` and `a.webm`, or a copy in another folder), the first
    one that can be read is taken, those of `replacement_for_corrupted...` folders last: so a
    replacement stands in for a broken original, and only for that. `report` says how often, and
    which file it was.
    """

    def __init__(self, data_dir: Path, extensions: Sequence[str] = ()):
        self.data_dir = data_dir
        self.media = find_media(data_dir, extensions)
        self._by_stem: dict[str, list[Path]] = defaultdict(list)
        for path in self.media.clips:
            # a folder has no suffix
            stem = path.name if path in self.media.pictures else stem_of(path.name)
            self._by_stem[stem].append(path)
        self._chosen: dict[str, Path] = {}
        # file that is taken -> those of its name that are not
        self._passed_over: dict[Path, list[Path]] = {}
        self._replaced: list[tuple[Path, Path]] = []

    def find(self, stem: str) -> Path | None:
        """The file of that name without folder and suffix, or None."""
        if stem not in self._by_stem:  # not `[stem]`, which would add it
            return None
        if stem not in self._chosen:
            self._chosen[stem] = self._choose(_distinct(self._by_stem[stem]))
        return self._chosen[stem]

    def locate(self, name: str) -> Path | None:
        """The file that a list means by `name`: a path from the data folder or an absolute one, or
        None.

        Also without its suffix (`archery/abc`), with Windows' separators (`archery\\abc.mp4`), and
        in another place than the list says, as where the list comes from another machine: then the
        folders must agree as far as they can. With `archery/abc.mp4` on the list and
        `k400/archery/abc.mp4` on disk it is that; `k400/zumba/abc.mp4` it is only where no clip at
        all lies in a folder `archery`.

        Raises:
            ValueError: several files may be meant.
        """
        path = self.data_dir / name  # an absolute name stays as it is
        if path.is_file() or path in self.media.pictures:
            return path
        parts = (PureWindowsPath(name) if "\\" in name else PurePosixPath(name)).parts
        if not parts:
            return None
        path = self.data_dir.joinpath(*parts)
        if path.is_file() or path in self.media.pictures:
            return path
        candidates = self._by_stem.get(parts[-1], []) or self._by_stem.get(stem_of(parts[-1]), [])
        return self._nearest(name, parts[:-1], _distinct(candidates))

    def _nearest(self, name: str, folders: tuple[str, ...], candidates: list[Path]) -> Path | None:
        """The candidate that lies in the same folders as listed, counted from the last one up."""
        agreeing = {path: _common_end(path.parent.parts, folders) for path in candidates}
        most = max(agreeing.values(), default=0)
        if most == 0 and folders and folders[-1] in self._folder_names:
            return None
        candidates = [path for path, count in agreeing.items() if count == most]
        originals = [path for path in candidates if not _is_replacement(path)]
        if len({path.parent for path in originals}) > 1:
            raise ValueError(
                f"{name} is not in {self.data_dir}, and may be {originals[0]} or {originals[1]}: list that"
            )
        return self._choose(candidates) if candidates else None

    @cached_property
    def _folder_names(self) -> set[str]:
        """Names of all folders that clips lie in."""
        return {path.parent.name for path in self.media.clips}

    def report(self, where: Path | str) -> None:
        """Say in the log what is left out, what was replaced, and where one of several files was
        taken.
        """
        self.media.report(where)
        if self._replaced:
            broken, replacement = self._replaced[0]
            logger.warning(
                "%d clips that cannot be read are replaced, such as %s by %s",
                len(self._replaced),
                broken,
                replacement,
            )
        if self._passed_over:
            taken, others = next(iter(self._passed_over.items()))
            logger.warning(
                "%d clips have several files of their name; the first that can be read is taken, such as %s, not %s",
                len(self._passed_over),
                taken,
                ", ".join(map(str, others)),
            )

    def _choose(self, candidates: list[Path]) -> Path:
        if len(candidates) == 1:
            return candidates[0]
        # stable: originals in their order, then replacements
        candidates = sorted(candidates, key=_is_replacement)
        taken = next((path for path in candidates if _decodes(path)), candidates[0])
        if _is_replacement(taken):
            self._replaced.append((candidates[0], taken))
        else:
            others = [path for path in candidates if path != taken and not _is_replacement(path)]
            if others:
                self._passed_over[taken] = others
        return taken


def _common_end(first: Sequence[str], second: Sequence[str]) -> int:
    """How many parts two paths have in common, from the last one up: `a/b/c` and `x/b/c` -> 2."""
    count = 0
    for one, other in zip(reversed(first), reversed(second)):
        if one != other:
            break
        count += 1
    return count


def _distinct(paths: list[Path]) -> list[Path]:
    """One path for each file, whatever links lead to it."""
    return list({os.path.realpath(path): path for path in reversed(paths)}.values())[::-1]


def _is_replacement(path: Path) -> bool:
    return any(part.startswith(REPLACEMENTS) for part in path.parts)


def _decodes(path: Path) -> bool:
    try:
        decode_video(path, [0])
    except (VideoDecodeError, OSError):
        return False
    return True
