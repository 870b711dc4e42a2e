"""The page in a real browser: upload, answer, picture, a bad file's message; and the Space that it
exports.
"""

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import ENTER, SPACE, TAB, Browser, missing_programs
from huggingface_hub import SpaceCard

import hf_timesformer
from hf_timesformer.cli.app_timeline import name_segment
from hf_timesformer.data.synthetic import MOTIONS, motion_frames
from hf_timesformer.hub.space import export_space
from hf_timesformer.inference import load_model_and_processor
from hf_timesformer.model.configuration_timesformer import TimeSformerConfig
from hf_timesformer.model.modeling_timesformer import TimeSformerForVideoClassification
from hf_timesformer.timeline.labelling import LabelSettings, label_video
from hf_timesformer.video.encoding import write_video
from hf_timesformer.video.video_processing_timesformer import TimeSformerVideoProcessor
from hf_timesformer.visualization.pictures import explain


ROOT = Path(__file__).resolve().parents[2]
APP = ROOT / "scripts" / "app.py"
ARTIFACTS = ROOT / "artifacts"  # screenshots of the last run, to be looked at
needs_gradio = pytest.mark.skipif(
    importlib.util.find_spec("gradio") is None, reason="gradio is not installed (extra `app`)"
)
needs_browser = pytest.mark.skipif(
    bool(missing_programs()),
    reason=f"not installed: {', '.join(missing_programs())} (apt: chromium, chromium-driver)",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, a clip, and files that are none."""
    folder = tmp_path_factory.mktemp("app")
    torch.manual_seed(0)
    config = TimeSformerConfig(
        image_size=64, patch_size=8, num_frames=4, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, initializer_range=0.2, id2label=dict(enumerate(MOTIONS)),
    )  # fmt: skip
    model = TimeSformerForVideoClassification(config)
    model.classifier.weight.data *= 8  # sure enough of something to make segments
    model.save_pretrained(folder / "model")
    TimeSformerVideoProcessor(
        num_frames=4,
        sampling_rate=4,
        size={"shortest_edge": 64},
        crop_size={"height": 64, "width": 64},
    ).save_pretrained(folder / "model")
    frames = motion_frames("up", np.random.default_rng(0), num_frames=24, size=96)
    write_video(folder / "clip.avi", frames, codec="mpeg4")  # no browser plays it, we do
    moving = motion_frames("up", np.random.default_rng(1), num_frames=60, size=96)
    write_video(folder / "long.mp4", np.concatenate([moving, 0 * moving]), fps=10)
    (folder / "bad.mp4").write_text("<img src=x onerror=\"document.title='run'\"> no video")
    return folder


def load(place: Path) -> tuple[TimeSformerForVideoClassification, TimeSformerVideoProcessor]:
    """The page's model and processor, for one view of a clip."""
    model, processor = load_model_and_processor(str(place / "model"), num_clips=1, num_crops=1)
    return model.eval(), processor


@pytest.fixture
def page(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of the page, served by this process."""
    monkeypatch.setenv("MODEL", str(place / "model"))
    app, app_page = (
        importlib.import_module(f"hf_timesformer.cli.{name}") for name in ("app", "app_page")
    )
    page = app_page.make_page(app.parse_arguments(["--top_k", "3", "--dtype", "float32"]))
    page.launch(prevent_thread_lock=True, quiet=True, **app_page.LAUNCH)
    yield page.local_url
    page.close()


@needs_gradio
@needs_browser
def test_page_in_a_browser(page: str, place: Path) -> None:
    model, processor = load_model_and_processor(str(place / "model"), num_clips=1, num_crops=1)
    expected = explain(model.eval(), processor, str(place / "clip.avi"))
    order = expected.scores.argsort()[::-1][:3]
    with Browser() as browser:
        browser.open(page)
        browser.wait_for("document.querySelector('#video input[type=file]') !== null")

        browser.upload("#video input[type=file]", place / "bad.mp4")
        browser.wait_for(
            "document.querySelector('#message')?.innerText.includes('cannot be read as a video')"
        )
        assert browser.run("return document.title") == "TimeSformer", (
            "the message ran what the file says"
        )
        assert browser.run("return document.querySelector('#sheet img')") is None

        browser.open(f"{page}?again")
        browser.wait_for(
            "location.search && document.querySelector('#video input[type=file]') !== null"
        )
        browser.upload("#video input[type=file]", place / "clip.avi")
        browser.wait_for("document.querySelector('#sheet img')?.naturalWidth > 4 * 100")
        browser.wait_for("document.querySelector('#film video')?.readyState >= 2")
        bars = browser.run(
            "return [...document.querySelectorAll('#answer meter')].map(bar => [bar.getAttribute('aria-label'), "
            "bar.value])"
        )
        assert [name for name, _ in bars] == [list(MOTIONS)[index] for index in order]
        assert [value for _, value in bars] == pytest.approx(
            expected.scores[order].tolist(), abs=1e-4
        )
        assert "cannot be read" not in browser.text()
        browser.screenshot(ARTIFACTS / "page_desktop.png")
        assert (ARTIFACTS / "page_desktop.png").stat().st_size > 20_000


@needs_gradio
@needs_browser
def test_an_example_by_the_keyboard_on_a_phone(page: str) -> None:
    """Tab to the button, Enter: a clip is made on the spot, a bar shows the work, and the answer
    fits into the width of a phone.
    """
    focused = "document.activeElement.closest('#example') !== null"
    with Browser() as browser:
        browser.device(390, 844, is_phone=True)
        browser.open(page)
        browser.wait_for("document.querySelector('#example') !== null")
        # what the page has shown while it worked
        browser.run(
            "window.seen = []; new MutationObserver(() => {"
            "const text = document.querySelector('#answer')?.innerText || '';"
            "if (text.includes('looking') || text.includes('Drawing')) window.seen.push(text)})"
            ".observe(document.body, {subtree: true, childList: true, characterData: true})"
        )
        for _ in range(20):
            browser.press(TAB)
            if browser.run(f"return {focused}"):
                break
        assert browser.run(f"return {focused}"), "the button cannot be reached by the Tab key"
        browser.press(ENTER)
        browser.wait_for("document.querySelector('#sheet img')?.naturalWidth > 0")
        browser.wait_for("document.querySelectorAll('#answer meter').length == 3")
        assert browser.run("return window.seen.length") > 0, "no progress was shown"
        assert browser.run("return document.documentElement.scrollWidth") <= 390
        # where the picture begins, then where its label and its buttons end
        top, *ends = browser.run(
            "const sheet = document.querySelector('#sheet'), box = one => one.getBoundingClientRect();"
            "const boxes = [...sheet.querySelectorAll('label, button')].map(box);"
            "const small = boxes.filter(b => b.height > 0 && b.height < 99);"  # one holds the picture
            "return [box(sheet.querySelector('img')).top, ...small.map(b => b.bottom)]"
        )
        assert ends
        assert max(ends) <= top, "the label or a button lies on the picture"
        browser.screenshot(ARTIFACTS / "page_phone.png")


@needs_gradio
@needs_browser
def test_the_timeline_of_a_long_video_plays_what_is_clicked(page: str, place: Path) -> None:
    """12 seconds in which `up` gives way to darkness: a click into the picture, and one on a segment
    of the list, play that segment.
    """
    settings = LabelSettings(window=2.0, stride=1.0)
    segments = label_video(place / "long.mp4", *load(place), settings).segments
    lengths = [segment.end - segment.start for segment in segments]
    assert len(lengths) > 1
    with Browser() as browser:
        browser.open(page)
        browser.wait_for("document.querySelector('#video input[type=file]') !== null")
        browser.upload("#video input[type=file]", place / "long.mp4")
        browser.wait_for("document.querySelector('#timeline img')?.naturalWidth > 1000")
        browser.wait_for(
            "document.querySelector('#timeline_note')?.innerText.includes('windows of 2 s, one every 1 s')"
        )
        browser.run(
            "const picture = document.querySelector('#timeline img'), box = picture.getBoundingClientRect();"
            "picture.dispatchEvent(new MouseEvent('click', {bubbles: true, clientX: box.left + 0.8 * box.width, "
            "clientY: box.top + 0.3 * box.height}))"
        )
        browser.wait_for("document.querySelector('#piece video')?.readyState >= 2")
        first = browser.run("return document.querySelector('#piece video').currentSrc")
        length = "return document.querySelector('#piece video').duration"
        assert browser.run(length) == pytest.approx(lengths[-1], abs=0.2)
        texts = browser.run(
            "return [...document.querySelectorAll('#segments label')].map(label => label.textContent.trim())"
        )
        assert texts == [name_segment(segment) for segment in segments]
        # the one before it by the keyboard
        browser.run("[...document.querySelectorAll('#segments input')].at(-2).focus()")
        browser.press(SPACE)
        browser.wait_for(f"document.querySelector('#piece video')?.currentSrc != '{first}'")
        browser.wait_for("document.querySelector('#piece video')?.readyState >= 2")
        assert browser.run(length) == pytest.approx(lengths[-2], abs=0.2)
        browser.screenshot(ARTIFACTS / "page_timeline.png")


@needs_gradio
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "which model"),
        (["--model", "./nowhere"], "nowhere"),
        (["--export_space", "x"], "which model"),
        (["--export_space", "x", "--model", "."], "publish"),
    ],
)
def test_wrong_start_is_one_clear_line(
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.delenv("MODEL", raising=False)
    monkeypatch.setattr(sys, "argv", [str(APP), *arguments])
    with pytest.raises(SystemExit) as left:
        importlib.import_module("hf_timesformer.cli.app").main()
    assert left.value.code == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ")
    assert message in errors


def test_exported_space_is_whole(tmp_path: Path) -> None:
    folder = export_space(tmp_path / "space", model="me/my-model")
    card = SpaceCard.load(folder / "README.md")
    assert (card.data.sdk, card.data.app_file, card.data.models) == (
        "gradio",
        "app.py",
        ["me/my-model"],
    )
    requirements = (folder / "requirements.txt").read_text().split("\n")
    assert {line.split(">")[0] for line in requirements if line} >= {
        "gradio",
        "transformers",
        "torch",
        "av",
    }
    assert not any("pytest" in line or "ruff" in line or "extra" in line for line in requirements)
    package = Path(hf_timesformer.__file__).parent
    shipped = {path.name: path.read_bytes() for path in (folder / "hf_timesformer").glob("*.py")}
    assert shipped == {path.name: path.read_bytes() for path in package.glob("*.py")}
    code = "import importlib.util; print(importlib.util.find_spec('hf_timesformer').origin)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert done.stdout.strip() == str(folder / "hf_timesformer" / "__init__.py"), done.stderr
    assert (folder / "MODEL").read_text() == "me/my-model\n"


def test_space_of_a_local_model_or_over_other_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="publish the model first"):
        export_space(tmp_path / "space", model=str(tmp_path))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("keep me")
    with pytest.raises(ValueError, match="not empty"):
        export_space(tmp_path / "mine", model="me/my-model")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["file"]
