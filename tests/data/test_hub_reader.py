"""Data sets that `datasets` opens, from local folders and a Hub: what is read, and in which order it is
streamed.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value, Video
from hub_server import Hub
from torch.utils.data import DataLoader

from hf_timesformer import TimeSformerVideoProcessor
from hf_timesformer.data.clips import read_for_evaluation
from hf_timesformer.data.dataset_factory import available_splits, find_videos, load_videos
from hf_timesformer.data.hold_out import hold_out
from hf_timesformer.data.record_video import video_of
from hf_timesformer.data.row_source import ClipKey, RecordSource
from hf_timesformer.data.shard_source import ShardSource, StreamLayout
from hf_timesformer.video.decoding import decode_video
from hf_timesformer.video.encoding import write_video


DRIVER = Path(__file__).parents[1] / "helpers/hub_dataset_driver.py"
NAMES = ["jump", "run"]
LABELS = [0, 1, 1, 0, 1, 0, 0]  # of the training clips


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """Seven clips to train on and two to test on in class folders, each of another brightness."""
    folder = tmp_path_factory.mktemp("videofolder")
    for split, labels in (("train", LABELS), ("test", [0, 1])):
        for number, label in enumerate(labels):
            path = folder / split / NAMES[label] / f"{number}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_video(path, np.full((3, 16, 16, 3), 30 * number, np.uint8))
    return folder


def table(folder: Path, split: str, column: str = "clip") -> Dataset:
    """The same clips as rows with bytes, and a label for each."""
    paths = sorted((folder / split).rglob("*.mp4"), key=lambda path: int(path.stem))
    features = Features({column: Video(decode=False), "label": ClassLabel(names=NAMES)})
    videos = [{"path": path.name, "bytes": path.read_bytes()} for path in paths]
    return Dataset.from_dict(
        {column: videos, "label": [NAMES.index(path.parent.name) for path in paths]}, features
    )


@pytest.fixture(scope="module")
def parquet(clips: Path, tmp_path_factory) -> Path:
    """The training clips in three Parquet files of 3, 2 and 2 rows, a split named `val` in one."""
    folder = tmp_path_factory.mktemp("parquet")
    (folder / "data").mkdir()
    train = table(clips, "train")
    for shard in range(3):
        train.shard(3, shard, contiguous=True).to_parquet(
            folder / f"data/train-{shard:05d}-of-00003.parquet"
        )
    table(clips, "test").to_parquet(folder / "data/validation-00000-of-00001.parquet")
    return folder


def brightness(video: str | bytes) -> int:
    """Which clip it is."""
    return round(float(decode_video(video, [0])[0].float().mean()) / 30)


def test_from_a_hub(clips: Path, parquet: Path, tmp_path: Path):
    """`user/name`: class folders and Parquet files, over HTTP, map-style and streamed."""
    names = {"tester/folders": clips, "tester/parquet": parquet}
    with Hub() as hub:
        for name, folder in names.items():
            hub.add_dataset(name, folder)
        environment = os.environ | hub.environment(tmp_path) | {"HF_HUB_OFFLINE": "0"}
        command = [sys.executable, DRIVER, *names]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    for name in names:
        splits = ["train", "test" if name == "tester/folders" else "validation"]
        sizes = [7] if name == "tester/folders" else [3, 2, 2]
        for answer, shard_sizes in zip(found[name], (None, sizes), strict=True):
            assert answer == {
                "splits": splits,
                "class_names": NAMES,
                "num_found": 7,
                "shard_sizes": shard_sizes,
                "clips": [list(clip) for clip in enumerate(LABELS)],
            }


def read(dataset) -> list[tuple[int, int]]:
    return [(brightness(video_of(row["video"])), row["label"]) for row in dataset]


def test_class_folders(clips: Path):
    assert available_splits("hub", clips) == ["train", "test"]
    found = find_videos("hub", clips, "train")
    assert (found.class_names, found.num_expected, found.num_found, found.shards) == (
        NAMES,
        7,
        7,
        None,
    )
    assert sorted(read(found.videos)) == list(enumerate(LABELS))
    assert found.videos["video_id"][0] == "train/jump/0.mp4"
    assert isinstance(video_of(found.videos[0]["video"]), str)  # read where it lies
    assert found.videos.features["label"].names == NAMES


def test_parquet_with_bytes(parquet: Path):
    assert available_splits("hub", parquet) == ["train", "validation"]
    found = find_videos("hub", parquet, "train")
    assert read(found.videos) == list(enumerate(LABELS))
    assert found.videos["video_id"][:2] == ["0.mp4", "1.mp4"]
    assert len(load_videos("hub", parquet, "val")) == 2
    assert read(found.videos.select([4, 2])) == [(4, 1), (2, 1)]  # as held-out clips are
    assert (
        brightness(video_of(next(RecordSource(found.videos).candidates(ClipKey(0, 6)))["video"]))
        == 6
    )
    with pytest.raises(ValueError, match="has no test split; it has: train, validation"):
        load_videos("hub", parquet, "test")


def test_clips_are_held_out_and_read_for_evaluation(parquet: Path):
    kept, held_out = hold_out(load_videos("hub", parquet, "train"), 0.3, seed=0)
    assert sorted(kept["video_id"][:] + held_out["video_id"][:]) == [
        f"{number}.mp4" for number in range(7)
    ]
    assert set(held_out["label"]) == {0, 1}
    processor = TimeSformerVideoProcessor(
        num_frames=2, size={"shortest_edge": 16}, crop_size=16, image_mean=[0.0] * 3
    )
    for row in range(len(held_out)):
        item = read_for_evaluation(held_out[row], processor, [0, 1])
        shown = float(item["pixel_values"].mean()) * 0.225 * 255 / 30
        assert round(shown) == int(Path(item["video_id"]).stem)


@pytest.mark.parametrize("kind", ["parquet", "class folders", "saved"])
def test_streamed(kind: str, parquet: Path, clips: Path, tmp_path: Path):
    folder = {"parquet": parquet, "class folders": clips}.get(kind, tmp_path / "saved")
    if kind == "saved":
        DatasetDict(train=table(clips, "train")).save_to_disk(folder)
    found = find_videos("hub", folder, "train", streaming=True)
    assert found.videos.num_shards == len(found.shards) == len(found.shard_sizes)
    assert sum(found.shard_sizes) == found.num_found == 7
    if kind == "parquet":
        assert found.shard_sizes == [3, 2, 2]
    assert sorted(read(found.videos)) == list(enumerate(LABELS))
    assert len({row["video_id"] for row in found.videos}) == 7


@pytest.mark.parametrize("num_workers", [0, 2])
def test_streamed_in_the_exact_order_of_shards(parquet: Path, num_workers: int):
    """Every clip once an epoch over two processes, in an order that a resumed run takes up in the
    middle.
    """
    found = find_videos("hub", parquet, "train", streaming=True)
    layout = StreamLayout(7, batch_size=2, num_processes=2, num_workers=max(1, num_workers))

    def epoch(start: int = 0) -> list[str]:
        source = ShardSource(found.videos, found.shard_sizes, layout, shuffle_buffer=3, seed=5)
        keys = list(source.make_sampler(5))[start:]
        return [next(source.candidates(key))["video_id"] for key in keys]

    whole = epoch()
    assert len(set(whole)) == 7
    assert epoch(3) == whole[3:]
    if num_workers:
        loaded = DataLoader(found.videos, batch_size=None, num_workers=num_workers)
        assert sorted(row["video_id"] for row in loaded) == sorted(set(whole))


def save(folder: Path, columns: dict, features: dict) -> Path:
    DatasetDict(train=Dataset.from_dict(columns, Features(features))).save_to_disk(folder)
    return folder


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("labels", "feature", "names", "column", "expected"),
    [
        (["run", "jump", "run"], Value("string"), ["jump", "run"], "label", [1, 0, 1]),
        ([0, 1, 1], Value("int64"), ["class 0", "class 1"], "label", [0, 1, 1]),
        (
            [[0, 2], [], [1]],
            List(ClassLabel(names=["a", "b", "c"])),
            ["a", "b", "c"],
            "labels",
            [[0, 2], [], [1]],
        ),
        ([["b", "a"], ["b"], []], List(Value("string")), ["a", "b"], "labels", [[1, 0], [1], []]),
        ([0.5, -1.0, 2.0], Value("float32"), ["label"], "target", [0.5, -1.0, 2.0]),
    ],
)
def test_labels_of_every_kind(
    tmp_path: Path, labels, feature, names, column, expected, streaming: bool
):
    save(
        tmp_path / "set",
        {"video": [b"x", b"y", b"z"], "label": labels},
        {"video": Value("binary"), "label": feature},
    )
    found = find_videos("hub", tmp_path / "set", "train", streaming=streaming)
    assert found.class_names == names
    assert [row[column] for row in found.videos] == expected
    assert [row["video"] for row in found.videos] == [b"x", b"y", b"z"]


def test_paths_segments_and_columns_that_are_named(tmp_path: Path):
    columns = {
        "file": ["a.mp4", "a.mp4"],
        "seen": [1, 0],
        "mood": ["x", "y"],
        "start": [0, 2],
        "end": [2, 4],
    }
    kinds = {"file": Value("string"), "seen": Value("int64"), "mood": Value("string")}
    save(tmp_path / "set", columns, kinds | {"start": Value("int32"), "end": Value("int32")})
    with pytest.raises(
        ValueError,
        match=r"the column of labels is not to be found: give --label_column.*mood \(string",
    ):
        find_videos("hub", tmp_path / "set", "train")
    with pytest.raises(ValueError, match="there is no column 'word'"):
        find_videos("hub", tmp_path / "set", "train", label_column="word")
    for streaming in (False, True):
        options = {"label_column": "mood", "video_column": "file", "streaming": streaming}
        if streaming:
            (tmp_path / "set/a.mp4").write_bytes(b"film")
        found = find_videos("hub", tmp_path / "set", "train", **options)
        first = next(iter(found.videos))
        assert first["video"] == (b"film" if streaming else str(tmp_path / "set/a.mp4"))
        assert (first["label"], first["start"], first["end"]) == (0, 0.0, 2.0)
        assert len({row["video_id"] for row in found.videos}) == 2


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([1, 2], "they begin at 1: take 1 from each"),
        ([0, None], "row 1 of the train split of .* has no label"),
    ],
)
def test_labels_that_make_no_sense(tmp_path: Path, labels: list, message: str):
    kinds = {"video": Value("binary"), "label": Value("int64")}
    save(tmp_path / "set", {"video": [b"x", b"y"], "label": labels}, kinds)
    with pytest.raises(ValueError, match=message):
        find_videos("hub", tmp_path / "set", "train")


def test_what_is_no_data_set(tmp_path: Path):
    with pytest.raises(
        ValueError, match="is neither a folder nor, as user/name, a data set of the Hub"
    ):
        find_videos("hub", tmp_path / "nowhere", "train")
    with pytest.raises(
        ValueError, match="--streaming does not go with --dataset folder: only --dataset hub has it"
    ):
        find_videos("folder", tmp_path, "train", streaming=True)
