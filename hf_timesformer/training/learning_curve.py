"""What a run says about itself: clips that could not be read, time spent waiting for data, the learning curve."""

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from accelerate.utils import gather_object

from ..data.clips import BadClipsError, Fault, list_faults


logger = logging.getLogger(__name__)

MIN_BAD_CLIPS = 5


class FaultTally:
    """Distinct clips that could not be read, logged by name when first met; `sync` brings the processes together.

    `limit` is the largest share of `num_clips` that may be unreadable; a handful (fewer than 5) never stops a run.
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
                logger.warning("%s cannot be read and is %s (%s): %s", name, self.remedy, fault.reason, fault.message)

    def sync(self) -> None:
        """Share what each process met; all must call it, and all raise BadClipsError once there are too many."""
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
        self.faults = {fault[0]: Fault(*fault) for fault in json.loads(path.read_text(encoding="utf-8"))}

    def metrics(self) -> dict[str, object]:
        """Numbers and names for `train_results.json`."""
        faults = self.faults.values()
        return {
            "bad_clips": len(faults),
            "bad_clips_by_reason": dict(Counter(fault.reason for fault in faults)),
            "bad_clip_names": sorted(fault.video_id for fault in faults),
        }


def draw_curve(log_history: Sequence[Mapping[str, float]], path: Path) -> bool:
    """Draw loss and accuracy over epochs as a PNG; False, with one line in the log, where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        logger.warning("no learning curve is drawn: pip install matplotlib (extra `viz`)")
        return False
    curves = {
        "loss": {"loss": "training", "eval_loss": "validation"},
        "validation accuracy": {"eval_top1_accuracy": "top-1", "eval_top5_accuracy": "top-5"},
    }
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, (title, lines) in zip(figure.subplots(1, 2), curves.items()):
        for key, label in lines.items():
            points = [(entry["epoch"], entry[key]) for entry in log_history if key in entry]
            if points:
                axes.plot(*zip(*points), marker=".", label=label)
        axes.set(title=title, xlabel="epoch")
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    figure.savefig(path, dpi=120)
    return True
