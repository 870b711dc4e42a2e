"""One video of any length to its timeline: decoded once, forward, while the network runs beside it."""

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

from ..inference import REGRESSION, problem_type_of
from ..model.modeling_timesformer import TimeSformerForVideoClassification
from ..video.decoding_limits import DecodeLimits, VideoDecodeError
from ..video.frame_stream import STREAM_LIMITS, FrameStream
from ..video.video_processing_timesformer import TimeSformerVideoProcessor
from .journal import Journal
from .rows import Rows
from .segments import SegmentRules, find_segments
from .stream_classifier import StreamClassifier, WindowPrediction
from .timeline import Timeline
from .windows import Windows


# Decoded frames that may wait for the network: a few windows' worth, so that neither side idles.
FRAMES_AHEAD = 32

Item = TypeVar("Item")


@dataclass(frozen=True)
class LabelSettings:
    """How videos are labelled: windows of `window` seconds every `stride` seconds, `batch_size` of
    them at a time; `rules` say what becomes a segment; `with_features` keeps CLS of every window.
    """

    window: float = 2.0
    stride: float = 1.0
    batch_size: int = 8
    rules: SegmentRules = field(default_factory=SegmentRules)
    with_features: bool = False


def label_video(
    source: str | os.PathLike,
    model: TimeSformerForVideoClassification,
    processor: TimeSformerVideoProcessor,
    settings: LabelSettings | None = None,
    *,
    journal: Path | None = None,
    resume: bool = False,
    about: dict[str, Any] | None = None,
    progress: Callable[[float, float | None], None] = lambda seconds, length: None,
    frame_rate: float | None = None,
    limits: DecodeLimits = STREAM_LIMITS,
) -> Timeline:
    """The timeline of one video. Memory does not grow with its length, but for the scores
    themselves.

    Args:
        source: path of the video, or a folder of numbered pictures.
        model: in eval mode, on its device, in its dtype.
        processor: that of the model.
        settings: windows and rules.
        journal: a file that keeps what is done; with `resume` the windows in it are not run again.
        about: what else decides the scores (the model's name, ...): it stands in the journal and in
            the timeline.
        progress: called with the seconds that are done and the length that the container claims,
            None if it does not.
        frame_rate: frames a second of a folder of pictures, which do not tell.
        limits: what the video may cost.

    Raises VideoDecodeError where nothing of the video can be decoded, ValueError for a journal of
    other settings.
    """
    settings = settings or LabelSettings()
    windows = Windows(settings.window, settings.stride, processor.num_frames)
    looked = describe_windows(settings, processor, about)
    if frame_rate is not None:
        looked["frame_rate"] = frame_rate
    kept = _Kept(
        None if journal is None else Journal(journal, looked | _fingerprint(source), resume=resume)
    )
    first = len(kept.scores)
    stream = FrameStream(
        source, times=windows.all_moments(first), limits=limits, frame_rate=frame_rate
    )
    classifier = StreamClassifier(
        model,
        processor,
        window=settings.window,
        stride=settings.stride,
        batch_size=settings.batch_size,
        with_features=settings.with_features,
        first=first,
    )
    end = 0.0
    for predictions, seconds in _predictions(stream, classifier):
        end = seconds  # of the video, as far as it has been read
        if predictions:
            kept.add(predictions)
            progress(predictions[-1].end, stream.length)
    return _finished(
        source, model, settings.rules, kept, windows.count(end),
        windows=windows, seconds=end, frame_rate=stream.frame_rate, gaps=stream.gaps,
        settings=looked | asdict(settings.rules),
    )  # fmt: skip


def _finished(
    source: str | os.PathLike,
    model: TimeSformerForVideoClassification,
    rules: SegmentRules,
    kept: "_Kept",
    count: int,
    **fields: Any,
) -> Timeline:
    """The timeline of the first `count` windows with its segments; `fields` are its others."""
    timeline = Timeline(
        video=os.fspath(source),
        labels=[str(model.config.id2label[index]) for index in range(model.config.num_labels)],
        scores=kept.scores.first(count),
        is_regression=problem_type_of(model.config) == REGRESSION,
        features=kept.features.first(count) if len(kept.features) else None,
        **fields,
    )
    if not timeline.is_regression:
        timeline.segments = find_segments(timeline.scores, timeline.cells, timeline.labels, rules)
    return timeline


class _Kept:
    """Scores and features of the windows that are done, those of the run before a kill first."""

    def __init__(self, journal: Journal | None):
        self.journal = journal
        self.scores = Rows() if journal is None else journal.scores
        self.features = Rows() if journal is None else journal.features

    def add(self, predictions: list[WindowPrediction]) -> None:
        """Append windows, and write them to the journal, if there is one."""
        for one in predictions:
            self.scores.append(one.scores)
            if one.features is not None:
                self.features.append(one.features)
        if self.journal is not None:
            self.journal.add((one.scores, one.features) for one in predictions)


def _predictions(
    stream: FrameStream, classifier: StreamClassifier
) -> Iterator[tuple[list[WindowPrediction], float]]:
    """After each frame the windows that it completed, often none, and the second at which it ends;
    at the end of the video those that it leaves open.
    """
    end = 0.0
    classifier.begin_at(0.0)  # the first frame that still matters may be a later one
    for frame in ahead(iter(stream), FRAMES_AHEAD):
        end = frame.seconds + frame.duration
        yield classifier.push(frame.pixels, frame.seconds), end
    yield classifier.finish(end), end


def describe_windows(
    settings: LabelSettings,
    processor: TimeSformerVideoProcessor,
    about: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Whatever decides the scores of the windows, by name. The rules do not: they apply to finished
    scores.
    """
    return {
        **(about or {}),
        "window": settings.window,
        "stride": settings.stride,
        "num_frames": processor.num_frames,
        "num_crops": processor.num_crops,
        "with_features": settings.with_features,
    }


def _fingerprint(source: str | os.PathLike) -> dict[str, Any]:
    """What tells that a video has been replaced by another. Raises VideoDecodeError where there is
    none.
    """
    try:
        stat = os.stat(source)
    except OSError as error:
        name = os.fspath(source)
        raise VideoDecodeError(name, "not-found", f"cannot be opened: {error}") from error
    return {"video": os.fspath(source), "bytes": stat.st_size, "modified": stat.st_mtime_ns}


def ahead(items: Iterator[Item], count: int) -> Iterator[Item]:
    """The items of an iterator that runs in a thread of its own, up to `count` ahead of the caller.

    Decoding leaves Python free, so the network runs meanwhile. An exception of the iterator is
    raised here. A caller that stops early stops the thread.
    """
    end = cast(Item, object())
    with ThreadPoolExecutor(1, "decode ahead") as thread:
        waiting = deque(thread.submit(next, items, end) for _ in range(count))
        try:
            while (item := waiting.popleft().result()) is not end:
                waiting.append(thread.submit(next, items, end))
                yield item
        finally:
            thread.shutdown(cancel_futures=True)
