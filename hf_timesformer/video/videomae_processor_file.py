"""Processor files that name VideoMAE's classes, as those of the released TimeSformer checkpoints
do.

The Auto classes and `pipeline` go by the name in the file and never look at the model's config, so
that they would give VideoMAE's processor for a TimeSformer: another sampling, other sizes. This
package registers `VideoMAEProcessorFile` for that name, which looks at the config and then opens
the file with the class that the model needs. For every other model that is VideoMAE's own class, as
it is without this package.
"""

import os

from transformers import VideoMAEVideoProcessor
from transformers.video_processing_utils import BaseVideoProcessor

from .released_sampling import read_model_config
from .upstream_names import stand_for
from .video_processing_timesformer import TimeSformerVideoProcessor


class VideoMAEProcessorFile:
    """Opens a processor file that names VideoMAE's class: `from_pretrained` is all that the Auto
    classes ask for.
    """

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike, *args, **kwargs
    ) -> BaseVideoProcessor:
        """`TimeSformerVideoProcessor` where the model beside the file is a TimeSformer, else
        VideoMAE's processor.

        Arguments and errors are those of the two classes' own `from_pretrained`.
        """
        config = read_model_config(pretrained_model_name_or_path, kwargs)
        is_timesformer = config.get("model_type") == "timesformer"
        processor_class = TimeSformerVideoProcessor if is_timesformer else VideoMAEVideoProcessor
        return processor_class.from_pretrained(pretrained_model_name_or_path, *args, **kwargs)


# Else a repository's own code, which `trust_remote_code=True` asks for, would be passed over.
stand_for(VideoMAEProcessorFile, VideoMAEVideoProcessor)
