"""Data sets in their distributors' layouts: nothing is decoded here, so that most clips are empty
files.
"""

import http.server
import io
import json
import tarfile
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, IterableDataset
from datasets.distributed import split_dataset_by_node

from hf_timesformer.data.arguments import DATASETS
from hf_timesformer.data.dataset_factory import available_splits, find_videos, load_videos
from hf_timesformer.data.readers.shard_files import expand_braces
from hf_timesformer.data.shard_source import count_clips
from hf_timesformer.video.encoding import write_video


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def write(path: Path, content) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def rows(dataset: Dataset) -> list[tuple[str, str, str]]:
    """`(video_id, file name, class name)` of every video."""
    names = dataset.features["label"]
    return [
        (row["video_id"], Path(row["video"]).name, names.int2str(row["label"])) for row in dataset
    ]


# folder


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    return touch(
        tmp_path / "clips",
        "train/run/a.mp4",
        "train/run/deep/b.WEBM",
        "train/run/notes.txt",
        "train/run/.hidden.mp4",
        "train/jump/c.avi",
        "val/jump/d.mkv",
        ".cache/x/y.mp4",
    )


def test_folder(clips: Path):
    assert available_splits("folder", clips) == ["train", "validation"]
    train = load_videos("folder", clips, "train")
    assert train.features["label"].names == ["jump", "run"]
    assert rows(train) == [
        ("jump/c.avi", "c.avi", "jump"),
        ("run/a.mp4", "a.mp4", "run"),
        ("run/deep/b.WEBM", "b.WEBM", "run"),
    ]
    assert train[0]["video"] == str(clips / "train/jump/c.avi")
    for alias in ("validation", "val", "dev"):
        validation = load_videos("folder", str(clips), alias)
        assert validation.features["label"].names == ["jump", "run"]  # the classes of all splits
        assert rows(validation) == [("jump/d.mkv", "d.mkv", "jump")]


def test_folder_without_splits(tmp_path: Path):
    touch(tmp_path, "run/a.mp4", "jump/b.mp4")
    assert available_splits("folder", tmp_path) == ["train"]
    assert rows(load_videos("folder", tmp_path, "train")) == [
        ("jump/b.mp4", "b.mp4", "jump"),
        ("run/a.mp4", "a.mp4", "run"),
    ]


@pytest.mark.parametrize(
    ("files", "split", "message"),
    [
        ([], "train", "no class folders in"),
        (["train/run/a.mp4"], "test", r"no test split; found: train"),
        (["train/run/a.mp4"], "tset", "unknown split 'tset'"),
        (
            ["train/run/a.mp4", "train/jump/readme.md"],
            "train",
            r"class folder .*jump has no video clip.*readme.md",
        ),
        (
            ["train/run/a.mp4", "val/run/a.mp4", "valid/run/b.mp4"],
            "train",
            r"several folders .*\(val, valid\)",
        ),
        (["train/run/a.mp4", "test/loose.mp4"], "test", r"no class folders in .*test"),
    ],
)
def test_folder_mistakes(tmp_path: Path, files: list[str], split: str, message: str):
    with pytest.raises(ValueError, match=message):
        load_videos("folder", touch(tmp_path, *files), split)


def test_folder_empty_class_and_absent_folder(tmp_path: Path):
    touch(tmp_path, "train/run/a.mp4")
    (tmp_path / "train/jump").mkdir()
    with pytest.raises(ValueError, match=r"class folder .*jump has no video clip: it is empty"):
        load_videos("folder", tmp_path, "train")
    with pytest.raises(ValueError, match="does not exist"):
        load_videos("folder", tmp_path / "nowhere", "train")


def test_folder_counts_what_it_leaves_out(tmp_path: Path, caplog):
    touch(
        tmp_path,
        "train/run/a.mp4",
        "train/run/b.MOV",
        "train/run/c.xyz",
        "train/run/d.xyz",
        "train/run/notes.txt",
    )
    touch(tmp_path, "train/run/._a.mp4", "train/loose.mp4", "train/jump/a.asf", "eval/jump/b.mp4")
    records = load_videos("folder", tmp_path, "train")
    assert len(records) == 3
    assert "3 of 8 files used; left out: 2 .xyz (c.xyz)" in caplog.text
    for reason in (
        "1 .txt (notes.txt)",
        "1 hidden (._a.mp4)",
        "1 outside the class folders (loose.mp4)",
    ):
        assert reason in caplog.text
    assert "for videos among them add --extensions xyz or rename" in caplog.text
    assert "not used, since it is no split: eval" in caplog.text
    assert len(load_videos("folder", tmp_path, "train", extensions=[".XYZ"])) == 5


def test_folder_says_that_two_clips_may_be_one(tmp_path: Path, caplog):
    assert (
        len(load_videos("folder", touch(tmp_path, "run/a.mp4", "run/a.webm", "run/b.mp4"), "train"))
        == 3
    )
    assert (
        "2 clips differ from another in the suffix alone (a.mp4, a.webm), all are used"
        in caplog.text
    )


@pytest.mark.parametrize(
    "name", ["metadata.csv", "metadata.jsonl", "train/metadata.csv", "data/metadata.csv"]
)
def test_a_video_folder_is_not_read_as_classes(tmp_path: Path, name: str):
    touch(tmp_path, name, "data/clips/a.mp4" if name.startswith("data") else "train/clips/a.mp4")
    with pytest.raises(ValueError, match=rf"VideoFolder.*--dataset csv --data_dir .*{name}"):
        load_videos("folder", tmp_path, "train")


@pytest.mark.parametrize("split", ["data/train/run/a.mp4", "data/run/a.mp4"])
def test_a_folder_of_all_data_is_no_class(tmp_path: Path, split: str):
    records = load_videos("folder", touch(tmp_path, split, "README.md", ".git/config"), "train")
    assert records.features["label"].names == ["run"]


def test_folder_links_that_loop_end(tmp_path: Path, caplog):
    data = touch(
        tmp_path / "clips",
        "train/run/a.mp4",
        "train/run/deep/b.mp4",
        "train/jump/c.mp4",
        "train/jump/d.mp4",
    )
    (data / "train/run/up").symlink_to(data)
    (data / "train/run/deep/here").symlink_to(data / "train/run/deep")
    (data / "train/again").symlink_to(data / "train")
    pool = touch(tmp_path / "pool", "e.mp4")  # an honest link, with a loop behind it
    (pool / "back").symlink_to(data / "train/jump")
    (data / "train/jump/pool").symlink_to(pool)
    (data / "train/jump/gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    records = load_videos("folder", data, "train")
    assert sorted(records["video_id"]) == [
        "jump/c.mp4",
        "jump/d.mp4",
        "jump/pool/e.mp4",
        "run/a.mp4",
        "run/deep/b.mp4",
    ]
    assert "4 link back to a folder above" in caplog.text
    assert "1 broken link (gone.mp4)" in caplog.text


def test_options_of_another_data_set_are_refused(tmp_path: Path):
    with pytest.raises(
        ValueError,
        match="--extensions does not go with --dataset webdataset: only --dataset folder",
    ):
        load_videos("webdataset", tmp_path, "train", extensions=["xyz"])
    with pytest.raises(
        ValueError, match="--colour does not go with --dataset folder: no data set has it"
    ):
        load_videos("folder", tmp_path, "train", colour="red")


@pytest.mark.parametrize("dataset", ["imagenet", ""])
def test_unknown_dataset(tmp_path: Path, dataset: str):
    with pytest.raises(
        ValueError, match=r"choose one of folder, csv, kinetics, ssv2, diving48, .*webdataset"
    ):
        load_videos(dataset, tmp_path, "train")


# kinetics

HEADER = "label,youtube_id,time_start,time_end,split\n"


@pytest.fixture
def kinetics(tmp_path: Path) -> Path:
    write(
        tmp_path / "annotations/train.csv",
        HEADER + "zumba,-abc_DEFGHI,5,15,train\nair drumming,00aaaaaaaaa,115,125,train\n",
    )
    write(
        tmp_path / "annotations/validate.csv",
        HEADER + "archery,00bbbbbbbbb,0,10,val\nzumba,00ccccccccc,7,17,val\n",
    )
    return touch(
        tmp_path,
        "train/-abc_DEFGHI_000005_000015.mp4",
        "train/air_drumming/00aaaaaaaaa_000115_000125.mkv",
    )


def test_kinetics_official_files(kinetics: Path):
    train = load_videos("kinetics", kinetics, "train")
    assert train.features["label"].names == ["air drumming", "archery", "zumba"]
    assert rows(train) == [
        ("-abc_DEFGHI_000005_000015", "-abc_DEFGHI_000005_000015.mp4", "zumba"),
        ("00aaaaaaaaa_000115_000125", "00aaaaaaaaa_000115_000125.mkv", "air drumming"),
    ]
    assert available_splits("kinetics", kinetics) == ["train", "validation"]


def test_kinetics_missing_clips_are_counted_and_listed(kinetics: Path, tmp_path: Path, caplog):
    touch(kinetics, "val/00bbbbbbbbb_000000_000010.mp4")
    missing_file = tmp_path / "out/missing.txt"
    found = find_videos("kinetics", kinetics, "val", missing_file=missing_file)
    assert (found.num_expected, found.num_found, len(found.videos)) == (2, 1, 1)
    assert missing_file.read_text() == "00ccccccccc_000007_000017\n"
    assert "1 of 2 listed videos are not on disk" in caplog.text


def test_kinetics_none_on_disk(kinetics: Path):
    with pytest.raises(
        ValueError,
        match="none of the 2 listed videos is on disk, such as 00bbbbbbbbb_000000_000010",
    ):
        load_videos("kinetics", kinetics, "validation")


def test_kinetics_listed_twice(kinetics: Path, caplog):
    path = kinetics / "annotations/train.csv"
    write(path, path.read_text() + "zumba,-abc_DEFGHI,5,15,train\n")
    assert len(load_videos("kinetics", kinetics, "train")) == 2
    assert "1 videos are listed again" in caplog.text


# Kinetics-600 and 700 have more columns
QUOTED = '"label","youtube_id","time_start","time_end","split","is_cc"\n'


@pytest.mark.parametrize("header", [HEADER, QUOTED])
@pytest.mark.parametrize("start", ["5", "5.0"])
def test_kinetics_as_people_have_it(tmp_path: Path, header: str, start: str, caplog):
    """Files named by the video alone, a quoted header, seconds as a spreadsheet writes them, a test
    split in vain.
    """
    rest = ",train,1" if "is_cc" in header else ",train"
    write(
        tmp_path / "train.csv",
        f'{header}"zumba","aaaaaaaaaaa",{start},15.0{rest}\narchery,bbbbbbbbbbb,0,10{rest}\n',
    )
    write(
        tmp_path / "val.csv",
        f"{header}zumba,bbbbbbbbbbb,20,30{rest}\nzumba,ccccccccccc,20,30{rest}\n",
    )
    write(tmp_path / "test.csv", "youtube_id,time_start,time_end,split\nddddddddddd,0,10,test\n")
    touch(tmp_path, *(f"videos/{letter * 11}.mp4" for letter in "abcd"))
    found = find_videos("kinetics", tmp_path, "train")
    # b...b is the video of two clips, so that a file of that name is neither of them for sure
    assert rows(found.videos) == [("aaaaaaaaaaa_000005_000015", "aaaaaaaaaaa.mp4", "zumba")]
    assert (found.num_expected, found.class_names) == (2, ["archery", "zumba"])
    assert available_splits("kinetics", tmp_path) == ["train", "validation"]
    assert "test.csv has no labels, so the test split is left out" in caplog.text
    with pytest.raises(
        ValueError, match=r"test.csv has no labels, so the test split can be neither trained on"
    ):
        load_videos("kinetics", tmp_path, "test")


def test_kinetics_lists_without_suffix_and_from_windows(tmp_path: Path):
    touch(tmp_path, "train/zumba/a b.mp4", "train/archery/c.webm", "train/archery/v_1.5.mkv")
    lines = [
        "train/zumba/a b 1",
        "train\\archery\\c.webm 0",
        "archery/v_1.5 0",
        '"train/zumba/a b.mp4" 1',
        "gone 0",
    ]
    write(tmp_path / "train.csv", "\n".join(lines))
    write(tmp_path / "labels.json", ["archery", "zumba"])
    write(tmp_path / "test.csv", "train/zumba/a\nb\n")
    found = find_videos("kinetics", tmp_path, "train")
    assert [row[1:] for row in rows(found.videos)] == [
        ("a b.mp4", "zumba"),
        ("c.webm", "archery"),
        ("v_1.5.mkv", "archery"),
        ("a b.mp4", "zumba"),
    ]
    assert found.num_expected == 5
    assert available_splits("kinetics", tmp_path) == ["train"]


def test_kinetics_numbers_that_begin_at_1_are_refused(tmp_path: Path):
    write(touch(tmp_path, "a.mp4", "b.mp4") / "train.csv", "a.mp4 1\nb.mp4 2\n")
    with pytest.raises(ValueError, match=r"they begin at 1: take 1 from each"):
        load_videos("kinetics", tmp_path, "train")


@pytest.mark.parametrize("original", ["broken", "whole"])
def test_kinetics_replacements_stand_in_for_broken_originals(tmp_path: Path, original: str, caplog):
    stem = "aaaaaaaaaaa_000005_000015"
    write(tmp_path / "train.csv", HEADER + "zumba,aaaaaaaaaaa,5,15,train\n")
    frames = np.zeros((2, 16, 16, 3), np.uint8)
    touch(tmp_path, f"train/{stem}.mp4", f"replacement_for_corrupted_k400/{stem}.mp4")
    write_video(tmp_path / f"replacement_for_corrupted_k400/{stem}.mp4", frames)
    if original == "whole":
        write_video(tmp_path / f"train/{stem}.mp4", frames)
    folder = "train" if original == "whole" else "replacement_for_corrupted_k400"
    assert load_videos("kinetics", tmp_path, "train")[0]["video"] == str(
        tmp_path / folder / f"{stem}.mp4"
    )
    assert ("1 clips that cannot be read are replaced, such as" in caplog.text) == (
        original == "broken"
    )


@pytest.mark.parametrize("separator", [" ", ",", ", ", "\t"])
@pytest.mark.parametrize("absolute", [False, True])
def test_kinetics_path_lists(tmp_path: Path, separator: str, absolute: bool):
    data = touch(
        tmp_path / "k400", "train/air drumming/a,1.mp4", "train/zumba/b 2.mp4", "val/zumba/c.mp4"
    )
    prefix = f"{data}/" if absolute else ""
    write(
        data / "train.csv",
        f"{prefix}train/zumba/b 2.mp4{separator}1\n{prefix}train/air drumming/a,1.mp4{separator}0\n",
    )
    write(
        data / "val.csv",
        f"{prefix}val/zumba/c.mp4{separator}1\n\n{prefix}val/zumba/gone.mp4{separator}1\n",
    )
    train = load_videos("kinetics", data, "train")
    assert train.features["label"].names == ["air drumming", "zumba"]  # from the folders
    assert [row[1:] for row in rows(train)] == [("b 2.mp4", "zumba"), ("a,1.mp4", "air drumming")]
    found = find_videos("kinetics", data, "validation")
    assert (found.num_expected, found.num_found) == (2, 1)
    write(data / "labels.json", {"drum": 0, "dance": 1, "third": 2})
    assert load_videos("kinetics", data, "val").features["label"].names == [
        "drum",
        "dance",
        "third",
    ]


def test_kinetics_lists_of_flat_clips_number_the_classes(tmp_path: Path):
    write(touch(tmp_path, "a.mp4", "b.mp4") / "train.csv", "a.mp4 1\nb.mp4 0\n")
    assert rows(load_videos("kinetics", tmp_path, "train")) == [
        ("a.mp4", "a.mp4", "class 1"),
        ("b.mp4", "b.mp4", "class 0"),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (HEADER + "zumba,abc,five,15,train\n", "line 2: need a label and whole seconds"),
        ("a.mp4 zumba\n", "line 1: expected 'path label' with a class number, got 'a.mp4 zumba'"),
    ],
)
def test_kinetics_bad_lists(tmp_path: Path, content: str, message: str):
    write(tmp_path / "train.csv", content)
    with pytest.raises(ValueError, match=message):
        load_videos("kinetics", tmp_path, "train")
    with pytest.raises(
        ValueError, match=r"no list of its test split \(looked for test.csv.*train.csv"
    ):
        load_videos("kinetics", tmp_path, "test")


# Something-Something-V2 and Diving-48


@pytest.mark.parametrize("prefix", ["", "something-something-v2-"])
@pytest.mark.parametrize("folder", ["", "labels/"])
def test_ssv2(tmp_path: Path, prefix: str, folder: str):
    write(
        tmp_path / f"{folder}{prefix}labels.json",
        {"Pushing something off of something": "1", "Holding something": "0"},
    )
    entries = [
        {
            "id": "78687",
            "label": "pushing a cup off of a table",
            "template": "Pushing [something] off of [something]",
        },
        {"id": "4", "label": "holding a cup", "template": "Holding [something]"},
        {"id": "5", "label": "holding a hat", "template": "Holding [something]"},
    ]
    write(tmp_path / f"{folder}{prefix}validation.json", entries)
    touch(tmp_path, "20bn-something-something-v2/4.webm", "20bn-something-something-v2/78687.webm")
    found = find_videos("ssv2", tmp_path, "validation")
    assert found.class_names == ["Holding something", "Pushing something off of something"]
    assert rows(found.videos) == [
        ("78687", "78687.webm", "Pushing something off of something"),
        ("4", "4.webm", "Holding something"),
    ]
    assert (found.num_expected, found.num_found) == (3, 2)
    assert available_splits("ssv2", tmp_path) == ["validation"]
    with pytest.raises(ValueError, match="has no labels here"):
        load_videos("ssv2", tmp_path, "test")
    with pytest.raises(
        ValueError, match=r"found none of train.json, something-something-v2-train.json"
    ):
        load_videos("ssv2", tmp_path, "train")


def test_ssv2_test_answers(tmp_path: Path):
    write(
        tmp_path / "labels/labels.json",
        {"Holding something": "0", "Pushing something; slowly": "1"},
    )
    write(tmp_path / "labels/test.json", [{"id": "7"}, {"id": "8"}])
    write(
        tmp_path / "labels/test-answers.csv", "8;Holding something\n7;Pushing something; slowly\n"
    )
    touch(tmp_path, "20bn-something-something-v2/7.webm", "20bn-something-something-v2/8.webm")
    assert available_splits("ssv2", tmp_path) == ["test"]
    assert rows(load_videos("ssv2", tmp_path, "test")) == [
        ("8", "8.webm", "Holding something"),
        ("7", "7.webm", "Pushing something; slowly"),
    ]
    write(tmp_path / "labels/test-answers.csv", "8,Holding something\n")
    with pytest.raises(ValueError, match=r"test-answers.csv, line 1: expected 'id;label'"):
        load_videos("ssv2", tmp_path, "test")


def test_two_files_of_one_name(tmp_path: Path, caplog):
    """The first that can be read is taken, and said; a link to the same file is no second one."""
    write(tmp_path / "labels.json", ["Holding something"])
    write(
        tmp_path / "train.json",
        [{"id": number, "template": "Holding something"} for number in ("1", "2", "3")],
    )
    touch(tmp_path, "a/1.webm", "a/2.webm", "b/1.mp4", "a/3.webm")
    write_video(tmp_path / "b/1.mp4", np.zeros((2, 16, 16, 3), np.uint8))
    (tmp_path / "b/2.webm").symlink_to(tmp_path / "a/2.webm")
    assert [row[1] for row in rows(load_videos("ssv2", tmp_path, "train"))] == [
        "1.mp4",
        "2.webm",
        "3.webm",
    ]
    assert (
        "1 clips have several files of their name; the first that can be read is taken, such as"
        in caplog.text
    )
    assert "b/1.mp4, not" in caplog.text


@pytest.mark.parametrize(
    ("labels", "entries", "message"),
    [
        ({"A": "0", "B": "2"}, [], "no class has number 1"),
        (
            {"A": "0"},
            [{"id": "1", "template": "[B]"}],
            "video 1 has the template 'B', not in labels.json",
        ),
        ({"A": "0"}, [{"id": "1"}], "has no field 'template'"),
        ({"A": "0"}, {"id": "1"}, "should hold a JSON list, not dict"),
        ("{", [], "labels.json is no readable JSON"),
    ],
)
def test_ssv2_bad_annotations(tmp_path: Path, labels, entries, message: str):
    write(tmp_path / "labels.json", labels)
    write(tmp_path / "train.json", entries)
    with pytest.raises(ValueError, match=message):
        load_videos("ssv2", tmp_path, "train")


def test_diving48(tmp_path: Path):
    write(
        tmp_path / "Diving48_vocab.json",
        [["Back", "15som", "05Twis", "FREE"], ["Forward", "Dive", "NoTwis", "PIKE"]],
    )
    entries = [
        {"vid_name": "_8Vy3dlHg2w_00001", "label": 1, "start_frame": 0, "end_frame": 99},
        {"vid_name": "x", "label": 0},
    ]
    write(tmp_path / "Diving48_V2_test.json", entries)
    touch(tmp_path, "rgb/_8Vy3dlHg2w_00001.mp4", "rgb/x.mp4")
    assert rows(load_videos("diving48", tmp_path, "test")) == [
        ("_8Vy3dlHg2w_00001", "_8Vy3dlHg2w_00001.mp4", "Forward Dive NoTwis PIKE"),
        ("x", "x.mp4", "Back 15som 05Twis FREE"),
    ]
    assert available_splits("diving48", tmp_path) == ["test"]
    with pytest.raises(ValueError, match="no validation split"):
        load_videos("diving48", tmp_path, "validation")
    write(tmp_path / "Diving48_V2_test.json", [{"vid_name": "x", "label": 2}])
    with pytest.raises(ValueError, match=r"video x has label 2, not 0\.\.1"):
        load_videos("diving48", tmp_path, "test")


# UCF101 and HMDB51


@pytest.fixture
def ucf101(tmp_path: Path) -> Path:
    write(
        tmp_path / "ucfTrainTestlist/classInd.txt",
        "1 ApplyEyeMakeup\r\n2 Archery\r\n3 HandstandPushups\r\n",
    )
    for fold, (train, test) in {1: ("g08", "g01"), 2: ("g01", "g08")}.items():
        numbered = f"Archery/v_Archery_{train}_c01.avi 2\r\nHandstandPushups/v_HandStandPushups_{train}_c02.avi 3\r\n"
        write(tmp_path / f"ucfTrainTestlist/trainlist0{fold}.txt", numbered)
        bare = f"Archery/v_Archery_{test}_c01.avi\r\nApplyEyeMakeup/v_ApplyEyeMakeup_{test}_c01.avi\r\n"
        write(tmp_path / f"ucfTrainTestlist/testlist0{fold}.txt", bare)
    touch(
        tmp_path, "UCF-101/Archery/v_Archery_g08_c01.avi", "UCF-101/Archery/v_Archery_g01_c01.avi"
    )
    return touch(tmp_path, "UCF-101/HandstandPushups/v_HandStandPushups_g08_c02.mp4")


def test_ucf101(ucf101: Path):
    assert available_splits("ucf101", ucf101) == ["train", "test"]
    train = find_videos("ucf101", ucf101, "train")
    assert train.class_names == ["ApplyEyeMakeup", "Archery", "HandstandPushups"]
    assert rows(train.videos) == [
        ("v_Archery_g08_c01", "v_Archery_g08_c01.avi", "Archery"),
        ("v_HandStandPushups_g08_c02", "v_HandStandPushups_g08_c02.mp4", "HandstandPushups"),
    ]
    test = find_videos("ucf101", ucf101, "test")
    assert rows(test.videos) == [("v_Archery_g01_c01", "v_Archery_g01_c01.avi", "Archery")]
    assert (test.num_expected, test.num_found) == (2, 1)
    assert rows(load_videos("ucf101", ucf101, "train", fold=2)) == rows(test.videos)


@pytest.mark.parametrize(
    ("file", "content", "split", "fold", "message"),
    [
        ("", "", "validation", 1, "UCF101 has no validation split"),
        ("", "", "train", 4, "choose --fold 1, 2 or 3, not 4"),
        ("", "", "train", 3, "found none of trainlist03.txt"),
        (
            "trainlist01.txt",
            "Archery/a.avi 3\n",
            "train",
            1,
            r"Archery/a.avi 3 does not fit classInd.txt",
        ),
        (
            "testlist01.txt",
            "Fencing/a.avi\n",
            "test",
            1,
            r"Fencing/a.avi  does not fit classInd.txt",
        ),
        (
            "testlist01.txt",
            "a.avi\n",
            "test",
            1,
            r"testlist01.txt, line 1: expected '<class>/<video>'",
        ),
        ("classInd.txt", "1 A\n3 B\n", "train", 1, "classInd.txt .* no class has number 1"),
    ],
)
def test_ucf101_mistakes(
    ucf101: Path, file: str, content: str, split: str, fold: int, message: str
):
    if file:
        write(ucf101 / "ucfTrainTestlist" / file, content)
    with pytest.raises(ValueError, match=message):
        load_videos("ucf101", ucf101, split, fold=fold)


def test_hmdb51(tmp_path: Path):
    """The same name in two classes is two videos; 0 is in neither split."""
    lists = tmp_path / "testTrainMulti_7030_splits"
    write(lists / "run_test_split1.txt", "a_1.avi 1 \nb.avi 2 \nc #2 (x).avi 0 \n")
    write(lists / "brush_hair_test_split1.txt", "a_1.avi 2 \nd.avi 1 \n")
    write(lists / "run_test_split2.txt", "c #2 (x).avi 1 \n")
    touch(
        tmp_path,
        *(f"hmdb51_org/{name}" for name in ("run/a_1.avi", "run/b.avi", "run/c #2 (x).avi")),
    )
    touch(tmp_path, "hmdb51_org/brush_hair/a_1.avi")
    assert available_splits("hmdb51", tmp_path) == ["train", "test"]
    train = find_videos("hmdb51", tmp_path, "train")
    assert (train.num_expected, rows(train.videos)) == (2, [("run/a_1", "a_1.avi", "run")])
    assert train.videos[0]["video"] == str(tmp_path / "hmdb51_org/run/a_1.avi")
    test = load_videos("hmdb51", tmp_path, "test")
    assert rows(test) == [("brush_hair/a_1", "a_1.avi", "brush_hair"), ("run/b", "b.avi", "run")]
    assert rows(load_videos("hmdb51", tmp_path, "train", fold=2)) == [
        ("run/c #2 (x)", "c #2 (x).avi", "run")
    ]
    with pytest.raises(ValueError, match=r"found no <class>_test_split3.txt"):
        load_videos("hmdb51", tmp_path, "train", fold=3)
    write(lists / "run_test_split1.txt", "a_1.avi 3\n")
    with pytest.raises(
        ValueError, match=r"run_test_split1.txt, line 1: expected a video and 0, 1 or 2"
    ):
        load_videos("hmdb51", tmp_path, "train")


# mmaction2, and folders of frames


def frames(folder: Path, count: int, pattern: str = "img_{:05d}.jpg") -> None:
    touch(folder, *(pattern.format(number + 1) for number in range(count)))


def test_mmaction2_lists_of_videos(tmp_path: Path):
    write(tmp_path / "k_train_list_videos.txt", "run/a 1.mp4 1\njump/b.mp4 0\n\nrun/gone.mp4 1\n")
    write(tmp_path / "annotations/k_val_list_videos.txt", "jump/c.mp4 0\n")
    touch(tmp_path / "videos", "run/a 1.mp4", "jump/b.mp4", "jump/c.mp4")
    assert available_splits("mmaction2", tmp_path) == ["train", "validation"]
    found = find_videos("mmaction2", tmp_path, "train")
    assert (found.num_expected, found.class_names) == (3, ["jump", "run"])
    assert [row[1:] for row in rows(found.videos)] == [("a 1.mp4", "run"), ("b.mp4", "jump")]
    write(tmp_path / "label_map.txt", "hop\nsprint\n")
    assert find_videos("mmaction2", tmp_path, "val").class_names == ["hop", "sprint"]
    with pytest.raises(ValueError, match=r"has no list of its test split, such as test.txt"):
        load_videos("mmaction2", tmp_path, "test")


def test_mmaction2_lists_of_frames_and_their_folds(tmp_path: Path, caplog):
    for fold, name in ((1, "a"), (2, "b")):
        write(tmp_path / f"ucf101_train_split_{fold}_rawframes.txt", f"run/{name} 3 0\n")
    frames(tmp_path / "rawframes/run/a", 3)
    frames(tmp_path / "rawframes/run/b", 2, "{:03d}.png")
    assert load_videos("mmaction2", tmp_path, "train")[0]["video"] == str(
        tmp_path / "rawframes/run/a"
    )
    assert "do not hold as many frames as listed" not in caplog.text
    assert load_videos("mmaction2", tmp_path, "train", fold=2)[0]["video"] == str(
        tmp_path / "rawframes/run/b"
    )
    assert (
        "1 folders do not hold as many frames as listed, such as run/b (2 pictures, 3 on the list)"
        in caplog.text
    )


@pytest.mark.parametrize("kind", ["videos", "rawframes"])
def test_mmaction2_lists_with_several_classes(tmp_path: Path, kind: str):
    count = " 3" if kind == "rawframes" else ""
    names = ("a", "b") if kind == "rawframes" else ("a.mp4", "b.mp4")
    write(tmp_path / f"train_{kind}.txt", f"{names[0]}{count} 2 0 2\n{names[1]}{count} 1\n")
    for name in ("a", "b"):
        frames(tmp_path / "rawframes" / name, 3) if kind == "rawframes" else touch(
            tmp_path, f"{name}.mp4"
        )
    found = find_videos("mmaction2", tmp_path, "train")
    assert found.problem_type == "multi_label_classification"
    assert found.videos["labels"][:] == [[0, 2], [1]]


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ({"train.txt": "a.mp4\n"}, r"train.txt, line 1: expected a path and class numbers"),
        (
            {"train.txt": "a 3\n"},
            r"train.txt, line 1: a folder of frames needs their number and a class",
        ),
        ({"train.txt": "a 0 163 1\n"}, r"lists with offsets are not read"),
        ({"train.txt": "a.mp4 1\nb.mp4 2\n"}, r"they begin at 1: take 1 from each"),
        (
            {"train.txt": "a.mp4 0\n", "x/train.txt": "a.mp4 0\n"},
            r"both list the train split: keep one",
        ),
    ],
)
def test_mmaction2_mistakes(tmp_path: Path, lists: dict[str, str], message: str):
    for name, content in lists.items():
        write(tmp_path / name, content)
    with pytest.raises(ValueError, match=message):
        load_videos("mmaction2", touch(tmp_path, "a.mp4", "b.mp4"), "train")


def test_mmaction2_of_videos_and_frames_the_videos_are_taken(tmp_path: Path, caplog):
    write(tmp_path / "train_rawframes.txt", "a 3 0\n")
    write(tmp_path / "train_videos.txt", "a.mp4 0\n")
    assert rows(load_videos("mmaction2", touch(tmp_path, "a.mp4"), "train")) == [
        ("a.mp4", "a.mp4", "class 0")
    ]
    assert "list the train split: the videos are taken" in caplog.text


def test_a_folder_of_numbered_pictures_is_a_clip_of_its_class(tmp_path: Path, caplog):
    frames(tmp_path / "run/a", 3)
    frames(tmp_path / "run/b.c", 4, "frame_{:04d}.webp")
    touch(tmp_path, "run/a/notes.txt", "jump/d.mp4", "jump/cover1.jpg", "jump/cover2.jpg")
    caplog.set_level("INFO")
    assert rows(load_videos("folder", tmp_path, "train")) == [
        ("jump/d.mp4", "d.mp4", "jump"),
        ("run/a", "a", "run"),
        ("run/b.c", "b.c", "run"),
    ]
    assert "2 folders of numbered pictures are read as videos" in caplog.text
    assert "8 of 11 files used; left out: 2 .jpg (cover1.jpg), 1 .txt (notes.txt)" in caplog.text
    frames(tmp_path / "walk", 3)
    with pytest.raises(
        ValueError, match=r"walk has no video clip: .*3 \.jpg.*from a folder of their own"
    ):
        load_videos("folder", tmp_path, "train")


def test_ssv2_frames(tmp_path: Path):
    write(tmp_path / "labels.json", ["Holding something"])
    write(
        tmp_path / "train.json",
        [{"id": name, "template": "Holding something"} for name in ("7", "8")],
    )
    frames(tmp_path / "frames/7", 2, "{:06d}.jpg")
    found = find_videos("ssv2", tmp_path, "train")
    assert (found.num_expected, rows(found.videos)) == (2, [("7", "7", "Holding something")])
    assert found.videos[0]["video"] == str(tmp_path / "frames/7")


# webdataset


def write_shard(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def make_shards(
    folder: Path, *, sizes=(3, 1, 2), split: str = "train", labels: bool = True
) -> Path:
    """Shards whose clip `s-n` has the bytes `clip s n` and the class `n % 2`."""
    for shard, size in enumerate(sizes):
        files = {}
        for number in range(size):
            files[f"{shard}-{number}.mp4"] = f"clip {shard} {number}".encode()
            files[f"{shard}-{number}.cls"] = b"%d" % (number % 2)
        write_shard(folder / f"{split}-{shard:04d}.tar", files)
    if labels:
        write(folder / "labels.json", ["even", "odd"])
    return folder


def contents(dataset) -> list[str]:
    return [record["video"].decode() for record in dataset]


ALL = ["clip 0 0", "clip 0 1", "clip 0 2", "clip 1 0", "clip 2 0", "clip 2 1"]


@pytest.mark.parametrize(
    "pattern",
    ["", "/train-*.tar", "/{split}-{0000..0002}.tar", "/train-000{0,1,2}.tar", "/*-000?.tar"],
)
def test_webdataset_local_names(tmp_path: Path, pattern: str):
    found = find_videos("webdataset", f"{make_shards(tmp_path)}{pattern}", "train")
    assert isinstance(found.videos, IterableDataset)
    assert found.videos.num_shards == 3
    assert contents(found.videos) == ALL
    assert found.class_names == ["even", "odd"]
    assert (found.num_expected, found.num_found) == (None, None)
    assert [record["video_id"] for record in found.videos][:2] == [
        "train-0000/0-0",
        "train-0000/0-1",
    ]
    assert [record["label"] for record in found.videos] == [0, 1, 0, 0, 0, 1]


def test_webdataset_labels_of_every_kind(tmp_path: Path):
    files = {}
    descriptions = [{"label": 1}, {"label": "odd"}, {"label": 0, "video_id": "run/x.mp4"}]
    for key, description in enumerate(descriptions):
        files |= {f"sub/{key}.json": json.dumps(description).encode(), f"sub/{key}.webm": b"v"}
    files |= {
        "sub/3.mkv": b"v",
        "sub/3.cls": b"odd\n",
        "sub/4.seg.mp4": b"v",
        "sub/4.cls": b"0",
        "lonely.json": b"{}",
    }
    write_shard(tmp_path / "test/a.tar", files)
    write(tmp_path / "labels.json", ["even", "odd"])
    assert available_splits("webdataset", tmp_path) == ["test"]
    records = list(load_videos("webdataset", tmp_path, "test"))
    assert [record["label"] for record in records] == [1, 1, 0, 1, 0]
    assert [record["video_id"] for record in records] == [
        "a/sub/0",
        "a/sub/1",
        "run/x.mp4",
        "a/sub/3",
        "a/sub/4",
    ]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"a.mp4": b"v", "a.cls": b"2"},
            "sample a of .*s.tar has label 2, but labels.json names only 2",
        ),
        ({"a.mp4": b"v", "a.cls": b"flip"}, "sample a of .*s.tar has label 'flip'"),
        ({"a.mp4": b"v"}, "sample a of .*s.tar has label None"),
        ({"a.mp4": b"v", "a.json": b"{"}, "the .json of a of .*s.tar is no readable JSON"),
    ],
)
def test_webdataset_bad_samples(tmp_path: Path, files: dict[str, bytes], message: str):
    write(tmp_path / "labels.json", ["even", "odd"])
    shard = write_shard(tmp_path / "s.tar", files)
    with pytest.raises(ValueError, match=message):
        list(load_videos("webdataset", shard, "train"))


@pytest.mark.parametrize("keep", [700, 1024, 3000])
def test_webdataset_cut_shard_is_named(tmp_path: Path, keep: int):
    make_shards(tmp_path, sizes=(3,))
    shard = tmp_path / "train-0000.tar"
    index = {"splits": {"train": {"shards": {shard.name: 3}, "videos": 3, "expected": 4}}}
    write(tmp_path / "shards.json", index)
    found = find_videos("webdataset", tmp_path, "train")
    assert (found.num_expected, found.num_found) == (4, 3)
    assert len(contents(found.videos)) == 3
    shard.write_bytes(shard.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"train-0000\.tar"):
        list(load_videos("webdataset", tmp_path, "train"))


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("/train-{0000..0004}.tar", r"no shard at .*train-0003.tar \(2 of 5 are absent\)"),
        ("/test-*.tar", "no shard at"),
        ("/nowhere", "does not exist"),
        ("/train-{3..1}.tar", r"the range \{3\.\.1\} is empty"),
    ],
)
def test_webdataset_mistakes(tmp_path: Path, location: str, message: str):
    make_shards(tmp_path)
    with pytest.raises(ValueError, match=message):
        load_videos("webdataset", f"{tmp_path}{location}", "train")
    with pytest.raises(ValueError, match=r"no shards test\*.tar or test/\*.tar; found: train"):
        load_videos("webdataset", tmp_path, "test")


def test_webdataset_keys_with_dots(tmp_path: Path):
    """Clips whose names share the part before the first dot are clips of their own, each with its
    own label.
    """
    files = {}
    for number, label in ((5, "odd"), (6, "even"), (7, "odd")):
        files |= {f"v_1.{number}.mp4": b"clip %d" % number, f"v_1.{number}.cls": label.encode()}
    write(tmp_path / "labels.json", ["even", "odd"])
    shard = write_shard(tmp_path / "train-0.tar", files | {"w.2.webm": b"last", "w.2.cls": b"even"})
    found = [
        (row["video_id"], row["video"], row["label"])
        for row in load_videos("webdataset", tmp_path, "train")
    ]
    assert found == [
        ("train-0/v_1.5", b"clip 5", 1),
        ("train-0/v_1.6", b"clip 6", 0),
        ("train-0/v_1.7", b"clip 7", 1),
        ("train-0/w.2", b"last", 0),
    ]
    assert count_clips([str(shard)]) == [4]
    write_shard(
        tmp_path / "train-0.tar", {"a.left.mp4": b"v", "a.right.mp4": b"v", "a.cls": b"odd"}
    )
    with pytest.raises(
        ValueError, match=r"'a' of .* holds 2 videos .*a\.left\.mp4 has no label of its own"
    ):
        list(load_videos("webdataset", tmp_path, "train"))


def test_webdataset_files_of_a_key_that_lie_apart(tmp_path: Path):
    write(tmp_path / "labels.json", ["even", "odd"])
    write_shard(
        tmp_path / "train-0.tar", {"a.mp4": b"v", "b.mp4": b"v", "a.cls": b"odd", "b.cls": b"odd"}
    )
    with pytest.raises(
        ValueError, match=r"a of .* has label None: it needs a \.cls.*tar --sort=name"
    ):
        list(load_videos("webdataset", tmp_path, "train"))


@pytest.mark.parametrize("location", ["", "/{split}-{0..1}.tar"])
def test_webdataset_classes_are_named_by_the_labels(tmp_path: Path, location: str, caplog):
    """Without labels.json; those of all splits together, so that both number them alike."""
    write_shard(
        tmp_path / "train-0.tar",
        {"a.mp4": b"v", "a.cls": b"run", "b.mp4": b"v", "b.json": b'{"label": "hop"}'},
    )
    write_shard(tmp_path / "train-1.tar", {"a.mp4": b"v", "a.cls": b"walk\n"})
    for number in range(2):
        write_shard(tmp_path / f"validation-{number}.tar", {"a.mp4": b"v", "a.cls": b"crawl"})
    for split, labels in (("train", [2, 1, 3]), ("validation", [0, 0])):
        found = find_videos("webdataset", f"{tmp_path}{location}", split)
        assert found.class_names == ["crawl", "hop", "run", "walk"]
        assert [row["label"] for row in found.videos] == labels
    assert "the 4 classes are named by the labels of 4 shards" in caplog.text


@pytest.mark.parametrize(
    ("column", "values", "names", "labels", "counts"),
    [
        ("labels", [["b", "a"], [], ["b"]], ["a", "b"], [[1, 0], [], [1]], [1, 2]),
        ("target", [0.5, -1, 7], ["target"], [0.5, -1.0, 7.0], None),
    ],
)
def test_webdataset_without_a_manifest_of_several_labels_or_a_number(
    tmp_path: Path, column: str, values: list, names: list, labels: list, counts: list | None
):
    """What the first sample's `.json` tells is the kind of all."""
    files = {}
    for number, value in enumerate(values):
        text = json.dumps({column: value}).encode()
        files |= {f"{number}.mp4": b"v", f"{number}.json": text}
    shard = write_shard(tmp_path / "train-0.tar", files)
    found = find_videos("webdataset", tmp_path, "train")
    assert found.class_names == names
    assert [row[column] for row in found.videos] == found.describe()[column][:] == labels
    assert count_clips([str(shard)]) == [3]
    if counts is None:
        with pytest.raises(ValueError, match="numbers have no classes to count"):
            found.count_classes()
    else:
        assert found.count_classes().tolist() == counts


def test_webdataset_needs_class_names(tmp_path: Path):
    make_shards(tmp_path, labels=False)
    with pytest.raises(
        ValueError, match=r"no labels\.json in .* the shards hold numbers, such as \d: write"
    ):
        load_videos("webdataset", tmp_path, "train")
    assert contents(load_videos("webdataset", tmp_path, "train", class_names=["a", "b"])) == ALL


def test_expand_braces():
    assert expand_braces("a-{08..11}.{x,y}") == [
        f"a-{number}.{end}" for number in ("08", "09", "10", "11") for end in "xy"
    ]
    assert expand_braces("plain.tar") == ["plain.tar"]


@pytest.mark.parametrize("stop", range(7))
def test_webdataset_state_dict_resumes_at_the_next_clip(tmp_path: Path, stop: int):
    make_shards(tmp_path)
    first = load_videos("webdataset", tmp_path, "train")
    iterator = iter(first)
    before = [next(iterator)["video"].decode() for _ in range(stop)]
    second = load_videos("webdataset", tmp_path, "train")
    second.load_state_dict(first.state_dict())
    assert before + contents(second) == ALL


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_webdataset_split_over_ranks_and_workers(tmp_path: Path, world: int, num_workers: int):
    make_shards(tmp_path, sizes=(3, 1, 2, 1, 4, 2))
    whole = contents(load_videos("webdataset", tmp_path, "train"))
    seen = []
    for rank in range(world):
        part = split_dataset_by_node(load_videos("webdataset", tmp_path, "train"), rank, world)
        loader = torch.utils.data.DataLoader(part, batch_size=None, num_workers=num_workers)
        seen += contents(loader)
    assert sorted(seen) == sorted(whole)


@pytest.fixture
def web_server(tmp_path: Path):
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_webdataset_over_http(tmp_path: Path, web_server: str):
    make_shards(tmp_path)
    assert (
        contents(load_videos("webdataset", f"{web_server}/{{split}}-{{0000..0002}}.tar", "train"))
        == ALL
    )
    with pytest.raises(ValueError, match="http cannot list files"):
        load_videos("webdataset", web_server, "train")
    index = {
        "splits": {
            "train": {
                "shards": {f"train-{n:04d}.tar": c for n, c in enumerate((3, 1, 2))},
                "expected": 6,
            }
        }
    }
    write(tmp_path / "shards.json", index)
    found = find_videos("webdataset", f"{web_server}/", "train")
    assert (contents(found.videos), found.num_found) == (ALL, 6)
    with pytest.raises(ValueError, match=r"cannot read shard http.*train-0009\.tar"):
        list(load_videos("webdataset", f"{web_server}/train-{{0009..0009}}.tar", "train"))


def test_every_dataset_has_the_same_columns(clips: Path, kinetics: Path, tmp_path: Path):
    make_shards(tmp_path / "shards")
    for name, folder in (
        ("folder", clips),
        ("kinetics", kinetics),
        ("webdataset", tmp_path / "shards"),
    ):
        assert name in DATASETS
        assert list(load_videos(name, folder, "train").features) == ["video_id", "video", "label"]
