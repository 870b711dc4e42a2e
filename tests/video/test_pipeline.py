"""The stock video-classification pipeline on folders that this package saved."""

import importlib
import io
import json
import runpy
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import av
import numpy as np
import PIL.Image
import pytest
import torch
from transformers import (
    TimesformerConfig,
    TimesformerForVideoClassification,
    TimesformerVideoProcessor,
    pipeline,
)

from hf_timesformer import (
    TimeSformerConfig,
    TimeSformerForVideoClassification,
    TimeSformerVideoProcessor,
)
from hf_timesformer.data.synthetic import motion_frames
from hf_timesformer.video.decoding import VideoDecodeError
from hf_timesformer.video.encoding import write_video


SCRIPTS = Path(__file__).parents[2] / "scripts"
LABELS = ["walking", "running", "sitting", "jumping", "waving", "falling"]
SETTINGS = {
    "size": {"shortest_edge": 40},
    "crop_size": {"height": 32, "width": 32},
    "num_frames": 4,
    "sampling_rate": 3,
}


@pytest.fixture(scope="module")
def model() -> TimeSformerForVideoClassification:
    torch.manual_seed(0)
    config = TimeSformerConfig(
        image_size=32, patch_size=8, num_frames=4, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, initializer_range=0.5, id2label=dict(enumerate(LABELS)),
        label2id={label: index for index, label in enumerate(LABELS)},
    )  # fmt: skip
    return TimeSformerForVideoClassification(config).eval()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory) -> Path:
    """A tiny model and its processor, saved as a user saves them."""
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    TimeSformerVideoProcessor(**SETTINGS).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> dict[str, Path]:
    """One clip of 20 frames in every container, one of 3 frames, all wider than high."""
    clips = tmp_path_factory.mktemp("clips")
    square = motion_frames("left", np.random.default_rng(0), num_frames=20, size=64)
    frames = np.concatenate([square, square[:, :, :32]], axis=2)
    return {
        "avi": write_video(clips / "clip.avi", frames, codec="mpeg4"),
        "mp4": write_video(clips / "clip.mp4", frames),
        "mkv": write_video(clips / "clip.mkv", frames),
        "webm": write_video(
            clips / "clip.webm", frames, codec="libvpx-vp9", options={"deadline": "realtime"}
        ),
        "short": write_video(clips / "short.mp4", frames[:3]),
    }


def classify(folder: Path | str, **options):
    return pipeline("video-classification", model=str(folder), device="cpu", **options)


def expected_scores(model, processor, video, num_frames=None) -> dict[str, float]:
    """The scores that model and processor give without the pipeline."""
    inputs = processor(str(video), return_tensors="pt", num_frames=num_frames)
    with torch.no_grad():
        probabilities = model(**inputs).logits.softmax(-1)[0]
    return dict(zip(LABELS, probabilities.tolist()))


def assert_scores(result: list[dict], expected: dict[str, float], tolerance: float = 1e-5) -> None:
    assert [entry["label"] for entry in result] == sorted(expected, key=expected.get, reverse=True)[
        : len(result)
    ]
    for entry in result:
        assert entry["score"] == pytest.approx(expected[entry["label"]], abs=tolerance)


@pytest.mark.parametrize("name", ["avi", "mp4", "mkv", "webm", "short"])
@pytest.mark.parametrize("num_crops", [1, 3])
def test_every_container_is_classified_with_one_crop_and_with_three(
    model, folder, clips, name, num_crops
):
    classifier = classify(folder)
    assert type(classifier.video_processor) is TimeSformerVideoProcessor
    assert type(classifier.model) is TimeSformerForVideoClassification
    classifier.video_processor.num_crops = num_crops
    processor = TimeSformerVideoProcessor(**SETTINGS, num_crops=num_crops)
    assert_scores(
        classifier(str(clips[name]), top_k=6), expected_scores(model, processor, clips[name])
    )


def test_three_crops_are_the_processors_saved_setting_and_the_mean_of_three_logits(
    model, clips, tmp_path
):
    model.save_pretrained(tmp_path)
    TimeSformerVideoProcessor(**SETTINGS, num_crops=3, num_clips=2).save_pretrained(tmp_path)
    classifier = classify(tmp_path)
    views = classifier.preprocess(str(clips["mp4"]))["pixel_values"]
    assert views.shape == (1, 6, 4, 3, 32, 32)
    with torch.no_grad():
        logits = model(pixel_values=views[0]).logits.mean(0)
    assert_scores(
        classifier(str(clips["mp4"]), top_k=6), dict(zip(LABELS, logits.softmax(-1).tolist()))
    )


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("num_crops", [1, 3])
def test_batches_give_what_single_videos_give(folder, clips, batch_size, num_crops):
    classifier = classify(folder)
    classifier.video_processor.num_crops = num_crops
    videos = [str(clips[name]) for name in ("mp4", "short", "webm")]
    results = classifier(videos, batch_size=batch_size, top_k=6)
    assert len(results) == 3
    for result, video in zip(results, videos):
        assert_scores(
            result, {entry["label"]: entry["score"] for entry in classifier(video, top_k=6)}
        )


def test_num_frames_is_honoured_and_else_the_models_own(model, folder, clips):
    classifier = classify(folder)
    video = str(clips["mp4"])
    assert classifier.preprocess(video)["pixel_values"].shape[1] == model.config.num_frames
    assert classifier.preprocess(video, num_frames=6)["pixel_values"].shape[1] == 6
    expected = expected_scores(model, TimeSformerVideoProcessor(**SETTINGS), video, num_frames=6)
    assert_scores(classifier(video, num_frames=6, top_k=6), expected)
    made_for_two = classify(folder, num_frames=2)
    expected = expected_scores(model, TimeSformerVideoProcessor(**SETTINGS), video, num_frames=2)
    assert_scores(made_for_two(video, top_k=6), expected)


def test_bytes_open_files_and_frames_are_videos_too(folder, clips):
    classifier = classify(folder)
    expected = classifier(str(clips["mp4"]), top_k=6)
    with av.open(str(clips["mp4"])) as container:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    for video in (
        clips["mp4"].read_bytes(),
        io.BytesIO(clips["mp4"].read_bytes()),
        clips["mp4"],
        frames,
    ):
        assert_scores(
            classifier(video, top_k=6), {entry["label"]: entry["score"] for entry in expected}
        )


def test_videos_are_read_in_a_worker_process_too(folder, clips):
    classifier = classify(folder)
    videos = [str(clips["mp4"]), str(clips["avi"])]
    results = classifier(videos, batch_size=2, num_workers=1, top_k=6)
    for result, video in zip(results, videos):
        assert_scores(
            result, {entry["label"]: entry["score"] for entry in classifier(video, top_k=6)}
        )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("num_crops", [1, 3])
def test_a_gpu_gives_the_scores_of_the_cpu(folder, clips, num_crops):
    processor = TimeSformerVideoProcessor.from_pretrained(folder, num_crops=num_crops)
    results = [
        pipeline(
            "video-classification", model=str(folder), video_processor=processor, device=device
        )(str(clips["mp4"]), top_k=6)
        for device in ("cpu", "cuda")
    ]
    assert_scores(
        results[1], {entry["label"]: entry["score"] for entry in results[0]}, tolerance=1e-3
    )


def test_half_precision_follows_the_model(folder, clips):
    reference = {
        entry["label"]: entry["score"] for entry in classify(folder)(str(clips["mp4"]), top_k=6)
    }
    classifier = classify(folder, dtype=torch.bfloat16)
    assert classifier.preprocess(str(clips["mp4"]))["pixel_values"].dtype == torch.bfloat16
    result = classifier(str(clips["mp4"]), top_k=6)
    for entry in result:
        assert entry["score"] == pytest.approx(reference[entry["label"]], abs=0.05)


def test_a_folder_can_be_given_another_processor(model, folder, clips):
    processor = TimeSformerVideoProcessor.from_pretrained(folder, num_crops=3, sampling="segments")
    classifier = pipeline(
        "video-classification", model=str(folder), video_processor=processor, device="cpu"
    )
    assert_scores(
        classifier(str(clips["avi"]), top_k=6), expected_scores(model, processor, clips["avi"])
    )


@pytest.mark.parametrize("how", ["pipeline alone", "with our processor"])
def test_stocks_checkpoints_are_sampled_as_trained_with_their_own_numbers(clips, tmp_path, how):
    """The files of the checkpoints on the Hub: stock's config and weights, a processor file that
    names VideoMAE's.
    """
    torch.manual_seed(0)
    # Something-Something-V2: one frame of each equal part
    names = [f"class {index}" for index in range(174)]
    config = TimesformerConfig(
        image_size=32, patch_size=8, num_frames=4, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, initializer_range=0.5, id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
    )  # fmt: skip
    stock = TimesformerForVideoClassification(config).eval()
    stock.save_pretrained(tmp_path)
    numbers = {
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.3, 0.2, 0.1],
        "size": {"shortest_edge": 36},
    }
    settings = {
        **numbers,
        "crop_size": {"height": 32, "width": 32},
        "image_processor_type": "VideoMAEImageProcessor",
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    options = {}
    if how == "with our processor":
        options["video_processor"] = TimeSformerVideoProcessor.from_pretrained(tmp_path)
    classifier = classify(tmp_path, **options)
    assert type(classifier.model) is TimeSformerForVideoClassification
    with av.open(str(clips["mp4"])) as container:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    chosen = frames[[2, 7, 12, 17]]  # the middle frame of each quarter of 20
    inputs = TimesformerVideoProcessor(**numbers, crop_size=32)(chosen, return_tensors="pt")
    with torch.no_grad():
        expected = stock(**inputs).logits.softmax(-1)[0].tolist()
    assert_scores(classifier(str(clips["mp4"]), top_k=6), dict(zip(names, expected)))


# ---- what our pipeline adds to stock's


def decode_all(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_a_list_of_frames_is_one_video(folder, clips, tmp_path):
    classifier = classify(folder)
    frames = list(decode_all(clips["mp4"]))
    expected = {entry["label"]: entry["score"] for entry in classifier(str(clips["mp4"]), top_k=6)}
    pictures = [PIL.Image.fromarray(frame) for frame in frames]
    for video in (pictures, frames, [torch.from_numpy(frame) for frame in frames]):
        assert_scores(classifier(video, top_k=6), expected)
    files = [tmp_path / f"{number:03d}.png" for number in range(len(pictures))]
    for picture, file in zip(pictures, files):
        picture.save(file)
    for video in (files, str(tmp_path)):
        assert_scores(classifier(video, top_k=6), expected)
    two = classifier([pictures, frames], top_k=6, batch_size=2)
    assert len(two) == 2
    for result in two:
        assert_scores(result, expected)


def test_settings_of_the_processor_are_arguments_of_the_pipeline_and_of_a_call(
    model, folder, clips
):
    video = str(clips["mp4"])
    own = TimeSformerVideoProcessor(**SETTINGS, num_crops=3, sampling="segments")
    expected = expected_scores(model, own, video)
    assert_scores(classify(folder)(video, num_crops=3, sampling="segments", top_k=6), expected)
    assert_scores(classify(folder, num_crops=3, sampling="segments")(video, top_k=6), expected)
    expected = expected_scores(
        model, TimeSformerVideoProcessor(**SETTINGS | {"sampling_rate": 1}), video
    )
    assert_scores(classify(folder)(video, frame_sampling_rate=1, top_k=6), expected)
    for early, late in (({"limits": {"max_frames": 19}}, {}), ({}, {"limits": {"max_frames": 19}})):
        with pytest.raises(ValueError, match="more than the limit of 19 frames"):
            classify(folder, **early)(video, **late)
    # 20 frames of 30 a second
    assert classify(folder).preprocess(video, fps=9)["pixel_values"].shape[1] == 6


def test_another_processor_makes_it_stocks_pipeline(folder, clips):
    stock = TimesformerVideoProcessor(size={"shortest_edge": 40}, crop_size=32)
    classifier = classify(folder, video_processor=stock)
    with pytest.raises(TypeError, match="num_crops"):
        classifier(str(clips["mp4"]), num_crops=3)
    frames = decode_all(clips["mp4"])[:4]
    assert classifier.preprocess(frames, num_frames=4)["pixel_values"].shape == (1, 4, 3, 32, 32)


def test_files_that_cannot_be_read_raise_one_clear_error(folder, clips, tmp_path):
    classifier = classify(folder)
    text = tmp_path / "text.mp4"
    text.write_text("this is no video")
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(clips["mp4"].read_bytes()[:300])
    for path in (text, broken, tmp_path / "missing.mp4"):
        with pytest.raises(VideoDecodeError, match=path.stem):
            classifier(str(path))
    with pytest.raises(VideoDecodeError, match="text"):
        classifier([str(clips["mp4"]), str(text)], batch_size=2)


class CountingServer(ThreadingHTTPServer):
    requests = 0


@pytest.fixture
def server(clips):
    """A web server on this machine that has one clip and counts the requests for it."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.requests += 1
            body = clips["mp4"].read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    server = CountingServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_addresses_are_opened_only_where_the_processor_allows_them(server, folder, clips):
    url = f"http://127.0.0.1:{server.server_port}/clip.mp4"
    classifier = classify(folder)
    with pytest.raises(VideoDecodeError, match="allow_urls=True"):
        classifier(url)
    assert server.requests == 0
    allowing = classify(
        folder, video_processor=TimeSformerVideoProcessor.from_pretrained(folder, allow_urls=True)
    )
    expected = {entry["label"]: entry["score"] for entry in classifier(str(clips["mp4"]), top_k=6)}
    assert_scores(allowing(url, top_k=6), expected)
    assert server.requests == 1


@pytest.mark.parametrize("num_crops", [1, 3])
def test_real_clips_of_every_container(folder, shared_dir, num_crops):
    """One clip of each container in the folder of real clips: scores that sum to one, the same
    twice.
    """
    classifier = classify(folder)
    classifier.video_processor.num_crops = num_crops
    files = sorted(
        path
        for path in (shared_dir / "data").rglob("*")
        if path.suffix in (".avi", ".mp4", ".mkv", ".webm")
    )
    chosen = {path.suffix: str(path) for path in reversed(files)}
    assert set(chosen) == {".avi", ".mp4", ".mkv", ".webm"}
    results = classifier(list(chosen.values()), batch_size=2, top_k=6)
    for path, result in zip(chosen.values(), results):
        assert sum(entry["score"] for entry in result) == pytest.approx(1, abs=1e-5)
        assert_scores(
            classifier(path, top_k=6), {entry["label"]: entry["score"] for entry in result}
        )


@pytest.mark.parametrize("reader", ["torchcodec", "pyav"])
def test_benchmark_compares_like_with_like(folder, clips, tmp_path, capsys, monkeypatch, reader):
    """With one crop and with three: both sides give the same logits, and the report says which was
    how fast.
    """
    monkeypatch.syspath_prepend(SCRIPTS / "benchmarks")
    benchmark = runpy.run_path(str(SCRIPTS / "benchmarks" / "__main__.py"))["main"]
    part = importlib.import_module("pipeline")
    if reader == "pyav":
        monkeypatch.setattr(part, "can_read_with_torchcodec", lambda: False)
    elif not part.can_read_with_torchcodec():
        pytest.skip("torchcodec or its FFmpeg is not installed")
    options = {
        "--model": folder,
        "--repeats": 1,
        "--threads": torch.get_num_threads(),
        "--json": tmp_path / "out.json",
    }
    arguments = [str(item) for pair in options.items() for item in pair]
    benchmark(["pipeline", *arguments, "--videos", str(clips["mp4"]), str(clips["avi"])])
    report = json.loads((tmp_path / "out.json").read_text())
    lines = capsys.readouterr().out.splitlines()
    assert json.loads(lines[-1]) == report
    assert ("stock reads with its PyAV reader" in lines[0]) == (reader == "pyav")
    assert (report["stock_reader"], report["videos"], report["repeats"]) == (reader, 2, 1)
    assert [result["num_crops"] for result in report["results"]] == [1, 3]
    for result in report["results"]:
        assert result["same_label"] == 2
        assert result["largest_logit_difference"] <= 1e-3 * result["largest_logit"]
        rates = result["videos_per_second"]
        assert rates["ours"] > 0 < rates["stock"]
        assert result["faster"] == pytest.approx(rates["ours"] / rates["stock"])
    one, three = report["results"]
    assert one["largest_logit"] != three["largest_logit"]  # other crops were seen
