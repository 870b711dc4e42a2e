"""Frames that come one after another, from a file, a camera or anything else, to predictions over
time.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ..inference import name_scores, scores_of
from ..model.modeling_timesformer import TimeSformerForVideoClassification
from ..video.decoding_segment import MAX_TOLERANCE
from ..video.video_processing_timesformer import TimeSformerVideoProcessor
from .windows import Windows


@dataclass
class WindowPrediction:
    """What the model says of the window `number` (from 0), from `start` to `end` in the seconds of
    the frames that were pushed.

    `scores` float32 `(labels,)`: probabilities, or a regression's numbers. `answers` are the same
    with their names, the best first (see `inference.name_scores`). `features` float32 `(hidden,)`
    is CLS of the last block, None where it was not asked for.
    """

    number: int
    start: float
    end: float
    scores: np.ndarray
    answers: list[dict[str, Any]]
    features: np.ndarray | None = None


@dataclass
class _OpenWindow:
    """A window that still waits for frames; `frames` holds the views of those it has,
    `(views, c, h, w)` each.
    """

    number: int
    moments: np.ndarray
    frames: list[torch.Tensor] = field(default_factory=list)


class StreamClassifier:
    """Classifies a stream of frames window by window, keeping no more of it than a window.

        stream = StreamClassifier(model, processor, window=2.0, stride=1.0)
        for prediction in stream(frames_with_times):
            print(prediction.start, prediction.end, prediction.answers[0])

    or, frame by frame, `stream.push(frame, seconds)` and at the end `stream.finish()`; each returns
    the predictions of the windows that were completed by it.

    Args:
        model: in eval mode, on its device, in its dtype.
        processor: its frames a clip, sizes, crops and normalisation are used; its sampling is not:
            a window takes the frames that are shown at the middles of its `num_frames` equal parts.
        window, stride: a window of so many seconds begins every so many seconds, the first with the
            first frame.
        batch_size: windows that run together. Predictions come once so many are complete.
        max_delay: for live sources. A window that is complete more than so many seconds after it
            happened, by `clock`, is dropped and counted in `dropped`; None drops none.
        clock: seconds that pass; the first frame is taken to be pushed in the moment it was taken.
        with_features: predictions carry CLS of the last block.
        first: number of the first window to run; earlier ones are passed over.

    A frame is what the processor takes: a PIL image, an array or tensor of `(H, W, 3)` or
    `(3, H, W)`, values 0 to
    255. `push` raises ValueError for a time that is earlier than the last one.
    """

    def __init__(
        self,
        model: TimeSformerForVideoClassification,
        processor: TimeSformerVideoProcessor,
        *,
        window: float = 2.0,
        stride: float = 1.0,
        batch_size: int = 1,
        max_delay: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        with_features: bool = False,
        first: int = 0,
    ):
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if with_features and not hasattr(model, "timesformer"):
            raise ValueError(
                f"with_features needs a TimeSformer model; {type(model).__name__} gives logits alone"
            )
        self.windows = Windows(window, stride, processor.num_frames)
        self.model, self.processor = model, processor
        self.dropped = 0
        self._batch_size, self._max_delay, self._clock = batch_size, max_delay, clock
        self._with_features = with_features
        self._origin: float | None = None  # the time of the first frame, in the caller's seconds
        self._begun_at = 0.0  # the same moment on the clock
        # the frame that is shown until the next one comes
        self._held: tuple[float, Any] | None = None
        self._step = 0.0  # from the last but one frame to the last
        self._next = first  # the number of the next window to open
        self._open: deque[_OpenWindow] = deque()
        self._complete: list[_OpenWindow] = []  # waiting for a batch

    def __call__(self, frames: Iterable[tuple[Any, float]]) -> Iterator[WindowPrediction]:
        """The predictions for `(frame, seconds)` after `(frame, seconds)`, as they come."""
        for frame, seconds in frames:
            yield from self.push(frame, seconds)
        yield from self.finish()

    def begin_at(self, seconds: float) -> None:
        """Let the first window begin at `seconds`, and not with the first frame that is pushed."""
        self._origin, self._begun_at = seconds, self._clock()

    @torch.inference_mode()
    def push(self, frame: Any, seconds: float) -> list[WindowPrediction]:
        """Take the next frame.

        Args:
            frame: a PIL image, or an array or tensor `(H, W, 3)` or `(3, H, W)`, as told above.
            seconds: when it is shown; it is shown until the next one is.

        Returns:
            The predictions that became ready.

        Raises:
            ValueError: a time before that of the last frame.
        """
        if self._origin is None:
            self.begin_at(seconds)
        assert self._origin is not None  # begin_at has set it
        now = seconds - self._origin
        if self._held is not None:
            if now < self._held[0]:
                raise ValueError(
                    f"frames must come in order: {seconds} s after {self._held[0] + self._origin} s"
                )
            self._step = now - self._held[0]
            self._open_until(now - MAX_TOLERANCE)
            self._show_until(now - MAX_TOLERANCE)
            self._close_until(now + MAX_TOLERANCE)
        self._held = now, frame
        return self._run_batches(at_least=self._batch_size)

    @torch.inference_mode()
    def finish(self, end: float | None = None) -> list[WindowPrediction]:
        """The predictions that are left, up to the end of the stream, where the last frame stops
        being shown.

        `end` is in the seconds of `push`; None takes the last frame to last as long as the one
        before it. Windows that run past the end are filled with the last frame. A stream without
        frames has no predictions.
        """
        if self._held is None:
            return []
        assert self._origin is not None  # since the first push
        length = self._held[0] + self._step if end is None else end - self._origin
        count = self.windows.count(length)
        self._open_until(self.windows.start(count - 1) + MAX_TOLERANCE)
        self._open = deque(window for window in self._open if window.number < count)
        self._show_until(self.windows.end(count))
        self._close_until(self.windows.end(count))
        self._held = None
        return self._run_batches(at_least=1)

    def _open_until(self, now: float) -> None:
        """Open the windows that begin before `now`."""
        while self.windows.start(self._next) < now:
            self._open.append(_OpenWindow(self._next, self.windows.moments(self._next)))
            self._next += 1

    def _show_until(self, now: float) -> None:
        """Give the held frame to every open window that looks at a moment before `now` and has none
        for it yet.
        """
        views = None
        for window in self._open:
            while (
                len(window.frames) < len(window.moments)
                and window.moments[len(window.frames)] < now
            ):
                if views is None:
                    assert self._held is not None
                    views = self._make_views(self._held[1])
                window.frames.append(views)

    def _close_until(self, now: float) -> None:
        """Move the windows that end before `now` to those that are complete, or drop them where
        they are late.
        """
        while self._open and self.windows.end(self._open[0].number) <= now:
            window = self._open.popleft()
            if self._is_late(window):
                self.dropped += 1
            else:
                self._complete.append(window)

    def _is_late(self, window: _OpenWindow) -> bool:
        if self._max_delay is None:
            return False
        return self._clock() - self._begun_at - self.windows.end(window.number) > self._max_delay

    def _make_views(self, frame: Any) -> torch.Tensor:
        """The crops of one frame, ready for the model: `(views, c, h, w)`, in its dtype.

        Once a frame, for all the windows that share it.
        """
        views = self.processor([[frame]], do_sample_frames=False, return_tensors="pt")
        # one view: (1, 1, c, h, w); several: (1, views, 1, c, h, w)
        views = views["pixel_values"].flatten(0, -4)
        parameter = next(self.model.parameters(), None)  # an exported graph has none
        return views if parameter is None else views.to(parameter.dtype)

    def _run_batches(self, at_least: int) -> list[WindowPrediction]:
        predictions = []
        while len(self._complete) >= at_least:
            batch, self._complete = (
                self._complete[: self._batch_size],
                self._complete[self._batch_size :],
            )
            predictions += self._run(batch)
        return predictions

    def _run(self, batch: list[_OpenWindow]) -> list[WindowPrediction]:
        frames = torch.stack([frame for window in batch for frame in window.frames])
        # (b*t, v, c, h, w) -> (b, v, t, c, h, w)
        pixel_values = frames.unflatten(0, (len(batch), -1)).transpose(1, 2)
        logits, features = self._forward(pixel_values)
        scores = scores_of(logits, self.model.config).cpu()
        predictions = []
        assert self._origin is not None  # since the first push
        for index, window in enumerate(batch):
            start, end = self.windows.start(window.number), self.windows.end(window.number)
            predictions.append(
                WindowPrediction(
                    window.number,
                    start + self._origin,
                    end + self._origin,
                    scores[index].numpy(),
                    name_scores(scores[index], self.model.config),
                    None if features is None else features[index],
                )
            )
        return predictions

    def _forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, np.ndarray | None]:
        """Logits `(b, labels)` and, where asked for, CLS `(b, hidden)`: the mean over the views of
        `(b, v, ...)`.
        """
        parameter = next(self.model.parameters(), None)  # an exported graph has none
        if parameter is not None:
            pixel_values = pixel_values.to(parameter.device)
        if not self._with_features:
            return self.model(pixel_values=pixel_values).logits, None
        num_views = pixel_values.shape[1]
        outputs = self.model.timesformer(pixel_values.flatten(0, 1), cls_only=True)
        cls = outputs.last_hidden_state[:, 0]  # (b*v, hidden)
        logits = self.model.classifier(cls).unflatten(0, (-1, num_views)).mean(dim=1)
        return logits, cls.unflatten(0, (-1, num_views)).mean(dim=1).float().cpu().numpy()
