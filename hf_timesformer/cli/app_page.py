"""The page of `timesformer app`; a file of its own, because gradio takes seconds to import."""

import argparse
import html
import shutil
import tempfile
import time
from pathlib import Path

import gradio
from PIL import Image

from ..inference import REGRESSION, choose_device, choose_dtype, load_model_and_processor, problem_type_of
from ..model.configuration_timesformer import TimeSformerConfig
from ..video.decoding import VideoDecodeError
from ..visualization.pictures import Explanation, contact_sheet, explain, write_attention_video


KEEP_SECONDS = 3600
LAUNCH = {"max_file_size": "200mb", "footer_links": []}


def new_folder(parent: str) -> str:
    """An empty folder for one answer's film; those of long ago, which gradio has copied, are removed."""
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
    """The page over one model, which is loaded here. Raises OSError or ValueError where there is none."""
    device = choose_device()
    dtype = choose_dtype(args.dtype, device)
    model, processor = load_model_and_processor(args.model, num_clips=1, num_crops=1)
    model.to(device, dtype).eval()
    films = tempfile.TemporaryDirectory()  # lives as long as the page

    def look(video: str | None) -> tuple[str, dict[str, float] | str | None, Image.Image | None, str | None]:
        """What the page shows for an uploaded file: a message, class scores, contact sheet, film."""
        if video is None:
            return "", None, None, None
        try:
            explanation = explain(model, processor, video)
        except VideoDecodeError as error:
            return html.escape(f"This file cannot be read as a video: it {error.message}"), None, None, None
        film = write_attention_video(Path(new_folder(films.name), "attention.mp4"), explanation)
        return "", label_value(explanation, model.config), contact_sheet(explanation), str(film)

    with gradio.Blocks(
        title="TimeSformer", analytics_enabled=False, delete_cache=(KEEP_SECONDS, KEEP_SECONDS)
    ) as page:
        name, computed = Path(args.model).name, str(dtype).removeprefix("torch.")
        gradio.Markdown(f"# What happens in this video?\nAnswered by the TimeSformer `{name}`, in {computed}.")
        with gradio.Row():
            # No gradio.Video: it calls good files broken that the browser cannot play (.avi, MPEG-4).
            video = gradio.File(label="Drop a video here", file_types=["video"], elem_id="video", height=160)
            answer = gradio.Label(label="Answer", num_top_classes=args.top_k, elem_id="answer")
        message = gradio.Markdown(elem_id="message")
        sheet = gradio.Image(
            label="The frames that it looked at, and where: brighter is more attention",
            elem_id="sheet", format="png", interactive=False,
        )  # fmt: skip
        film = gradio.Video(
            label="The same as a film", elem_id="film", height=320, autoplay=True, loop=True, interactive=False
        )
        video.change(look, video, [message, answer, sheet, film], concurrency_limit=1)
    return page
