"""The page of `timesformer app`; a file of its own, because gradio takes seconds to import."""

import argparse
import html
import shutil
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import gradio
import numpy as np
from PIL import Image

from ..data.synthetic import MOTIONS, motion_frames
from ..inference import (
    REGRESSION,
    choose_device,
    choose_dtype,
    load_model_and_processor,
    problem_type_of,
)
from ..model.configuration_timesformer import TimeSformerConfig
from ..model.modeling_timesformer import TimeSformerForVideoClassification
from ..timeline.segments import Segment
from ..video.decoding import VideoDecodeError
from ..video.encoding import write_video
from ..video.video_processing_timesformer import TimeSformerVideoProcessor
from ..visualization.pictures import Explanation, contact_sheet, explain, write_attention_video
from . import app_timeline


KEEP_SECONDS = 3600
EXAMPLE_FRAMES = 32
# The pictures begin below their label and buttons, which would lie on them on a narrow screen.
CSS = "#sheet .image-container, #timeline .image-container {padding-top: 2.5rem}"
LAUNCH = {"max_file_size": "200mb", "footer_links": [], "css": CSS}
PICTURE_BUTTONS = ["download", "fullscreen"]


def new_folder(parent: str) -> str:
    """An empty folder for one answer's film; those of long ago, which gradio has copied, are
    removed.
    """
    for old in Path(parent).iterdir():
        if time.time() - old.stat().st_mtime > KEEP_SECONDS:
            shutil.rmtree(old)
    return tempfile.mkdtemp(dir=parent)


def label_value(explanation: Explanation, config: TimeSformerConfig) -> dict[str, float] | str:
    """What `gradio.Label` shows: a bar for each class, or a regression's numbers as text."""
    if problem_type_of(config) == REGRESSION:
        return explanation.title
    labels = [config.id2label[index] for index in range(config.num_labels)]
    return dict(zip(labels, map(float, explanation.scores)))


def make_example(folder: str) -> str:
    """A clip of a square or disc that moves, another one each time; returns its path."""
    rng = np.random.default_rng()
    frames = motion_frames(rng.choice(list(MOTIONS)), rng, num_frames=EXAMPLE_FRAMES, size=224)
    return str(write_video(Path(new_folder(folder), "example.mp4"), frames))


@dataclass
class Part:
    """A part of the page: it asks `model`, and writes its films into `folder`."""

    model: TimeSformerForVideoClassification
    processor: TimeSformerVideoProcessor
    folder: str


class Look(Part):
    """What the page does with one video: the classes, and the frames with the attention on them."""

    def answer(
        self,
        video: str | None,
        progress=gradio.Progress(),  # noqa: B008 (how gradio finds it)
    ) -> tuple[str, dict[str, float] | str | None, Image.Image | None, str | None]:
        """For an uploaded file: a message, class scores, contact sheet, film."""
        if video is None:
            return "", None, None, None
        progress(0.1, desc="Reading the frames and looking at them")
        try:
            explanation = explain(self.model, self.processor, video)
        except VideoDecodeError as error:
            said = f"This file cannot be read as a video: it {error.message}"
            return html.escape(said), None, None, None
        except (ValueError, OSError) as error:
            return html.escape(f"This video cannot be looked at: {error}"), None, None, None
        progress(0.7, desc="Drawing what it looked at")
        film = Path(new_folder(self.folder), "attention.mp4")
        return (
            "",
            label_value(explanation, self.model.config),
            contact_sheet(explanation),
            str(write_attention_video(film, explanation)),
        )


def make_page(args: argparse.Namespace) -> gradio.Blocks:
    """The page over one model, which is loaded here. Raises OSError or ValueError where there is
    none.
    """
    device = choose_device()
    dtype = choose_dtype(args.dtype, device)
    model, processor = load_model_and_processor(args.model, num_clips=1, num_crops=1)
    model.to(device, dtype).eval()
    films = tempfile.TemporaryDirectory()  # lives as long as the page
    with gradio.Blocks(
        title="TimeSformer", analytics_enabled=False, delete_cache=(KEEP_SECONDS, KEEP_SECONDS)
    ) as page:
        name, computed = Path(args.model).name, str(dtype).removeprefix("torch.")
        gradio.Markdown(
            f"# What happens in this video?\nAnswered by the TimeSformer `{name}`, in {computed}."
        )
        with gradio.Row():
            with gradio.Column(min_width=300):
                # No gradio.Video: it calls good files broken that the browser cannot play (.avi,
                # MPEG-4).
                video = gradio.File(
                    label="Drop a video here", file_types=["video"], elem_id="video", height=160
                )
                example = gradio.Button("Make an example clip", elem_id="example")
            answer = gradio.Label(
                label="Answer", num_top_classes=args.top_k, elem_id="answer", min_width=300
            )
        message = gradio.Markdown(elem_id="message")
        sheet, film = add_pictures()
        example.click(lambda: make_example(films.name), None, video)
        answered = video.change(
            Look(model, processor, films.name).answer,
            video,
            [message, answer, sheet, film],
            concurrency_limit=1,
            show_progress_on=[answer],
        )
        TimelinePart(model, processor, films.name).add(answered, video)
    return page


def add_pictures() -> tuple[gradio.Image, gradio.Video]:
    """The contact sheet and the film of the attention, below the answer."""
    sheet = gradio.Image(
        label="Where it looked: brighter is more",
        elem_id="sheet",
        format="png",
        interactive=False,
        buttons=PICTURE_BUTTONS,
    )
    film = gradio.Video(
        label="The same as a film",
        elem_id="film",
        height=320,
        autoplay=True,
        loop=True,
        interactive=False,
    )
    return sheet, film


class TimelinePart(Part):
    """Below the answer, for a video longer than two windows: its timeline, made once the answer is
    there. A click into the picture, or a choice in the list, plays that part.
    """

    def add(self, answered: gradio.events.Dependency, video: gradio.File) -> None:
        """Place its parts on the page, and say what makes them."""
        shown = gradio.State(None)
        line = gradio.Markdown(elem_id="timeline_note")
        picture = gradio.Image(
            label="What happens when",
            elem_id="timeline",
            format="png",
            interactive=False,
            visible=False,
            buttons=PICTURE_BUTTONS,
        )
        segments = gradio.Radio(label="Segments", elem_id="segments", visible=False)
        piece = gradio.Video(
            label="The segment",
            elem_id="piece",
            height=320,
            autoplay=True,
            interactive=False,
            visible=False,
        )
        outputs = [shown, line, picture, segments, piece]
        answered.then(self.show, video, outputs, concurrency_limit=1, show_progress_on=[line])
        picture.select(self.play_clicked, shown, piece, concurrency_limit=1)
        segments.input(self.play_chosen, [shown, segments], piece, concurrency_limit=1)

    def show(
        self,
        path: str | None,
        progress=gradio.Progress(),  # noqa: B008 (how gradio finds it)
    ) -> tuple:
        """The parts of the timeline of an uploaded video, empty for a short one."""
        found = None
        if path is not None:
            # of a file that cannot be read the answer has said so already
            with suppress(VideoDecodeError):
                found = app_timeline.timeline_of(path, self.model, self.processor, progress)
        segments = found.timeline.segments if found else []
        choices = [(app_timeline.name_segment(one), index) for index, one in enumerate(segments)]
        drawn = found.picture if found else None
        return (
            found,
            app_timeline.note(found),
            gradio.update(value=drawn, visible=drawn is not None),
            gradio.update(choices=choices, value=None, visible=bool(choices)),
            gradio.update(value=None, visible=False),
        )

    def play(self, found: app_timeline.ShownTimeline, segment: Segment) -> dict:
        """The film of a segment, shown."""
        try:
            film = app_timeline.play(found, segment, new_folder(self.folder))
        except VideoDecodeError as error:
            raise gradio.Error(f"This part cannot be played: it {error.message}") from error
        return gradio.update(value=film, visible=True)

    def play_clicked(self, found: app_timeline.ShownTimeline, event: gradio.SelectData) -> dict:
        """What is under a click into the picture."""
        return self.play(found, app_timeline.segment_at(found, event.index[0]))

    def play_chosen(self, found: app_timeline.ShownTimeline, number: int) -> dict:
        """The segment of that number in the list."""
        return self.play(found, found.timeline.segments[number])
