"""Scanning and packing: faults are named, shards are whole or absent, an interrupted run goes on."""

import io
import json
import multiprocessing
import os
import resource
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import av
import numpy as np
import PIL.Image
import pool_function
import pyarrow.parquet as pq
import pytest

from hf_timesformer import run_lock
from hf_timesformer.cli import prepare as prepare_command
from hf_timesformer.data.dataset_factory import find_videos, load_videos
from hf_timesformer.data.preparation.pack import PackSettings, pack
from hf_timesformer.data.preparation.parts import Part, join_indexes, refuse_other_division
from hf_timesformer.data.preparation.scan import (
    Listed,
    list_records,
    scan,
    usable_frames,
    write_manifest,
)
from hf_timesformer.data.preparation.worker_pool import PROCESS_DIED, run_in_workers
from hf_timesformer.data.readers.folder import read_folder
from hf_timesformer.data.readers.kinetics import read_kinetics
from hf_timesformer.data.readers.shard_files import PLAN_FILE
from hf_timesformer.data.readers.table import read_table
from hf_timesformer.data.record_video import ReadSettings
from hf_timesformer.data.records import VideoRecords
from hf_timesformer.data.synthetic import motion_frames
from hf_timesformer.data.targets import MULTI_LABEL
from hf_timesformer.video.decoding import decode_video, probe_video
from hf_timesformer.video.encoding import write_video


WORKER_POOL = "hf_timesformer.data.preparation.pack"
SCRIPT = Path(__file__).parents[2] / "scripts/prepare_dataset.py"


def make_clip(path: Path, *, frames: int = 12, size: int = 48, seed: int = 0, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_video(
        path,
        motion_frames("right", np.random.default_rng(seed), num_frames=frames, size=size),
        **options,
    )


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """Seven clips of two classes, one of them a text file, one cut off, and one of three frames."""
    folder = tmp_path_factory.mktemp("clips")
    for number in range(4):
        make_clip(folder / f"train/run/{number}.mp4", seed=number)
    make_clip(folder / "train/jump/short.webm", frames=3, codec="libvpx-vp9")
    (folder / "train/jump/text.mp4").write_text("not a video")
    whole = make_clip(folder / "train/jump/cut.mp4").read_bytes()
    (folder / "train/jump/cut.mp4").write_bytes(whole[: len(whole) // 2])
    return folder


def listed(folder: Path) -> tuple[dict[str, VideoRecords], list[Listed]]:
    splits = {"train": read_folder(folder, "train")}
    return splits, list_records(splits, folder)


# scanning


@pytest.mark.parametrize("check", ["header", "frames", "full"])
def test_scan_says_what_each_video_is(clips: Path, tmp_path: Path, check: str):
    splits, videos = listed(clips)
    rows = scan(videos, tmp_path, check=check, num_workers=0)
    path, _ = write_manifest(tmp_path, splits, rows.values())
    table = {row["video_id"]: row for row in pq.read_table(path).to_pylist()}
    assert len(table) == 7
    good = table["run/2.mp4"]
    assert (good["status"], good["frames"], good["width"], good["height"], good["fps"]) == (
        "ok",
        12,
        48,
        48,
        30.0,
    )
    assert (good["codec"], good["label_name"], good["label"], good["split"]) == (
        "h264",
        "run",
        1,
        "train",
    )
    assert good["bytes"] == (clips / "train/run/2.mp4").stat().st_size
    assert good["seconds"] == pytest.approx(0.4)
    assert good["source"] == "train/run/2.mp4"
    assert good["usable_frames"] == (None if check == "header" else 12)
    assert (table["jump/short.webm"]["status"], table["jump/short.webm"]["frames"]) == ("ok", 3)
    for name in ("jump/text.mp4", "jump/cut.mp4"):
        assert (table[name]["status"], table[name]["reason"]) == ("fault", "container")
        assert "cannot be opened as a video" in table[name]["message"]


def test_missing_clips_stand_in_the_manifest(tmp_path: Path):
    make_clip(tmp_path / "aaaaaaaaaaa_000001_000011.mp4")
    lines = "label,youtube_id,time_start,time_end,split\nrun,aaaaaaaaaaa,1,11,train\nrun,bbbbbbbbbbb,2,12,train\n"
    (tmp_path / "train.csv").write_text(lines)
    splits = {"train": read_kinetics(tmp_path, "train")}
    rows = scan(list_records(splits, tmp_path), tmp_path / "out", num_workers=0)
    _, table = write_manifest(tmp_path / "out", splits, rows.values())
    assert [(row["video_id"], row["status"]) for row in table.to_pylist()] == [
        ("aaaaaaaaaaa_000001_000011", "ok"),
        ("bbbbbbbbbbb_000002_000012", "missing"),
    ]


def damaged_tail(path: Path, *, frames: int = 40) -> Path:
    """A stream whose last frames are gone for good: every packet is there, the last quarter is
    zeros.
    """
    make_clip(path, frames=frames, size=64, codec="mjpeg", pix_fmt="yuvj420p")
    content = bytearray(path.read_bytes())
    starts = [
        place for place in range(len(content) - 2) if content[place : place + 3] == b"\xff\xd8\xff"
    ]
    assert len(starts) == frames
    ends = [*starts[1:], content.index(b"idx1")]
    for start, end in list(zip(starts, ends))[3 * frames // 4 :]:
        end = content.rindex(b"\xff\xd9", start, end)  # the container's own words stay
        content[start:end] = bytes(end - start)
    path.write_bytes(content)
    return path


def test_a_damaged_end_costs_only_the_frames_there(tmp_path: Path):
    path = damaged_tail(tmp_path / "clips/train/run/tail.avi")
    assert probe_video(path).total_num_frames == 40
    assert usable_frames(str(path), 40) == usable_frames(str(path), 40, every=True) == 30
    _, videos = listed(tmp_path / "clips")
    rows = scan(videos, tmp_path / "out", num_workers=0)
    row = rows["train", "run/tail.avi"]
    assert (row["status"], row["usable_frames"]) == ("partial", 30)
    assert row["message"] == "only the first 30 of 40 frames can be decoded"
    pack(
        videos,
        ["run"],
        tmp_path / "out",
        PackSettings(short_side=32),
        expected={"train": 1},
        num_workers=0,
    )
    record = next(iter(load_videos("webdataset", tmp_path / "out", "train")))
    assert probe_video(record["video"]).total_num_frames == 30


def test_a_scan_goes_on_where_it_stopped(clips: Path, tmp_path: Path, caplog):
    _, videos = listed(clips)
    scan(videos[:4], tmp_path, num_workers=0)
    log = tmp_path / "scan.jsonl"
    log.write_bytes(log.read_bytes()[:-20])  # killed while the fourth answer was written
    with caplog.at_level("INFO"):
        rows = scan(videos, tmp_path, num_workers=0)
    assert "3 of 7 videos were scanned before" in caplog.text
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [row["video_id"] for row in lines] == [video.video_id for video in videos]
    assert {row["video_id"] for row in rows.values()} == {video.video_id for video in videos}


def test_a_changed_file_or_a_deeper_check_is_scanned_again(clips: Path, tmp_path: Path):
    _, videos = listed(clips)
    scan(videos, tmp_path, check="header", num_workers=0)
    scan(videos, tmp_path, check="frames", num_workers=0)
    assert len((tmp_path / "scan.jsonl").read_text().splitlines()) == 14
    scan(videos, tmp_path, check="header", num_workers=0)  # shallower: nothing to do
    assert len((tmp_path / "scan.jsonl").read_text().splitlines()) == 14
    moved = tmp_path / "text.mp4"
    moved.write_text("longer than it was before")
    changed = [
        video
        if video.video_id != "jump/text.mp4"
        else Listed(**{**vars(video), "path": str(moved)})
        for video in videos
    ]
    scan(changed, tmp_path, check="frames", num_workers=0)
    assert len((tmp_path / "scan.jsonl").read_text().splitlines()) == 15


# the pool


def test_a_fatal_input_is_named_and_the_others_go_on():
    preload = [WORKER_POOL, pool_function.__name__]  # so that no worker imports anything itself
    work = run_in_workers(pool_function.square_or_die, range(7), num_workers=2, preload=preload)
    results = dict(work)
    assert results.pop(3) is PROCESS_DIED
    assert results == {number: number * number for number in (0, 1, 2, 4, 5, 6)}


def test_where_there_is_no_forkserver(monkeypatch):
    """As on Windows, where processes start anew."""
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    results = dict(run_in_workers(abs, [-1, 2], num_workers=1, preload=["os"]))
    assert results == {-1: 1, 2: 2}


def test_an_exception_ends_the_run():
    with pytest.raises(ZeroDivisionError):
        list(run_in_workers(lambda number: 1 / number, [1, 0], num_workers=0))


# packing


def readable(videos: list[Listed]) -> list[Listed]:
    return [video for video in videos if not video.video_id.endswith(("text.mp4", "cut.mp4"))]


def shard_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.tar"))}


@pytest.mark.parametrize("short_side", [None, 32, 64])
def test_packed_shards_give_back_the_videos(clips: Path, tmp_path: Path, short_side: int | None):
    _, videos = listed(clips)
    videos = readable(videos)
    settings = PackSettings(videos_per_shard=2, short_side=short_side)
    places = pack(videos, ["jump", "run"], tmp_path, settings, expected={"train": 7}, num_workers=0)
    found = find_videos("webdataset", tmp_path, "train")
    assert (found.num_expected, found.num_found, found.videos.num_shards) == (7, 5, 3)
    assert found.class_names == ["jump", "run"]
    assert found.count_classes().tolist() == found.class_counts == [1, 4]
    assert sorted(found.describe()["label"]) == [0, 1, 1, 1, 1]
    records = {record["video_id"]: record for record in found.videos}
    assert len(records) == 5
    for video in videos:
        record = records[video.video_id]
        assert record["label"] == video.label
        assert places[video.identity]["shard"] in (
            "train-000000.tar",
            "train-000001.tar",
            "train-000002.tar",
        )
        if short_side == 32:
            frames, metadata = decode_video(record["video"], lambda m: range(m.total_num_frames))
            wanted, _ = decode_video(video.path, lambda m: range(m.total_num_frames), short_side=32)
            assert frames.shape == wanted.shape
            assert metadata.fps == 30
            # of 255, after lossy coding
            assert (frames.float() - wanted.float()).square().mean().sqrt() < 8
        else:  # as they are: nothing is enlarged
            assert record["video"] == Path(video.path).read_bytes()


def test_sample_descriptions(clips: Path, tmp_path: Path):
    _, videos = listed(clips)
    pack(
        readable(videos),
        ["jump", "run"],
        tmp_path,
        PackSettings(short_side=32),
        expected={"train": 7},
        num_workers=0,
    )
    with tarfile.open(tmp_path / "train-000000.tar") as tar:
        names = tar.getnames()
        about = [
            json.loads(tar.extractfile(name).read()) for name in names if name.endswith(".json")
        ]
    assert names[:2] == ["train_00000000.mp4", "train_00000000.json"]
    by_id = {entry["video_id"]: entry for entry in about}
    assert by_id["run/1.mp4"] == {
        "video_id": "run/1.mp4",
        "label": 1,
        "label_name": "run",
        "source": "train/run/1.mp4",
        "frames": 12,
        "fps": 30.0,
        "width": 32,
        "height": 32,
        "reencoded": True,
    }


def test_odd_sides_are_encoded(tmp_path: Path):
    frames = np.random.default_rng(0).integers(0, 255, (4, 60, 110, 3), np.uint8)
    (tmp_path / "clips/train/run").mkdir(parents=True)
    write_video(tmp_path / "clips/train/run/odd.mp4", frames)
    _, videos = listed(tmp_path / "clips")
    pack(
        videos,
        ["run"],
        tmp_path / "out",
        PackSettings(short_side=33),
        expected={"train": 1},
        num_workers=0,
    )
    metadata = probe_video(
        next(iter(load_videos("webdataset", tmp_path / "out", "train")))["video"]
    )
    assert (metadata.total_num_frames, metadata.height, metadata.width) == (4, 32, 60)


def test_a_clip_that_went_bad_after_the_scan_is_left_out(clips: Path, tmp_path: Path):
    _, videos = listed(clips)
    places = pack(
        videos, ["jump", "run"], tmp_path, PackSettings(), expected={"train": 7}, num_workers=0
    )
    assert places["train", "jump/text.mp4"]["reason"] == "container"
    assert len(list(load_videos("webdataset", tmp_path, "train"))) == 5
    assert find_videos("webdataset", tmp_path, "train").num_found == 5


def test_a_full_disk_leaves_no_half_shard_and_the_next_run_goes_on(clips: Path, tmp_path: Path):
    _, videos = listed(clips)
    videos, settings = readable(videos), PackSettings(videos_per_shard=3)
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    # no file may grow past this: as good as full
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, unlimited[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            pack(videos, ["jump", "run"], tmp_path, settings, expected={"train": 5}, num_workers=0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert not list(tmp_path.glob("*.tar"))
    assert not list(tmp_path.glob(".*.part"))
    with pytest.raises(ValueError, match=r"packing into .* is not finished"):
        load_videos("webdataset", tmp_path, "train")
    pack(videos, ["jump", "run"], tmp_path, settings, expected={"train": 5}, num_workers=0)
    assert len(list(load_videos("webdataset", tmp_path, "train"))) == 5


def test_another_plan_is_refused(clips: Path, tmp_path: Path):
    _, videos = listed(clips)
    videos, classes = readable(videos), ["jump", "run"]
    pack(videos, classes, tmp_path, PackSettings(), expected={"train": 5}, num_workers=0)
    before = shard_bytes(tmp_path)
    others = {
        r"another videos_per_shard \(256 -> 2\)": PackSettings(2),
        r"another short_side \(None -> 32\)": PackSettings(short_side=32),
        r"another key_frame_every \(32 -> 64\)": PackSettings(key_frame_every=64),
        r"another fast_decode \(True -> False\)": PackSettings(fast_decode=False),
        r"another seed \(0 -> 1\)": PackSettings(seed=1),
    }
    for message, settings in others.items():
        with pytest.raises(ValueError, match=message):
            pack(videos, classes, tmp_path, settings, expected={"train": 5}, num_workers=0)
    with pytest.raises(ValueError, match=r"another videos \(5 -> 4\), digest"):
        pack(videos[1:], classes, tmp_path, PackSettings(), expected={"train": 5}, num_workers=0)
    plan = json.loads((tmp_path / PLAN_FILE).read_text())
    del plan["key_frame_every"], plan["fast_decode"]  # as releases wrote it that had neither
    (tmp_path / PLAN_FILE).write_text(json.dumps(plan))
    with pytest.raises(ValueError, match=r"another key_frame_every \(unknown -> 32\), fast_decode"):
        pack(videos, classes, tmp_path, PackSettings(), expected={"train": 5}, num_workers=0)
    assert shard_bytes(tmp_path) == before


@pytest.mark.parametrize(
    ("name", "value"), [("videos_per_shard", 0), ("short_side", 8), ("key_frame_every", 0)]
)
def test_settings_are_checked(name: str, value: int):
    with pytest.raises(ValueError, match=f"{name} must be at least .* got {value}"):
        PackSettings(**{name: value})


def test_segments_several_labels_and_further_columns_are_packed(tmp_path: Path):
    """Each segment is a clip of its own in the shard; what it is, and what else is told of it,
    comes back.
    """
    path = tmp_path / "long.mp4"
    frames = np.stack([np.full((32, 48, 3), 6 * number, np.uint8) for number in range(40)])
    write_video(path, frames, fps=10)
    records = VideoRecords(["a", "b", "c"], MULTI_LABEL)
    records.add("whole", path, [0, 2], weight=2.0)
    records.add("seconds", path, [], start=1.0, end=2.5)
    records.add("frames", path, [1], start_frame=30, group="g")
    videos = list_records({"train": records}, tmp_path)
    rows = scan(videos, tmp_path / "out", num_workers=0, check="full")
    found = {
        identity[1]: (row["frames"], row["usable_frames"], row.get("start"))
        for identity, row in rows.items()
    }
    assert found == {"whole": (40, 40, None), "seconds": (15, 15, 1.0), "frames": (10, 10, 3.0)}
    _, table = write_manifest(tmp_path / "out", {"train": records}, rows.values())
    assert [(row["labels"], row["label_name"], row["label"]) for row in table.to_pylist()] == [
        ([0, 2], "a|c", None),
        ([], "", None),
        ([1], "b", None),
    ]
    settings = PackSettings(short_side=64)  # nothing is enlarged
    pack(videos, ["a", "b", "c"], tmp_path / "out", settings, expected={"train": 3}, num_workers=0)
    packed = find_videos("webdataset", tmp_path / "out", "train")
    assert packed.problem_type == MULTI_LABEL
    records = {record["video_id"]: record for record in packed.videos}
    assert {name: record["labels"] for name, record in records.items()} == {
        "whole": [0, 2],
        "seconds": [],
        "frames": [1],
    }
    assert (
        records["whole"]["weight"],
        records["seconds"]["weight"],
        records["frames"]["group"],
    ) == (2.0, None, "g")
    assert "start" not in records["seconds"]
    assert records["whole"]["video"] == path.read_bytes()
    for name, first, count in (("seconds", 10, 15), ("frames", 30, 10)):
        clip, metadata = decode_video(records[name]["video"], lambda m: range(m.total_num_frames))
        assert (metadata.total_num_frames, metadata.fps) == (count, 10)
        wanted = np.arange(first, first + count) * 6
        assert np.abs(clip.float().mean((1, 2, 3)).numpy() - wanted).max() < 4


def test_a_clip_of_an_unusual_suffix_is_found_again(clips: Path, tmp_path: Path):
    (tmp_path / "clips/run").mkdir(parents=True)
    content = (clips / "train/run/0.mp4").read_bytes()
    (tmp_path / "clips/run/a.xyz").write_bytes(content)
    splits = {"train": read_folder(tmp_path / "clips", "train", extensions=["xyz"])}
    videos = list_records(splits, tmp_path / "clips")
    pack(videos, ["run"], tmp_path / "out", PackSettings(), expected={"train": 1}, num_workers=0)
    assert [row["video"] for row in load_videos("webdataset", tmp_path / "out", "train")] == [
        content
    ]


@pytest.mark.parametrize(("every", "fast"), [(8, False), (16, True)])
def test_packed_clips_have_the_key_frames_that_were_asked_for(
    tmp_path: Path, every: int, fast: bool
):
    make_clip(tmp_path / "clips/train/run/a.mp4", frames=40, size=96)
    _, videos = listed(tmp_path / "clips")
    settings = PackSettings(short_side=64, key_frame_every=every, fast_decode=fast)
    pack(videos, ["run"], tmp_path / "out", settings, expected={"train": 1}, num_workers=0)
    content = next(iter(load_videos("webdataset", tmp_path / "out", "train")))["video"]
    with av.open(io.BytesIO(content)) as container:
        keys = [packet.is_keyframe for packet in container.demux(video=0) if packet.size]
    assert [number for number, is_key in enumerate(keys) if is_key] == list(range(0, 40, every))
    assert (b"deblock=0" in content) == fast  # x264 writes its settings down


def test_the_command_encodes_as_the_settings_do():
    needed = ["--data_dir", "clips", "--output_dir", "out"]
    args, settings = prepare_command.parse_arguments(needed), PackSettings()
    for name in ("videos_per_shard", "short_side", "seed", "key_frame_every"):
        assert getattr(args, name) == getattr(settings, name)
    assert (args.fast_decode == "true") == settings.fast_decode
    for given in (["--fast_decode", "false"], ["--fast-decode=false"]):
        assert prepare_command.parse_arguments([*needed, *given]).fast_decode == "false"


def test_folders_of_pictures_are_packed_as_videos(tmp_path: Path, caplog):
    folder = tmp_path / "clips/run/a"
    folder.mkdir(parents=True)
    for number in range(6):
        PIL.Image.fromarray(np.full((48, 64, 3), 40 * number, np.uint8)).save(
            folder / f"img_{number:05d}.png"
        )
    _, videos = listed(tmp_path / "clips")
    rows = scan(videos, tmp_path / "out", num_workers=0, check="full")
    row = rows["train", "run/a"]
    assert (row["status"], row["frames"], row["usable_frames"], row["codec"]) == (
        "ok",
        6,
        6,
        "pictures",
    )
    # a rate that nobody knows is said; one that is told is kept, and the row of the scan renewed
    for number, (rate, packed_at) in enumerate([(None, 30), (5, 5)]):
        out, reading = tmp_path / f"out{number}", ReadSettings(frame_rate=rate)
        caplog.clear()
        options = {"expected": {"train": 1}, "num_workers": 0, "reading": reading}
        pack(videos, ["run"], out, PackSettings(), **options)
        said = "do not tell their frame rate: they are packed at 30 frames a second; --frame_rate"
        assert (said in caplog.text) == (rate is None)
        content = next(iter(load_videos("webdataset", out, "train")))["video"]
        frames, metadata = decode_video(content, range(6))
        assert np.abs(frames.float().mean((1, 2, 3)).numpy() - 40 * np.arange(6)).max() < 4
        assert metadata.fps == packed_at
        (row,) = scan(videos, tmp_path / "out", num_workers=0, reading=reading).values()
        assert row["fps"] == rate
    reading = ReadSettings(frame_rate=7)
    with pytest.raises(ValueError, match=r"another frame_rate \(5 -> 7\)"):
        pack(videos, ["run"], out, PackSettings(), expected={"train": 1}, reading=reading)


# shared over machines


def prepare(*argv: object) -> None:
    prepare_command.main([str(word) for word in argv])


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
@pytest.mark.parametrize("by_launcher", [False, True])
def test_parts_are_joined(
    clips: Path, tmp_path: Path, order, by_launcher: bool, monkeypatch, capsys
):
    """Three parts in whatever order are the same clips and the same manifest as the whole, once all
    are there.
    """
    common = ("--data_dir", clips, "--pack", "--videos_per_shard", 2, "--num_workers", 0)
    prepare(*common, "--output_dir", tmp_path / "whole")
    output = tmp_path / "parts"
    for number in order:
        if number != order[0]:
            with pytest.raises(ValueError, match="is not finished"):
                load_videos("webdataset", output, "train")
        if by_launcher:
            monkeypatch.setenv("RANK", str(number))
            monkeypatch.setenv("WORLD_SIZE", "3")
            prepare(*common, "--output_dir", output)
        else:
            prepare(*common, "--output_dir", output, "--shard", f"{number}/3")
    told = capsys.readouterr().out
    others = ", ".join(f"{number}/3" for number in sorted(order[1:]))
    assert f"part {order[0]}/3; still to come before all is joined: {others}\n" in told

    def content(folder: Path) -> dict[str, bytes]:
        return {
            record["video_id"]: record["video"]
            for record in load_videos("webdataset", folder, "train")
        }

    assert content(output) == content(tmp_path / "whole")
    whole, joined = (
        find_videos("webdataset", folder, "train") for folder in (tmp_path / "whole", output)
    )
    assert (
        (joined.num_found, joined.num_expected) == (whole.num_found, whole.num_expected) == (5, 7)
    )

    assert joined.class_counts == whole.class_counts == [1, 4]

    def rows_of(folder: Path) -> list[dict]:
        rows = pq.read_table(folder / "manifest.parquet").to_pylist()
        kept = [{name: row[name] for name in row if name not in ("shard", "key")} for row in rows]
        return sorted(kept, key=lambda row: row["video_id"])

    assert rows_of(output) == rows_of(tmp_path / "whole")


def test_another_division_is_refused(clips: Path, tmp_path: Path, capsys):
    common = (
        "--data_dir",
        clips,
        "--output_dir",
        tmp_path,
        "--num_workers",
        0,
        "--check",
        "header",
    )
    prepare(*common, "--shard", "0/2")
    for shard, complaint in (
        ("0/3", "was prepared in 2 parts, not 3"),
        ("0/1", "was prepared in 2 parts, not 1"),
        ("3/3", "3/3 is no share: they count from 0 to N-1, so it is 0/3 to 2/3"),
        ("half", "half is no share: they count from 0 to N-1, so it is 0/4 to 3/4"),
    ):
        with pytest.raises(SystemExit):
            prepare(*common, "--shard", shard)
        assert complaint in capsys.readouterr().err


@pytest.mark.parametrize("name", ["scan-1of4.jsonl", "manifest-4of4.parquet"])
def test_parts_that_were_counted_from_1_are_refused(tmp_path: Path, name: str):
    (tmp_path / name).touch()
    with pytest.raises(ValueError, match=f"{name} is of an earlier version, which counted parts"):
        refuse_other_division(tmp_path, Part(0, 4))


def test_a_part_has_one_run_at_a_time(clips: Path, tmp_path: Path, capsys, monkeypatch):
    common = ("--data_dir", clips, "--output_dir", tmp_path, "--num_workers", 0)
    with run_lock.only_run_in(tmp_path, run_lock.Work("prepare", (1, 2))):
        monkeypatch.setattr(run_lock, "_held", set())  # as if it were another process
        with pytest.raises(SystemExit):
            prepare(*common, "--shard", "1/2")
        assert f"at work in {tmp_path}: process {os.getpid()} on " in capsys.readouterr().err
        prepare(*common, "--shard", "0/2", "--check", "header")


def test_parts_of_different_settings_are_not_joined():
    index = {
        "splits": {},
        "classes": 2,
        "problem_type": "x",
        "columns": [],
        "settings": {"short_side": 256},
    }
    with pytest.raises(ValueError, match="packed with different settings"):
        join_indexes([index, index | {"settings": {"short_side": 320}}])


def test_missing_videos_are_shared_out():
    records = VideoRecords(["a"])
    for number in range(5):
        records.add_listed(f"m{number}", None, 0)
        records.add(f"v{number}", f"{number}.mp4", 0, weight=float(number))
    parts = [part.take(records) for part in Part(0, 2).all()]
    assert [part.video_ids for part in parts] == [["v0", "v2", "v4"], ["v1", "v3"]]
    assert [part.missing for part in parts] == [["m0", "m2", "m4"], ["m1", "m3"]]
    assert parts[1].extras == [{"weight": 1.0}, {"weight": 3.0}]


# the script, killed


@pytest.mark.slow
def test_killed_while_packing_it_goes_on_and_ends_the_same(tmp_path: Path, capsys):
    source, output = tmp_path / "clips", tmp_path / "out"
    clip = make_clip(source / "train/run/0.mp4", frames=60, size=160)
    for number in range(1, 12):
        shutil.copy(clip, source / f"train/run/{number}.mp4")
    arguments = ["--data_dir", source, "--pack", "--videos_per_shard", 2, "--short_side", 128]
    arguments += ["--output_dir", output]
    command = [sys.executable, SCRIPT, *arguments, "--num_workers", 0]
    process = subprocess.Popen(
        list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not list(output.glob("train-*.tar")):
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    process.kill()
    process.wait()
    finished = shard_bytes(output)
    assert 0 < len(finished) < 6
    for content in finished.values():
        assert content.endswith(bytes(1024))  # a whole tar file ends in two empty blocks
    assert not (output / "shards.json").exists()
    times = {name: (output / name).stat().st_mtime_ns for name in finished}
    prepare(*arguments, "--num_workers", 0)
    assert "train: 12 listed, 12 readable" in capsys.readouterr().out
    assert len((output / "scan.jsonl").read_text().splitlines()) == 12
    kept = [name for name in finished if (output / name).stat().st_mtime_ns == times[name]]
    assert len(kept) >= len(finished) - 1  # one may have been whole but not yet noted down
    assert not list(output.glob(".*.part"))

    _, videos = listed(source)
    settings = PackSettings(2, 128)
    pack(videos, ["run"], tmp_path / "once", settings, expected={"train": 12}, num_workers=0)
    assert shard_bytes(output) == shard_bytes(tmp_path / "once")
    manifest = pq.read_table(output / "manifest.parquet").to_pylist()
    assert {row["shard"] for row in manifest} == set(shard_bytes(output))


# segments, several labels, numbers


@pytest.mark.parametrize("short_side", [None, 32])
def test_segments_are_packed_as_clips_of_their_own(tmp_path: Path, short_side: int | None):
    frames = np.repeat(np.arange(20, dtype=np.uint8)[:, None] * 12, 48 * 64 * 3, axis=1).reshape(
        20, 48, 64, 3
    )
    write_video(tmp_path / "long.mp4", frames, fps=10)
    rows = [
        "path,label,start,end,split",
        "long.mp4,a,0.5,1.0,train",
        "long.mp4,b,1.2,,train",
        "long.mp4,a,,0.4,test",
    ]
    (tmp_path / "clips.csv").write_text("\n".join(rows))
    splits = {split: read_table(tmp_path / "clips.csv", split) for split in ("train", "test")}
    videos = list_records(splits, tmp_path / "clips.csv")
    scanned = scan(videos, tmp_path / "out", num_workers=0)
    assert [row["frames"] for row in scanned.values()] == [5, 8, 4]
    assert [row["status"] for row in scanned.values()] == ["ok"] * 3
    expected = {"train": 2, "test": 1}
    pack(
        videos,
        ["a", "b"],
        tmp_path / "out",
        PackSettings(short_side=short_side),
        expected=expected,
        num_workers=0,
    )
    _, table = write_manifest(tmp_path / "out", splits, scanned.values())
    assert table["start"].to_pylist() == [0.5, 1.2, None]
    packed = {
        row["video_id"]: row
        for s in expected
        for row in load_videos("webdataset", tmp_path / "out", s)
    }
    for name, first, last in (
        ("long.mp4@0.5-1", 5, 9),
        ("long.mp4@1.2-", 12, 19),
        ("long.mp4@0-0.4", 0, 3),
    ):
        metadata = probe_video(packed[name]["video"])
        assert (metadata.total_num_frames, metadata.fps) == (last - first + 1, 10)
        pixels, _ = decode_video(packed[name]["video"], [0, last - first])
        assert min(pixels.shape[2:]) == (short_side or 48)
        means = pixels.float().mean(dim=(1, 2, 3)).tolist()
        assert means == pytest.approx([12 * first, 12 * last], abs=3)


@pytest.mark.parametrize(
    ("column", "cells", "expected"),
    [
        ("labels", ["x|y", "", "y"], [[0, 1], [], [1]]),
        ("target", ["-1.5", "0", "7"], [-1.5, 0.0, 7.0]),
    ],
)
def test_labels_of_every_kind_are_packed(
    tmp_path: Path, column: str, cells: list[str], expected: list
):
    lines = [f"path,{column}"]
    for number, cell in enumerate(cells):
        make_clip(tmp_path / f"{number}.mp4", seed=number, frames=4)
        lines.append(f"{number}.mp4,{cell}")
    (tmp_path / "train.csv").write_text("\n".join(lines))
    records = read_table(tmp_path, "train")
    videos = list_records({"train": records}, tmp_path)
    rows = scan(videos, tmp_path / "out", check="header", num_workers=0)
    _, table = write_manifest(tmp_path / "out", {"train": records}, rows.values())
    assert table[column].to_pylist() == expected
    pack(
        videos,
        records.class_names,
        tmp_path / "out",
        PackSettings(),
        expected={"train": 3},
        num_workers=0,
    )
    found = find_videos("webdataset", tmp_path / "out", "train")
    assert found.problem_type == records.problem_type
    assert {row["video_id"]: row[column] for row in found.videos} == dict(
        zip(records.video_ids, expected)
    )
