"""The page of `timesformer app`; a file of its own, because gradio takes seconds to import."""

import argparse
import html
import shutil
import tempfile
import time
from pathlib import Path

import gradio
from PIL import Image

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
from ..video.video_processing_timesformer import TimeSformerVideoProcessor
from ..visualization.pictures import Explanation, contact_sheet, explain, write_attention_video
from . import app_timeline


KEEP_SECONDS = 3600
LAUNCH = {"max_file_size": "200mb", "footer_links": []}


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


def make_page(args: argparse.Namespace) -> gradio.Blocks:
    """The page over one model, which is loaded here. Raises OSError or ValueError where there is
    none.
    """
    device = choose_device()
    dtype = choose_dtype(args.dtype, device)
    model, processor = load_model_and_processor(args.model, num_clips=1, num_crops=1)
    model.to(device, dtype).eval()
    films = tempfile.TemporaryDirectory()  # lives as long as the page

    def look(
        video: str | None,
    ) -> tuple[str, dict[str, float] | str | None, Image.Image | None, str | None]:
        """What the page shows for an uploaded file: a message, class scores, contact sheet, film."""
        if video is None:
            return "", None, None, None
        try:
            explanation = explain(model, processor, video)
        except VideoDecodeError as error:
            return (
                html.escape(f"This file cannot be read as a video: it {error.message}"),
                None,
                None,
                None,
            )
        film = write_attention_video(Path(new_folder(films.name), "attention.mp4"), explanation)
        return "", label_value(explanation, model.config), contact_sheet(explanation), str(film)

    with gradio.Blocks(
        title="TimeSformer", analytics_enabled=False, delete_cache=(KEEP_SECONDS, KEEP_SECONDS)
    ) as page:
        name, computed = Path(args.model).name, str(dtype).removeprefix("torch.")
        gradio.Markdown(
            f"# What happens in this video?\nAnswered by the TimeSformer `{name}`, in {computed}."
        )
        with gradio.Row():
            # No gradio.Video: it calls good files broken that the browser cannot play (.avi,
            # MPEG-4).
            video = gradio.File(
                label="Drop a video here", file_types=["video"], elem_id="video", height=160
            )
            answer = gradio.Label(label="Answer", num_top_classes=args.top_k, elem_id="answer")
        message = gradio.Markdown(elem_id="message")
        sheet = gradio.Image(
            label="The frames that it looked at, and where: brighter is more attention",
            elem_id="sheet", format="png", interactive=False,
        )  # fmt: skip
        film = gradio.Video(
            label="The same as a film",
            elem_id="film",
            height=320,
            autoplay=True,
            loop=True,
            interactive=False,
        )
        answered = video.change(look, video, [message, answer, sheet, film], concurrency_limit=1)
        add_timeline(answered, video, model, processor, films.name)
    return page


def add_timeline(
    answered: gradio.events.Dependency,
    video: gradio.File,
    model: TimeSformerForVideoClassification,
    processor: TimeSformerVideoProcessor,
    folder: str,
) -> None:
    """Below the answer, for a video longer than two windows: its timeline, made once the answer is
    there.
    """
    shown = gradio.State(None)
    line = gradio.Markdown(elem_id="timeline_note")
    picture = gradio.Image(
        label="What happens when",
        elem_id="timeline",
        format="png",
        interactive=False,
        visible=False,
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

    def show(path: str | None, progress=gradio.Progress()) -> tuple:  # noqa: B008 (how gradio finds it)
        """The parts of the timeline of an uploaded video, empty for a short one."""
        found = None
        if path is not None:
            try:
                found = app_timeline.timeline_of(path, model, processor, progress)
            except VideoDecodeError:
                found = None  # the answer has said so already
        names = (
            [app_timeline.name_segment(segment) for segment in found.timeline.segments]
            if found
            else []
        )
        drawn = found.picture if found else None
        return (
            found,
            app_timeline.note(found),
            gradio.update(value=drawn, visible=drawn is not None),
            gradio.update(
                choices=list(zip(names, range(len(names)))), value=None, visible=bool(names)
            ),
            gradio.update(value=None, visible=False),
        )

    def play(found: app_timeline.ShownTimeline, segment: Segment) -> dict:
        try:
            return gradio.update(
                value=app_timeline.play(found, segment, new_folder(folder)), visible=True
            )
        except VideoDecodeError as error:
            raise gradio.Error(f"This part cannot be played: it {error.message}") from error

    def play_clicked(found: app_timeline.ShownTimeline, event: gradio.SelectData) -> dict:
        return play(found, app_timeline.segment_at(found, event.index[0]))

    def play_chosen(found: app_timeline.ShownTimeline, number: int) -> dict:
        return play(found, found.timeline.segments[number])

    outputs = [shown, line, picture, segments, piece]
    answered.then(show, video, outputs, concurrency_limit=1)
    picture.select(play_clicked, shown, piece, concurrency_limit=1)
    segments.input(play_chosen, [shown, segments], piece, concurrency_limit=1)
