"""Videos, as files or as frames in memory, to the views that the network takes."""

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from huggingface_hub.dataclasses import validate_typed_dict
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import ChannelDimension
from transformers.processing_utils import Unpack, VideosKwargs
from transformers.utils import IMAGE_PROCESSOR_NAME, VIDEO_PROCESSOR_NAME, logging
from transformers.video_processing_utils import BaseVideoProcessor
from transformers.video_utils import VideoInput, VideoMetadata

from .decoded_readers import file_of_reader, is_reader, read_frames
from .decoding import DecodeLimits, decode_video
from .frame_folder import rate_of_pictures
from .image_processing_timesformer import TimeSformerImageProcessor
from .memory_clips import cut_in_memory, metadata_of_each, one_for_each, sample_in_memory
from .memory_frames import is_source, split_videos, to_channels
from .processor_type import forget_class
from .released_sampling import complete_settings, read_model_config
from .sampling import check_sampling
from .timed_frames import frames_a_second, sample_video
from .views import TimeSformerViewsMixin, count_channels


logger = logging.get_logger(__name__)

Sampler = partial[np.ndarray]  # `sample_frames` with the settings of a call


class TimeSformerVideoProcessorKwargs(VideosKwargs, total=False):  # type: ignore[call-arg]
    """Settings of `TimeSformerVideoProcessor` beyond those that every video processor has."""

    sampling: str | None
    sampling_rate: int | float | None
    target_fps: int | float | None
    num_clips: int | None
    num_crops: int | None
    allow_urls: bool | None
    limits: DecodeLimits | dict | None
    frame_rate: float | int | None
    start: float | int | list | tuple | None
    end: float | int | list | tuple | None


# What is never saved, and never taken from a file: a file that was downloaded must not decide what
# this machine opens, or how much work it does. And a segment belongs to one video.
NOT_SAVED = ("allow_urls", "limits", "start", "end")
# What opening a file depends on, and nothing after it.
ACCESS_SETTINGS = ("allow_urls", "limits", "frame_rate")


class TimeSformerVideoProcessor(TimeSformerViewsMixin, BaseVideoProcessor):
    """Videos to `pixel_values`: decodes, samples clips, scales, cuts crops and normalises (paper,
    4).

    `processor(videos)`: one video or a list of them, of any sizes and lengths. A video is

    * a path, `bytes` or a binary file object, decoded by this package; URLs only with
      `allow_urls=True`;
    * a folder of numbered pictures, or a list of their paths; `frame_rate` frames a second, if you
      say so;
    * a row of `datasets` that is not decoded, or the torchcodec or torchvision reader that it is
      decoded to;
    * or frames in memory: a list of PIL images, arrays or tensors, or one 4D array, channels first
      or last, of any type (`memory_frames.to_levels` has the table of their ranges).

    What is done with it:

    * Sampling (`hf_timesformer.video.sampling`): `num_clips` clips of `num_frames` frames by the
      policy `sampling` (`"clip"` with `sampling_rate` and `target_fps`, or `"segments"`). `fps=` in
      a call instead takes that many frames a second of the whole video. A video that is too short
      repeats frames.
    * Frames in memory are sampled in the same way, with `video_metadata` or without, but for two
      cases that are passed as they are: without metadata, exactly `num_frames` frames for one clip;
      with metadata, frames that its `frames_indices` shows to be sampled already. A call whose own
      `num_frames` exceeds the frames in memory raises, as stock's does, unless it has
      `do_sample_frames=True` or `video_metadata`.
    * `do_sample_frames=False` takes every frame, of files too, as one clip.
    * `start=` and `end=` of a call, seconds, one number or one for each video: only that segment
      counts as the video.
    * `limits=` (a `DecodeLimits`, or a dict of some of its fields, as in `{"max_seconds": 600}`) is
      what one file may cost. Neither it nor `allow_urls` is saved, or taken from a saved file.
    * As many channels as `image_mean` has numbers: with three, grey frames become RGB and PIL
      pictures with transparency are laid on white; with one, colour becomes grey; else frames must
      have that many channels.
    * Views: the short side is scaled to `size`; `num_crops=1` cuts the centre, `num_crops=3` left,
      centre and right, in portrait top, centre and bottom. Three crops of square frames scaled to
      the crop's size are one and the same.

    Returns:
        `pixel_values`: float `(B, T, C, H, W)`, with more than one view `(B, views, T, C, H, W)`,
        all crops of the first clip first (`num_clips * num_crops` views); with
        `return_metadata=True` also `video_metadata`, one `VideoMetadata` a video, `frames_indices`
        clip after clip.

    Raises:
        VideoDecodeError: a file that cannot be read (it is a `ValueError`, too).
        ValueError: settings and input that make no sense.
    """

    valid_kwargs = TimeSformerVideoProcessorKwargs
    settings_file = VIDEO_PROCESSOR_NAME
    num_frames = 8
    sampling = "clip"
    sampling_rate = 32
    target_fps = None
    num_clips = 1
    do_sample_frames = True
    allow_urls = False
    limits = None
    frame_rate = None
    start = None
    end = None

    def __init__(self, **kwargs: Unpack[TimeSformerVideoProcessorKwargs]):
        super().__init__(**kwargs)
        DecodeLimits.of(self.limits)
        check_sampling(
            self.sampling,
            num_frames=self.num_frames,
            sampling_rate=self.sampling_rate,
            num_clips=self.num_clips,
            target_fps=self.target_fps,
        )

    def preprocess(
        self, videos: VideoInput, **kwargs: Unpack[TimeSformerVideoProcessorKwargs]
    ) -> BatchFeature:
        """Open and sample every video once, then let `BaseVideoProcessor` and `_preprocess` make
        the views.
        """
        validate_typed_dict(self.valid_kwargs, kwargs)
        kwargs = {name: value for name, value in kwargs.items() if value is not None}
        sample = self._sampler(kwargs)
        videos = split_videos(videos)
        metadata = metadata_of_each(videos, kwargs.get("video_metadata"))
        starts = one_for_each("start", kwargs.pop("start", None), len(videos))
        ends = one_for_each("end", kwargs.pop("end", None), len(videos))
        opened = [
            self._open(video, about, sample, kwargs, start=start, end=end)
            for video, about, start, end in zip(videos, metadata, starts, ends)
        ]
        if kwargs.get("do_convert_rgb", self.do_convert_rgb):
            num_channels = count_channels(kwargs.get("image_mean", self.image_mean))
            # of files they are RGB
            opened = [(to_channels(frames, num_channels), about) for frames, about in opened]
        kwargs |= {
            "do_convert_rgb": False,
            "do_sample_frames": False,
            "video_metadata": [about for _, about in opened],
            "input_data_format": ChannelDimension.FIRST,
            "num_clips": 1 if sample is None else sample.keywords["num_clips"],
        }
        return super().preprocess([frames for frames, _ in opened], **kwargs)

    def _open(
        self,
        video: Any,
        metadata: VideoMetadata | None,
        sample: Sampler | None,
        given: dict[str, Any],
        *,
        start: float | None,
        end: float | None,
    ) -> tuple[torch.Tensor, VideoMetadata]:
        """The frames of one video that are asked for, `(T, C, H, W)`; `given` is what the call
        passes.
        """
        if is_source(video) or is_reader(video):
            access = {name: given.get(name) for name in ACCESS_SETTINGS}
            fetched = self.fetch_videos(video, sample, start=start, end=end, **access)
            return cast("tuple[torch.Tensor, VideoMetadata]", fetched)  # of one source
        frames = self._frames_in_memory(video, given.get("input_data_format"), given)
        frames, metadata = cut_in_memory(frames, metadata, start, end)
        return sample_in_memory(frames, metadata, sample, given)

    def _sampler(self, kwargs: dict[str, Any]) -> Sampler | None:
        """`sample_frames` with the settings of this call, or None where every frame is taken."""
        if not kwargs.get("do_sample_frames", self.do_sample_frames):
            return None
        if "fps" in kwargs and "num_frames" in kwargs:
            raise ValueError("num_frames and fps exclude each other: pass one of them")
        names = ("num_frames", "sampling", "sampling_rate", "target_fps", "num_clips")
        settings = {name: kwargs.get(name, getattr(self, name)) for name in names}
        fps = kwargs.get("fps", None if "num_frames" in kwargs else self.fps)
        if fps is not None:
            settings |= {"fps": fps, "num_frames": None, "num_clips": 1}
        return partial(self.sample_frames, **settings)

    def sample_frames(
        self,
        metadata: VideoMetadata,
        num_frames: int | None = None,
        fps: float | None = None,
        *,
        sampling: str | None = None,
        sampling_rate: float | None = None,
        target_fps: float | None = None,
        num_clips: int | None = None,
        **kwargs,
    ) -> np.ndarray:
        """Frame numbers to take of a video, clip after clip.

        Args:
            metadata: of the video.
            num_frames, sampling, sampling_rate, target_fps, num_clips: where None, the processor's
                own settings.
            fps: so many frames a second of the whole video, instead of clips of `num_frames`.

        Returns:
            int64 `(num_clips * num_frames,)`; with `fps` as many as that makes.

        Raises:
            ValueError: both `fps` and `num_frames`, or `fps` for a video whose own rate is unknown.
        """
        if fps is not None:
            if num_frames is not None:
                raise ValueError("num_frames and fps exclude each other: pass one of them")
            return frames_a_second(metadata, fps)
        return sample_video(
            metadata,
            self.sampling if sampling is None else sampling,
            num_frames=self.num_frames if num_frames is None else num_frames,
            sampling_rate=self.sampling_rate if sampling_rate is None else sampling_rate,
            num_clips=self.num_clips if num_clips is None else num_clips,
            target_fps=self.target_fps if target_fps is None else target_fps,
        ).reshape(-1)

    def fetch_videos(
        self,
        video_url_or_urls: Any,
        sample_indices_fn: Callable[..., np.ndarray] | None = None,
        allow_urls: bool | None = None,
        *,
        limits: DecodeLimits | Mapping[str, Any] | None = None,
        frame_rate: float | None = None,
        start: float | None = None,
        end: float | None = None,
    ) -> tuple[torch.Tensor, VideoMetadata] | list[tuple]:
        """Decode one source to frames and metadata; of a list, all frames and all metadata.

        Args:
            video_url_or_urls: a path, bytes, a binary file object, a decoder of torchcodec or
                reader of torchvision; or a list of these.
            sample_indices_fn: from `metadata=` to frame numbers, each of which is decoded once;
                None takes all.
            allow_urls, limits, frame_rate: as in the settings of the processor, which count where
                these are None.
            start, end: seconds; the video is then the segment between them.

        Returns:
            uint8 frames `(T, 3, H, W)` and the `VideoMetadata`, `frames_indices` set.

        Raises:
            VideoDecodeError: a source that cannot be read or is over a limit, and a URL without
                `allow_urls`.
        """
        options: dict[str, Any] = {
            "allow_urls": allow_urls,
            "limits": limits,
            "frame_rate": frame_rate,
            "start": start,
            "end": end,
        }
        if isinstance(video_url_or_urls, (list, tuple)):
            fetched = [
                self.fetch_videos(source, sample_indices_fn, **options)
                for source in video_url_or_urls
            ]
            return list(zip(*fetched))
        return self._fetch_one(video_url_or_urls, sample_indices_fn, **options)

    def _fetch_one(
        self,
        source: Any,
        sample_indices_fn: Callable[..., np.ndarray] | None,
        *,
        allow_urls: bool | None,
        limits: DecodeLimits | Mapping[str, Any] | None,
        frame_rate: float | None,
        start: float | None,
        end: float | None,
    ) -> tuple[torch.Tensor, VideoMetadata]:
        """One source of `fetch_videos`: frames `(T, 3, H, W)` and metadata."""
        indices: list[int] = []

        def choose(metadata: VideoMetadata) -> list[int]:
            every = range(metadata.total_num_frames)
            chosen = every if sample_indices_fn is None else sample_indices_fn(metadata=metadata)
            indices.extend(map(int, chosen))
            return indices

        if is_reader(source):
            file = file_of_reader(source)
            if file is None:
                return read_frames(source, choose, start=start, end=end)
            source = file
        if isinstance(source, (bytearray, memoryview)):
            source = bytes(source)
        frames, metadata = decode_video(
            source,
            choose,
            allow_urls=bool(self.allow_urls if allow_urls is None else allow_urls),
            limits=DecodeLimits.of(self.limits if limits is None else limits),
            frame_rate=rate_of_pictures(source, frame_rate or self.frame_rate),
            start=start,
            end=end,
        )
        return frames, replace(metadata, frames_indices=indices)

    def to_dict(self) -> dict[str, Any]:
        """The settings, without the name of the class (see `processor_type`) and without those of
        `NOT_SAVED`.
        """
        return {name: value for name, value in super().to_dict().items() if name not in NOT_SAVED}

    @classmethod
    def from_dict(cls, video_processor_dict: dict[str, Any], **kwargs):
        """A processor with these settings; those of `NOT_SAVED` count only where the caller passes
        them.
        """
        settings = {
            name: value for name, value in video_processor_dict.items() if name not in NOT_SAVED
        }
        return super().from_dict(settings, **kwargs)

    @classmethod
    def get_video_processor_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """As in transformers; what a TimeSformer checkpoint's file lacks is put in
        (`released_sampling`), and said.
        """
        name = pretrained_model_name_or_path
        given = dict(kwargs)
        settings, kwargs = super().get_video_processor_dict(name, **kwargs)
        missing, line = complete_settings(
            str(name), settings, read_model_config(name, given), given
        )
        if line is not None:
            logger.warning_once(line)
        return settings | missing, kwargs

    def save_pretrained(
        self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs
    ) -> list[str]:
        """Save the settings in `video_preprocessor_config.json`, and beside it those of a like
        image processor.

        The stock pipeline needs the second file (`preprocessor_config.json`) before it forms
        batches; one that is there already is left alone.
        """
        files = super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)
        if not os.path.exists(os.path.join(save_directory, IMAGE_PROCESSOR_NAME)):
            names = TimeSformerImageProcessor.valid_kwargs.__annotations__
            image_processor = TimeSformerImageProcessor(
                **{n: v for n, v in self.to_dict().items() if n in names}
            )
            files += image_processor.save_pretrained(
                save_directory, push_to_hub=push_to_hub, **kwargs
            )
            # a model by others may come to lie beside it
            forget_class(save_directory, IMAGE_PROCESSOR_NAME)
        return files


__all__ = ["TimeSformerVideoProcessor"]
