"""What the page shows of a long video: the classes over time; a click on a segment plays it."""

import importlib.util
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ..inference import MULTI_LABEL, problem_type_of
from ..model.modeling_timesformer import TimeSformerForVideoClassification
from ..timeline.film import cut_film
from ..timeline.labelling import LabelSettings, label_video
from ..timeline.picture import draw_timeline, seconds_at
from ..timeline.segments import Segment, SegmentRules
from ..timeline.timeline import Timeline
from ..video.decoding import probe_video
from ..video.video_processing_timesformer import TimeSformerVideoProcessor


WINDOW = 2.0  # seconds that the model sees at a time
# a longer video gets fewer windows a second, so that a visitor does not wait for hours
MAX_WINDOWS = 600
MAX_PIECE = 60.0  # seconds that a click plays at most
PIECES_SIDE = 360  # pixels


@dataclass
class ShownTimeline:
    """A timeline with the picture that the visitor clicks on."""

    timeline: Timeline
    picture: Image.Image | None


def choose_stride(seconds: float) -> float:
    """Seconds from window to window in a video of that length."""
    return max(WINDOW / 2, seconds / MAX_WINDOWS)


def timeline_of(
    video: str,
    model: TimeSformerForVideoClassification,
    processor: TimeSformerVideoProcessor,
    progress=lambda share: None,
) -> ShownTimeline | None:
    """The timeline of a video that is longer than two windows, None for a shorter one. Raises
    VideoDecodeError.
    """
    seconds = probe_video(video).duration or 0.0
    if seconds <= 2 * WINDOW:
        return None
    exclusive = problem_type_of(model.config) != MULTI_LABEL
    settings = LabelSettings(
        WINDOW, choose_stride(seconds), rules=SegmentRules(exclusive=exclusive)
    )
    timeline = label_video(
        video,
        model,
        processor,
        settings,
        progress=lambda done, length: _tell(progress, done / seconds),
    )
    has_matplotlib = importlib.util.find_spec("matplotlib") is not None
    return ShownTimeline(timeline, draw_timeline(timeline) if has_matplotlib else None)


def _tell(progress: Callable[[float], object], share: float) -> None:
    progress(min(1.0, share))


def note(shown: ShownTimeline | None) -> str:
    """The line over the timeline."""
    if shown is None:
        return ""
    timeline = shown.timeline
    text = f"{len(timeline.scores)} windows of {WINDOW:g} s, one every {timeline.windows.stride:.3g} s. "
    if timeline.is_regression:
        return text + "Click into the picture to play what was there."
    if not timeline.segments:
        return text + "No class is likely enough for long enough to make a segment."
    return text + "Click on a segment to play it."


def name_segment(segment: Segment) -> str:
    """A segment as the list shows it: `1:02.0 to 1:10.5  Archery 93%`."""
    return f"{_clock(segment.start)} to {_clock(segment.end)}  {segment.label} {segment.score:.0%}"


def _clock(seconds: float) -> str:
    return f"{int(seconds // 60)}:{seconds % 60:04.1f}"


def segment_at(shown: ShownTimeline, x: float) -> Segment:
    """The segment under the column `x` of the picture; where there is none, the stretch of a window
    around it.
    """
    timeline = shown.timeline
    width = shown.picture.width if shown.picture is not None else 1
    seconds = seconds_at(timeline, x, width)
    for segment in timeline.segments:
        if segment.start <= seconds < segment.end:
            return segment
    start = max(0.0, min(seconds - WINDOW / 2, timeline.seconds - WINDOW))
    return Segment(start, start + WINDOW, "", 0.0)


def play(shown: ShownTimeline, segment: Segment, folder: str) -> str:
    """A film of the segment, of its first minute if it is longer, that any browser plays. Raises
    VideoDecodeError.
    """
    end = min(segment.end, segment.start + MAX_PIECE)
    path = Path(tempfile.mkdtemp(dir=folder), "piece.mp4")
    return str(cut_film(path, shown.timeline.video, segment.start, end, short_side=PIECES_SIDE))
