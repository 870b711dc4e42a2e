"""Tables of clips: every form they come in, every column, and a line or an error for whatever makes
no sense.
"""

import json
import logging
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_timesformer.data.readers.table import read_table, table_splits
from hf_timesformer.data.targets import MULTI_LABEL, REGRESSION, SINGLE_LABEL


NAMES = ("a.mp4", "b.mp4", "sub dir/c, d.mp4", 'sub dir/"e".mp4')


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Files that are there; nothing here decodes them."""
    folder = tmp_path_factory.mktemp("clips")
    for name in NAMES:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    return folder


@pytest.fixture
def write(folder):
    """A function that writes a table into the folder of clips; it is gone after the test."""
    written = []

    def write_table(content: str | bytes, name: str = "clips.csv") -> Path:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        written.append(path)
        return path

    yield write_table
    for path in written:
        path.unlink(missing_ok=True)


def rows_of(records) -> list[tuple[str, str | list | float]]:
    """Names and labels in words."""

    def in_words(label):
        if isinstance(label, list):
            return [records.class_names[number] for number in label]
        return records.class_names[label] if isinstance(label, int) else label

    return [
        (video_id, in_words(label)) for video_id, label in zip(records.video_ids, records.labels)
    ]


QUOTED = 'sub dir/"e".mp4'
EXPECTED = [
    ("a.mp4", "run fast"),
    ("b.mp4", "jump"),
    ("sub dir/c, d.mp4", "jump"),
    (QUOTED, "run fast"),
]
COMMAS = 'path,label\na.mp4,run fast\n"b.mp4", jump\n"sub dir/c, d.mp4",jump\n"sub dir/""e"".mp4",run fast\n'
TABS = 'Video\tLabel\na.mp4\trun fast\nb.mp4\tjump\nsub dir/c, d.mp4\tjump\n"sub dir/""e"".mp4"\trun fast\n'


def parquet(rows: list[dict]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("clips.csv", COMMAS),
        ("clips.csv", "\ufeff" + COMMAS.replace("\n", "\r\n")),
        ("clips.tsv", TABS),
        ("clips.csv", TABS),
        ("clips.csv", TABS.replace("\t", ";")),
        ("clips.csv", COMMAS.replace("sub dir/", "sub dir\\").replace("path", "file_name")),
        (
            "clips.jsonl",
            "".join(json.dumps({"video": path, "label": label}) + "\n" for path, label in EXPECTED),
        ),
        (
            "clips.json",
            json.dumps([{"path": path, "label": label, "x": 1} for path, label in EXPECTED]),
        ),
        ("clips.parquet", parquet([{"path": path, "label": label} for path, label in EXPECTED])),
        # without a header
        ("clips.csv", COMMAS.partition("\n")[2]),
        (
            "clips.txt",
            'a.mp4 run fast\nb.mp4\tjump\nsub dir/c, d.mp4 jump\nsub dir/"e".mp4, run fast\n',
        ),
    ],
)
def test_every_form_of_a_table(folder, write, name: str, content):
    records = read_table(write(content, name), "train")
    assert rows_of(records) == EXPECTED
    assert records.class_names == ["jump", "run fast"]
    assert [Path(video) for video in records.videos] == [folder / name for name in NAMES]
    assert (records.missing, records.problem_type) == ([], SINGLE_LABEL)


def test_class_numbers(folder, write):
    table = write("a.mp4 0\nsub dir/c, d.mp4 1\nb.mp4 0\n", "clips.txt")
    assert rows_of(read_table(table, "train")) == [
        ("a.mp4", "class 0"),
        (NAMES[2], "class 1"),
        ("b.mp4", "class 0"),
    ]
    write('["walk", "swim"]', "labels.json")
    assert [label for _, label in rows_of(read_table(table, "train"))] == ["walk", "swim", "walk"]
    # what it makes of integers with gaps
    pandas = write("path,label\na.mp4,1.0\nb.mp4,0.0\n", "pandas.csv")
    assert [label for _, label in rows_of(read_table(pandas, "train"))] == ["swim", "walk"]


def test_folders_name_the_class_numbers(tmp_path):
    for name in ("walk/a.mp4", "swim/b.mp4"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    (tmp_path / "train.csv").write_text("path,label\nwalk/a.mp4,1\nswim/b.mp4,0\n")
    assert rows_of(read_table(tmp_path, "train")) == [
        ("walk/a.mp4", "walk"),
        ("swim/b.mp4", "swim"),
    ]


def test_order_of_the_classes_from_a_file(folder, write):
    write("run fast\nfly\njump\n", "classes.txt")
    assert read_table(write(COMMAS), "train").class_names == ["run fast", "fly", "jump"]


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["run|jump", "", " jump | jump"], [["jump", "run"], [], ["jump"]]),
        (["1|0", "0", ""], [[0, 1], [0], []]),
    ],
)
def test_several_labels(folder, write, cells: list[str], expected: list[list]):
    lines = "".join(
        f"{path},{labels}\n" for path, labels in zip(["a.mp4", "b.mp4", "gone.mp4"], cells)
    )
    records = read_table(write("path,labels\n" + lines), "train")
    names = [
        [f"class {label}" if isinstance(label, int) else label for label in labels]
        for labels in expected[:2]
    ]
    assert (records.problem_type, records.missing) == (MULTI_LABEL, ["gone.mp4"])
    assert [labels for _, labels in rows_of(records)] == names
    assert records.to_dataset()["labels"] == records.labels


def test_several_labels_as_lists(folder, write):
    rows = [{"path": "a.mp4", "labels": ["x", "y"]}, {"path": "b.mp4", "labels": []}]
    for name, content in (
        ("t.parquet", parquet(rows)),
        ("t.jsonl", "\n".join(map(json.dumps, rows))),
    ):
        assert rows_of(read_table(write(content, name), "train")) == [
            ("a.mp4", ["x", "y"]),
            ("b.mp4", []),
        ]


def test_a_number_to_predict(folder, write):
    records = read_table(write("path,target\na.mp4,-100\nb.mp4,1e-3\n"), "train")
    assert (records.problem_type, records.labels) == (REGRESSION, [-100.0, 0.001])
    assert records.to_dataset()[0]["target"] == -100


def test_segments_groups_and_weights(folder, write):
    table = write(
        "path,label,start,end,group,weight\n"
        "a.mp4,x,,,day 1,2\n"
        "a.mp4,x,0,2.5,day 1,\n"
        "a.mp4,y,1:02.5,0:01:03,,0.5\n"
        "a.mp4,x,90,,,\n"
    )
    records = read_table(table, "train")
    assert records.video_ids == ["a.mp4", "a.mp4@0-2.5", "a.mp4@62.5-63", "a.mp4@90-"]
    dataset = records.to_dataset()
    assert dataset["start"] == [None, 0.0, 62.5, 90.0]
    assert dataset["end"] == [None, 2.5, 63.0, None]
    assert dataset["group"] == ["day 1", "day 1", None, None]
    assert dataset["weight"] == [2.0, None, 0.5, None]
    frames = read_table(
        write("path,label,start_frame,end_frame\na.mp4,x,30,60\nb.mp4,x,5,\n"), "train"
    ).to_dataset()
    assert frames["video_id"] == ["a.mp4@f30-f60", "b.mp4@f5-"]
    assert (frames["start_frame"], frames["end_frame"]) == ([30, 5], [60, None])


def test_splits_in_a_column(folder, write, caplog):
    table = write("path,label,split,note\na.mp4,x,train,\nb.mp4,y,val,!\na.mp4,x,test,\n")
    assert table_splits(table) == ["train", "validation", "test"]
    with caplog.at_level(logging.INFO):
        records = read_table(table, "val")
    assert (records.video_ids, records.class_names) == (["b.mp4"], ["x", "y"])
    assert "columns that are not used: note" in caplog.text
    assert "1 videos are in the train split and in the test split, such as a.mp4" in caplog.text
    assert "1 classes have no clip in this split: x" in caplog.text


def test_a_table_a_split(folder, write, caplog):
    write("path,label\na.mp4,x\n", "train.csv")
    write('{"path": "b.mp4", "label": "y"}\n', "valid.jsonl")
    write("path,label\nb.mp4,\n", "test.csv")
    with caplog.at_level(logging.INFO):
        assert table_splits(folder) == ["train", "validation"]
    assert "the test split has no labels and is left out" in caplog.text
    assert read_table(folder, "validation").class_names == ["x", "y"]
    with pytest.raises(
        ValueError, match=r"no test split \(its clips have no label\); found: train, validation"
    ):
        read_table(folder, "test")


def test_videofolder(tmp_path):
    for split, label in (("train", "x"), ("test", "y")):
        (tmp_path / split).mkdir()
        (tmp_path / split / "1.mp4").touch()
        (tmp_path / split / "metadata.csv").write_text(f"file_name,label\n1.mp4,{label}\n")
    assert table_splits(tmp_path) == ["train", "test"]
    assert rows_of(read_table(tmp_path, "test")) == [("1.mp4", "y")]
    assert read_table(tmp_path, "test").videos == [str(tmp_path / "test/1.mp4")]
    for split in ("train", "test"):
        (tmp_path / split / "metadata.csv").unlink()
    lines = [
        json.dumps({"file_name": f"{split}/1.mp4", "label": split}) for split in ("train", "test")
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    assert table_splits(tmp_path) == ["train", "test"]
    assert rows_of(read_table(tmp_path, "test")) == [("test/1.mp4", "test")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "path,label\na.mp4,1\nb.mp4,2\n",
            "numbered 0 to 1, each number once; they begin at 1: take 1 from each",
        ),
        ("a.mp4 0\nb.mp4 2\n", "no class has number 1"),
        (
            "path,label\na.mp4,0.5\nb.mp4,2\n",
            r"label 0\.5 is no class number.*call the column `target`",
        ),
        ("path,label\na.mp4,x\nb.mp4,\n", r"line 3: no label for 'b\.mp4'"),
        ("path,label\n,x\n", "line 2: no path"),
        ("path,label\na.mp4,x,y\n", "line 2: 3 fields, but the header has 2: put quotes around"),
        (
            "path,label\na.mp4,x\na.mp4,y\n",
            "line 3: a.mp4 has another label in .*line 2.*column `labels`",
        ),
        ("path,label,target\na.mp4,x,1\n", "columns label and target: keep the one"),
        (
            "path,kind\na.mp4,x\n",
            "no column label, labels or target; columns that mean nothing here: kind",
        ),
        (
            "name,label\na.mp4,x\n",
            r"first line, 'name,label', has no column 'path', 'video', 'file_name'",
        ),
        ("path,label\n", "lists no clip"),
        ("path,target\na.mp4,high\n", "line 2: target 'high' is no number"),
        ("path,target\na.mp4,inf\n", "line 2: target 'inf' is no number"),
        ("path,label,start,end\na.mp4,x,5,5\n", r"line 2: the segment from 5\.0 to 5\.0 is empty"),
        ("path,label,start\na.mp4,x,-1\n", "line 2: start '-1' should be a number from 0 on"),
        ("path,label,start,end_frame\na.mp4,x,1,5\n", "in seconds and in frames: give one"),
        ("path,label,start_frame\na.mp4,x,1.5\n", "start_frame '1.5' should be"),
        ("path,label,split\na.mp4,x,other\n", "line 2: unknown split 'other'"),
        ("path,label\nhttps://x/a.mp4,x\n", "line 2: https://x/a.mp4 is an address: download"),
        (b"path,label\na.mp4,\xff\n", "is no UTF-8 text"),
        ("a.mp4 x\njust words\n", "line 2: expected a path and a label"),
    ],
)
def test_tables_that_make_no_sense(folder, write, content, message: str):
    with pytest.raises(ValueError, match=message):
        read_table(write(content), "train")


def test_places_without_a_table(folder, write, tmp_path):
    with pytest.raises(
        ValueError, match=r"has no train\.csv .*name the table itself in --data_dir"
    ):
        read_table(tmp_path, "train")
    with pytest.raises(ValueError, match="is no table and no folder"):
        read_table(tmp_path / "none.csv", "train")
    with pytest.raises(ValueError, match=r"is no table: expected one of \.csv"):
        read_table(write("x", "clips.docx"), "train")
    write("path,label\na.mp4,x\n", "train.csv")
    write("path,label\na.mp4,x\n", "train.tsv")
    with pytest.raises(
        ValueError, match=r"several tables of the train split: train\.csv, train\.tsv; keep one"
    ):
        read_table(folder, "train")


def test_classes_that_differ_in_case_only_are_said(folder, write, caplog):
    read_table(write("path,label\na.mp4,Run\nb.mp4,run\n"), "train")
    assert "differ only in case, `_` or quotes: 'Run' (1 clips), 'run' (1 clips)" in caplog.text
