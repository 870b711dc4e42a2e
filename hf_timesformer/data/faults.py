"""Clips that cannot be read: what a fault is, how many of them there are, and when they are too
many.
"""

import json
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from accelerate.utils import gather_object

from ..video.decoding import VideoDecodeError


logger = logging.getLogger(__name__)

MIN_BAD_CLIPS = 5


class BadClipsError(ValueError):
    """So many clips cannot be read that training would not be what was asked for."""


class Fault(NamedTuple):
    """A clip that could not be read: its `video_id`, a short stable `reason`, and the decoder's
    message.
    """

    video_id: str
    reason: str
    message: str

    @property
    def line(self) -> str:
        """The video and what is wrong with it; a message that has its path names it already."""
        return fault_line(self.video_id, self.message)


def fault_line(video_id: str, message: str) -> str:
    """`run/1.mp4` and `/data/train/run/1.mp4: is empty` -> the second alone; else both."""
    return message if video_id in message else f"{video_id}: {message}"


def describe_fault(video_id: str, error: VideoDecodeError | OSError) -> Fault:
    """The fault that an exception of the decoder or the file system stands for."""
    return Fault(video_id, getattr(error, "reason", None) or type(error).__name__, str(error))


def list_faults(faults: Sequence[Fault], limit: int = 20) -> str:
    """Names and reasons on one line, the first `limit` of them."""
    shown = "; ".join(f"{fault.video_id}: {fault.reason}" for fault in faults[:limit])
    return shown + (f"; and {len(faults) - limit} more" if len(faults) > limit else "")


class FaultTally:
    """Distinct clips that could not be read, logged by name when first met; `sync` brings the
    processes together.

    `limit` is the largest share of `num_clips` that may be unreadable; a handful (fewer than 5)
    never stops a run.
    """

    def __init__(self, num_clips: int, *, limit: float, remedy: str = "replaced"):
        self.num_clips, self.limit, self.remedy = num_clips, limit, remedy
        self.faults: dict[str, Fault] = {}
        self._unshared: list[Fault] = []

    def add(self, faults: Sequence[Sequence[str]]) -> None:
        """Take down what a batch of this process met."""
        for name, *rest in faults:
            if name not in self.faults:
                fault = self.faults[name] = Fault(name, *rest)
                self._unshared.append(fault)
                logger.warning(
                    "a clip cannot be read and is %s (%s): %s",
                    self.remedy,
                    fault.reason,
                    fault.line,
                )

    def sync(self) -> None:
        """Share what each process met; all must call it, and all raise BadClipsError once there are
        too many.
        """
        for fault in gather_object(self._unshared):
            self.faults.setdefault(fault[0], Fault(*fault))
        self._unshared = []
        count = len(self.faults)
        if count >= MIN_BAD_CLIPS and count > self.limit * self.num_clips:
            raise BadClipsError(
                f"{count} of {self.num_clips} training clips cannot be read, more than max_bad_fraction {self.limit}: "
                f"{list_faults(list(self.faults.values()))}. Repair or remove them, or raise --max_bad_fraction"
            )

    def save(self, path: Path) -> None:
        """Write the faults, for a run that resumes."""
        path.write_text(json.dumps(list(self.faults.values())), encoding="utf-8")

    def load(self, path: Path) -> None:
        """Take over the faults that an interrupted run had met."""
        self.faults = {
            fault[0]: Fault(*fault) for fault in json.loads(path.read_text(encoding="utf-8"))
        }

    def metrics(self) -> dict[str, object]:
        """Numbers and names for `train_results.json`."""
        faults = self.faults.values()
        return {
            "bad_clips": len(faults),
            "bad_clips_by_reason": dict(Counter(fault.reason for fault in faults)),
            "bad_clip_names": sorted(fault.video_id for fault in faults),
        }
