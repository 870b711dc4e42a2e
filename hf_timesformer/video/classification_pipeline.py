"""transformers' video-classification pipeline, with the settings of our processor as arguments."""

from typing import Any

from transformers.image_processing_utils import BatchFeature
from transformers.pipelines.video_classification import VideoClassificationPipeline

from .memory_frames import are_pictures, is_frame
from .video_processing_timesformer import TimeSformerVideoProcessor, TimeSformerVideoProcessorKwargs


class TimeSformerPipeline(VideoClassificationPipeline):
    """`pipeline("video-classification")` where this package is imported.

    With `TimeSformerVideoProcessor` it differs from stock's in two ways, with any other processor
    in none:

    * `pipe([picture, picture, ...])` is one video of these frames and gives one answer; stock takes
      each picture for a video. So is a list of the paths of pictures. Several videos of frames are
      a list of lists.
    * The processor's settings are arguments, of `pipeline(...)` for every call or of one call
      alone: `num_clips`, `num_crops`, `sampling`, `fps`, `start`, `end`, `limits`, `allow_urls` and
      so on. `frame_sampling_rate`, which stock passes over where there is a video processor, is our
      `sampling_rate`.
    """

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict, dict, dict]:
        settings = {}
        if isinstance(self.video_processor, TimeSformerVideoProcessor):
            ours = TimeSformerVideoProcessorKwargs.__annotations__.keys() - {"num_frames"}
            settings = {name: kwargs.pop(name) for name in ours & kwargs.keys()}
            rate = kwargs.pop("frame_sampling_rate", None)
            if rate is not None:
                settings |= {"sampling": "clip", "sampling_rate": rate} | settings
        preprocess, forward, postprocess = super()._sanitize_parameters(**kwargs)
        return preprocess | settings, forward, postprocess

    def __call__(self, inputs: Any, **kwargs: Any) -> list:
        """As stock's, but for a list of frames, which is one video.

        Returns `[{"score": ..., "label": ...}, ...]` of one video, a list of such lists of a list
        of videos. Raises what the processor raises: `VideoDecodeError` for a file, `ValueError` for
        settings and frames.
        """
        is_ours = isinstance(self.video_processor, TimeSformerVideoProcessor)
        if (
            is_ours
            and isinstance(inputs, list)
            and inputs
            and (all(map(is_frame, inputs)) or are_pictures(inputs))
        ):
            return super().__call__([inputs], **kwargs)[0]
        return super().__call__(inputs, **kwargs)

    def preprocess(
        self, video: Any, num_frames: int | None = None, **settings: Any
    ) -> BatchFeature:
        """`pixel_values` of one video by the processor; `num_frames` defaults to the model's."""
        if not isinstance(self.video_processor, TimeSformerVideoProcessor):
            return super().preprocess(video, num_frames=num_frames, **settings)
        settings = {
            "do_sample_frames": True,
            "num_frames": num_frames or self.model.config.num_frames,
        } | settings
        if "fps" in settings:  # so many frames a second, instead of a number of frames
            del settings["num_frames"]
        return self.video_processor(video, return_tensors="pt", **settings).to(self.dtype)


__all__ = ["TimeSformerPipeline"]
