"""`timesformer label` and what it writes: segments where clips were joined, files that others read,
resume, shares.
"""

import csv
import json
import multiprocessing
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet
import pytest
import torch
from decoding_clips import encode
from PIL import Image
from ports import free_port
from tiny import tiny_model

from hf_timesformer import TimeSformerVideoProcessor, run_lock
from hf_timesformer.cli import label
from hf_timesformer.cli.common import parse_shard, share_of
from hf_timesformer.timeline import film as film_module
from hf_timesformer.timeline.film import caption, cut_film
from hf_timesformer.timeline.journal import Journal
from hf_timesformer.timeline.labelling import LabelSettings, ahead, label_video
from hf_timesformer.timeline.picture import seconds_at
from hf_timesformer.timeline.segments import Segment
from hf_timesformer.timeline.stream_classifier import StreamClassifier
from hf_timesformer.timeline.timeline import Timeline
from hf_timesformer.timeline.windows import Windows
from hf_timesformer.timeline.writers import write_label_studio, write_webvtt
from hf_timesformer.video.decoding import VideoDecodeError, decode_video, probe_video


FPS = 10
JOINTS = (0, 6, 11, 20)  # seconds: dark, bright, dark
NAMES = ("dark", "bright")


class Brightness(torch.nn.Module):
    """Stands for a network: class 1 if the clip is bright, else class 0."""

    def __init__(self):
        super().__init__()
        self.config = tiny_model("space_only", num_labels=2, id2label=dict(enumerate(NAMES))).config
        self.scale = torch.nn.Parameter(torch.tensor(20.0))
        self.dtype, self.device = torch.float32, torch.device("cpu")

    def forward(self, pixel_values: torch.Tensor):
        mean = pixel_values.flatten(1).mean(1) * self.scale
        return type("Output", (), {"logits": torch.stack([-mean, mean], dim=-1)})


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> Path:
    """20 seconds of grey frames that change their brightness at `JOINTS`."""
    levels = np.repeat([40, 200, 40], np.diff(JOINTS) * FPS)
    frames = np.broadcast_to(levels[:, None, None, None], (len(levels), 32, 48, 3)).astype(np.uint8)
    times = [3 * number for number in range(len(frames))]
    return encode(
        tmp_path_factory.mktemp("film") / "film.mp4", frames, times=times, options={"g": "20"}
    )


@pytest.fixture(scope="module")
def processor() -> TimeSformerVideoProcessor:
    crop = {"height": 12, "width": 8}
    return TimeSformerVideoProcessor(num_frames=4, size={"shortest_edge": 12}, crop_size=crop)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory, processor) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_model("divided_space_time", num_labels=2, id2label=dict(enumerate(NAMES))).save_pretrained(
        folder
    )
    processor.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("window", "stride"), [(2.0, 1.0), (2.0, 0.5), (1.0, 1.0)])
def test_joints_are_found_within_a_stride(film, processor, window: float, stride: float):
    timeline = label_video(film, Brightness(), processor, LabelSettings(window, stride))
    assert timeline.seconds == pytest.approx(20, abs=0.1)
    assert [segment.label for segment in timeline.segments] == ["dark", "bright", "dark"]
    found = [segment.start for segment in timeline.segments] + [timeline.segments[-1].end]
    assert np.abs(np.array(found) - JOINTS).max() <= stride


def run(capsys, *arguments: str | Path) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        label.main([*map(str, arguments)])
    streams = capsys.readouterr()
    return end.value.code, streams.out, streams.err


def test_all_files(film, model_folder, tmp_path: Path, capsys):
    features = tmp_path / "features.parquet"
    code, out, _ = run(
        capsys, film, "--model", model_folder, "--output_dir", tmp_path, "--features", features, "--overlay",
        "--threshold", 0.4, "--dtype", "float32",
    )  # fmt: skip
    assert code == 0
    assert "19.9 s in 19 windows" in out
    written = set(re.findall(r"wrote (\S+)", out))
    suffixes = [
        ".json",
        ".csv",
        ".scores.csv",
        ".vtt",
        ".label_studio.json",
        ".png",
        ".overlay.mp4",
    ]
    assert written == {str(tmp_path / f"film{suffix}") for suffix in suffixes} | {str(features)}
    assert not (tmp_path / "film.windows.jsonl").exists()
    content = json.loads((tmp_path / "film.json").read_text())
    assert content["threshold"] == 0.4
    assert content["low_threshold"] == pytest.approx(0.24)
    assert content["dtype"] == "float32"
    assert content["not_decoded"] == []
    assert len(content["windows"]) == 19
    rows = list(csv.DictReader((tmp_path / "film.scores.csv").open()))
    for row, window in zip(rows, content["windows"]):
        assert float(row["start"]) == window["start"]
        assert {name: float(row[name]) for name in NAMES} == pytest.approx(
            window["scores"], abs=1e-6
        )
    segments = list(csv.DictReader((tmp_path / "film.csv").open()))
    assert [row["label"] for row in segments] == [
        segment["label"] for segment in content["segments"]
    ]
    table = pyarrow.parquet.read_table(features).to_pydict()
    assert table["window"] == list(range(19))
    assert np.array(table["features"]).shape == (19, 16)
    with av.open(str(tmp_path / "film.overlay.mp4")) as container:
        times = [float(frame.time) for frame in container.decode(video=0)]
    np.testing.assert_allclose(times, np.arange(200) / 10, atol=1e-3)


def timeline_of(segments: list[Segment], **fields) -> Timeline:
    return Timeline(
        **{
            "video": "clip.mp4",
            "seconds": 10.0,
            "windows": Windows(2, 1, 4),
            "labels": ["a", "b"],
            "scores": np.tile(np.array([[0.75, 0.25]], np.float32), (9, 1)),
            "segments": segments,
            "frame_rate": 25.0,
        }
        | fields
    )


def test_subtitles(tmp_path: Path):
    segments = [Segment(0.5, 3723.5, "a < b & c --> d\n", 0.75)]
    text = write_webvtt(tmp_path / "a.vtt", timeline_of(segments)).read_text()
    assert text == "WEBVTT\n\n00:00:00.500 --> 01:02:03.500\na &lt; b &amp; c --&gt; d 75%\n"
    numbers = timeline_of(
        [], is_regression=True, scores=np.arange(18, dtype=np.float32).reshape(9, 2)
    )
    text = write_webvtt(tmp_path / "b.vtt", numbers).read_text()
    assert "00:00:01.500 --> 00:00:02.500\na 2, b 3\n" in text


def test_label_studio_counts_frames_from_one(tmp_path: Path):
    path = write_label_studio(
        tmp_path / "a.json", timeline_of([Segment(0, 2, "a", 0.9), Segment(2, 4.04, "b", 0.7)])
    )
    (task,) = json.loads(path.read_text())
    assert task["data"] == {"video": "clip.mp4", "frameRate": 25.0}
    values = [row["value"] for row in task["predictions"][0]["result"]]
    assert values == [
        {"ranges": [{"start": 1, "end": 50}], "timelinelabels": ["a"]},
        {"ranges": [{"start": 51, "end": 101}], "timelinelabels": ["b"]},
    ]


def test_captions():
    timeline = timeline_of([Segment(0, 2, "a", 0.9)])
    assert caption(timeline, 1.9) == "a 75%"
    assert caption(timeline, 2.0) == "(a 75%)"
    numbers = timeline_of([], is_regression=True)
    assert caption(numbers, 99.0) == "a 0.75  b 0.25"


def test_clicks_on_the_picture():
    timeline = timeline_of([])
    assert seconds_at(timeline, 0.07 * 1200, 1200) == 0
    assert seconds_at(timeline, 0.98 * 1200, 1200) == pytest.approx(10)
    assert seconds_at(timeline, 0.525 * 1200, 1200) == pytest.approx(5)
    assert seconds_at(timeline, 5, 1200) == 0


def test_a_piece_of_the_film(film, tmp_path: Path):
    frames, _ = decode_video(
        cut_film(tmp_path / "piece.mp4", film, 5.5, 7.5, short_side=32), range(20)
    )
    brightness = frames.float().mean(dim=(1, 2, 3))
    assert (brightness[:5] < 60).all()
    assert (brightness[5:] > 180).all()
    long = cut_film(tmp_path / "long.mp4", film, 3, 60, short_side=32)
    assert probe_video(long).total_num_frames == 170  # all that follows, in pieces of a few seconds
    with pytest.raises(VideoDecodeError, match="has no frame from start=50"):
        cut_film(tmp_path / "none.mp4", film, 50, 60)


class Killed(Exception):
    pass


def test_a_kill_in_the_film_and_a_finished_video(film, model_folder, tmp_path, capsys, monkeypatch):
    """The scores are not made again, the film is; a film that is missing is made, and other settings
    are refused.
    """
    arguments = [film, "--model", model_folder, "--output_dir", tmp_path, "--dtype", "float32"]
    arguments += ["--window", 4, "--stride", 4, "--resume"]
    drawn, forwards = [], []

    def draw_some(*given):
        drawn.append(1)
        if len(drawn) == 50:
            raise Killed
        return draw(*given)

    def forward(self, pixels):
        forwards.append(1)
        return run_batch(self, pixels)

    draw, run_batch = film_module._drawn, StreamClassifier._forward
    monkeypatch.setattr(StreamClassifier, "_forward", forward)
    with monkeypatch.context() as patch:
        patch.setattr(film_module, "_drawn", draw_some)
        with pytest.raises(Killed):
            label.main([*map(str, arguments), "--overlay"])
    forwards.clear()
    assert not (tmp_path / "film.json").exists()
    assert run(capsys, *arguments, "--overlay")[0] == 0
    overlay = tmp_path / "film.overlay.mp4"
    assert probe_video(overlay).total_num_frames == 200
    assert not forwards
    assert "finished before" in run(capsys, *arguments, "--overlay")[1]
    overlay.unlink()
    assert run(capsys, *arguments, "--overlay", "--threshold", 0.7)[0] == 2  # also with work to do
    assert not overlay.exists()
    _, out, _ = run(capsys, *arguments, "--overlay")
    assert "film.overlay.mp4 is not: the video is labelled again" in out
    assert overlay.exists()
    code, _, err = run(capsys, *arguments, "--threshold", 0.7)
    assert (code, "film.json was made with threshold=0.5, now it is 0.7" in err) == (2, True)


@pytest.mark.parametrize("done", [0, 1, 7, 18])
def test_a_killed_run_goes_on(film, model_folder, tmp_path: Path, capsys, monkeypatch, done: int):
    arguments = [
        film,
        "--model",
        model_folder,
        "--batch_size",
        1,
        "--dtype",
        "float32",
        "--threshold",
        0.3,
    ]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    features = ["--features", tmp_path / "features.parquet"]
    assert run(capsys, *arguments, *features, "--output_dir", whole)[0] == 0
    expected = pyarrow.parquet.read_table(tmp_path / "features.parquet")
    count = []
    forward = StreamClassifier._forward

    def counted(self, pixel_values):
        if len(count) == done and done < 18:
            raise Killed
        count.append(1)
        return forward(self, pixel_values)

    monkeypatch.setattr(StreamClassifier, "_forward", counted)
    if done < 18:
        with pytest.raises(Killed):
            label.main([*map(str, [*arguments, *features, "--output_dir", killed])])
    else:  # killed while it wrote the files
        monkeypatch.setattr(
            "hf_timesformer.timeline.outputs.write_json", lambda *_: (_ for _ in ()).throw(Killed())
        )
        with pytest.raises(Killed):
            label.main([*map(str, [*arguments, *features, "--output_dir", killed])])
        monkeypatch.undo()
    monkeypatch.setattr(
        StreamClassifier, "_forward", lambda self, pixels: count.append(1) or forward(self, pixels)
    )
    journal = killed / "film.windows.jsonl"
    with journal.open("a") as file:
        file.write('{"scores": "AAAA')  # the line that a kill cut short
    count.clear()
    assert run(capsys, *arguments, *features, "--output_dir", killed, "--resume")[0] == 0
    assert len(count) == (19 - done if done < 18 else 0)
    for name in ("film.json", "film.scores.csv"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    assert pyarrow.parquet.read_table(tmp_path / "features.parquet").equals(expected)
    _, out, _ = run(capsys, *arguments, *features, "--output_dir", killed, "--resume")
    assert "finished before (film.json)" in out


def test_a_journal_of_other_settings(film, model_folder, tmp_path: Path, capsys):
    arguments = [
        film,
        "--model",
        model_folder,
        "--output_dir",
        tmp_path,
        "--resume",
        "--dtype",
        "float32",
    ]
    Journal(tmp_path / "film.windows.jsonl", {"window": 3.0}, resume=False)
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert "film.windows.jsonl was begun with" in err
    assert "leave out --resume to begin anew" in err


def test_a_broken_video_among_others(film, model_folder, tmp_path: Path, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.mp4").write_text("no video")
    (tmp_path / "in/b.mp4").write_bytes(film.read_bytes())
    (tmp_path / "in/notes.txt").write_text("none")
    code, out, err = run(
        capsys, tmp_path / "in", "--model", model_folder, "--output_dir", tmp_path / "out"
    )
    assert code == 1
    assert "a.mp4: cannot be opened as a video" in err
    assert "b.mp4: 19.9 s in 19 windows" in out
    assert (tmp_path / "out/b.json").exists()


def test_a_folder_of_pictures_and_an_address(model_folder, tmp_path: Path, capsys):
    (tmp_path / "in").mkdir()
    for number in range(12):
        Image.new("RGB", (48, 32)).save(tmp_path / f"in/{number}.png")
    to = ("--model", model_folder, "--output_dir", tmp_path / "out")
    code, out, err = run(capsys, tmp_path / "in", *to)
    assert code == 1
    assert "tells no frame times" in err
    assert "--frame_rate 25" in err
    code, out, err = run(
        capsys, tmp_path / "in", *to, "--frame_rate", "4", "--overlay", "--limits", "max_seconds=9"
    )
    assert code == 0, err
    assert "in: 3.0 s in 2 windows" in out
    assert probe_video(tmp_path / "out/in.overlay.mp4").total_num_frames == 12
    code, out, err = run(capsys, "https://example.com/a.mp4", *to)
    assert (code, "is an address" in err, "download it first" in err) == (2, True, True)
    code, out, err = run(capsys, tmp_path / "in", *to, "--limits", "max_second=9")
    assert code == 2
    assert "'max_second'" in err
    assert "max_seconds" in err


def test_folders_of_pictures_over_two_processes(model_folder, tmp_path, capsys, monkeypatch):
    """What torchrun tells its processes: each takes its folder, with the frame rate."""
    for name in "ab":
        (tmp_path / "in" / name).mkdir(parents=True)
        for number in range(8):
            Image.new("RGB", (48, 32)).save(tmp_path / "in" / name / f"{number}.png")
    arguments = [tmp_path / "in", "--model", model_folder, "--output_dir", tmp_path / "out"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, name in enumerate("ab"):
        monkeypatch.setenv("RANK", str(rank))
        code, out, _ = run(capsys, *arguments, "--frame_rate", 4, "--window", 1)
        assert code == 0
        assert f"{name}: 2.0 s in 2 windows" in out
        content = json.loads((tmp_path / "out" / f"{name}.json").read_text())
        assert content["frame_rate"] == 4


def test_every_video_is_in_one_share(film, model_folder, tmp_path: Path, capsys, monkeypatch):
    for name in "abcde":
        (tmp_path / name).mkdir()
        (tmp_path / name / "cam.mp4").symlink_to(film)
    (tmp_path / "list").write_text(
        "".join(f"{tmp_path / name / 'cam.mp4'}\n\n" for name in "abcde")
    )
    arguments = [
        f"@{tmp_path / 'list'}",
        "--model",
        model_folder,
        "--output_dir",
        tmp_path / "out",
        "--window",
        8,
    ]
    shares = []
    for shard, rank in (("0/2", 0), ("0/2", 1), ("1/2", 0), ("1/2", 1)):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        code, out, _ = run(
            capsys, *arguments, "--shard", shard, "--features", tmp_path / "features"
        )
        assert code == 0
        shares.append(sorted(re.findall(r"features/(\w+)\.parquet", out)))
    assert shares == [["a_cam", "e_cam"], ["b_cam"], ["c_cam"], ["d_cam"]]
    assert len(list((tmp_path / "out").glob("*_cam.json"))) == 5


def test_a_video_has_one_run_at_a_time(film, model_folder, tmp_path: Path, capsys, monkeypatch):
    """What a dead launcher has left at work keeps its videos, however they are divided now."""
    other = tmp_path / "other.mp4"
    other.symlink_to(film)
    options = ["--model", model_folder, "--output_dir", tmp_path / "out", "--window", 8]
    left = run_lock.Work("label", names=frozenset([film.stem, "another"]))
    with run_lock.only_run_in(tmp_path / "out", left):
        monkeypatch.setattr(run_lock, "_held", set())  # as if it were another process
        code, _, err = run(capsys, film, other, *options, "--resume")
        assert code == 2
        assert f"at work in {tmp_path / 'out'}: process {os.getpid()} on " in err
        assert err.count("error: ") == 1
        assert run(capsys, film, other, *options, "--shard", "1/2")[0] == 0  # only the other video
    assert not list((tmp_path / "out").glob("_run-*"))


def test_torchrun_labels_all_though_one_process_has_nothing_that_can_be_read(
    film, model_folder, tmp_path: Path, capsys
):
    """The process that is soon done, with an error, does not take the other one with it, which has
    hundreds of windows to go through."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(12):
        Image.new("RGB", (48, 32), (20 * number,) * 3).save(pictures / f"{number}.png")
    readable = [film, pictures]
    (tmp_path / "a.mp4").write_text("no video")
    broken = [tmp_path / "a.mp4", tmp_path / "missing.mp4"]
    options = ["--frame_rate", 4, "--model", model_folder, "--dtype", "float32"]
    options += ["--stride", 0.01, "--batch_size", 1]
    code, _, err = run(capsys, broken[0], *readable[:2], *options, "--output_dir", tmp_path / "one")
    assert (code, err.count("error: ")) == (1, 1)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    launch += ["--master_addr", "127.0.0.1", "--master_port", str(free_port())]
    shared_out = [video for pair in zip(broken, readable) for video in pair]  # of rank 0, 1, 0, 1
    command = [*launch, "-m", "hf_timesformer.cli.label", *shared_out, *options]
    done = subprocess.run(
        [*map(str, command), "--output_dir", str(tmp_path / "two")],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert (done.returncode, done.stderr.count("error: ")) == (1, 2), done.stderr[-3000:]
    for path in (tmp_path / "one").iterdir():
        assert (tmp_path / "two" / path.name).read_bytes() == path.read_bytes()
    assert {path.stem for path in (tmp_path / "two").glob("*.vtt")} == {
        path.stem for path in readable
    }


@pytest.mark.parametrize(
    ("shard", "rank", "world", "share"), [("1/2", 0, 2, [2, 6]), ("0/1", 1, 3, [1, 4, 7])]
)
def test_shares(monkeypatch, shard: str, rank: int, world: int, share: list[int]):
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", str(world))
    assert share_of(10, parse_shard(shard)) == share


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shard", "4/4"], "argument --shard: 4/4 is no share: they count from 0 to N-1, so"),
        (["--window", "0"], "window must be a positive number of seconds, got 0.0"),
        (["--threshold", "0.2", "--low_threshold", "0.4"], "low_threshold must lie between"),
        (["--smoothing", "4"], "smoothing must be an odd number"),
        (["--features", "folder"], "--features folder: give a file that ends in .parquet"),
        (["--batch_size", "0"], "batch_size must be at least 1"),
    ],
)
def test_mistakes_are_one_line(
    film, model_folder, tmp_path, capsys, arguments: list[str], message: str
):
    code, _, err = run(capsys, film, "--model", model_folder, "--output_dir", tmp_path, *arguments)
    assert code == 2
    assert f"error: {message}" in err


def test_motion_that_looks_slow_is_said(film, model_folder, tmp_path, capsys):
    _, _, err = run(capsys, film, "--model", model_folder, "--output_dir", tmp_path, "--window", 1)
    assert (
        "the checkpoint's clips last about 4.3 s, windows 1 s: motion looks 4.3 times as slow"
        in err
    )


def test_items_ahead():
    begun = []

    def count():
        for number in range(100):
            begun.append(number)
            yield number

    items = ahead(count(), 3)
    assert [next(items) for _ in range(5)] == [0, 1, 2, 3, 4]
    time.sleep(0.05)
    assert len(begun) <= 5 + 3 + 1
    items.close()
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name.startswith("decode ahead")]

    def fails():
        yield 1
        raise KeyError("broken")

    with pytest.raises(KeyError, match="broken"):
        list(ahead(fails(), 3))
    assert list(ahead(iter(range(10)), 2)) == list(range(10))


def _peak_of(path: str, queue: multiprocessing.Queue) -> None:
    """The peak memory of a process that labels `path`, in MiB."""
    model = Brightness()
    processor = TimeSformerVideoProcessor(
        num_frames=4, size={"shortest_edge": 12}, crop_size={"height": 12, "width": 8}
    )
    label_video(path, model, processor, LabelSettings(window=2.0, stride=2.0))
    status = Path("/proc/self/status").read_text()  # getrusage would tell the peak of the parent
    queue.put(int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_memory_does_not_grow_with_length(tmp_path: Path):
    frames = np.random.default_rng(0).integers(0, 255, (30, 240, 320, 3), np.uint8)
    peaks = []
    for repeats in (2, 40):
        path = encode(
            tmp_path / f"{repeats}.mkv",
            np.concatenate([frames] * repeats),
            options={"preset": "ultrafast"},
        )
        context = multiprocessing.get_context("spawn")
        queue = context.Queue()
        process = context.Process(target=_peak_of, args=(str(path), queue))
        process.start()
        peaks.append(queue.get(timeout=120))
        process.join()
    assert peaks[1] - peaks[0] < 40  # the 38 further repetitions are 250 MB of frames
