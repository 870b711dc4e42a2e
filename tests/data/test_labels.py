"""Class names: what a file of them may look like, and which class of a model is which of the data."""

import json

import pytest

from hf_timesformer.data.labels import match_labels, read_class_names


@pytest.mark.parametrize(
    ("names", "model_names", "expected"),
    [
        (["a", "b"], ["b", "c", "a"], [2, 0]),
        (["air_drumming", "Zumba"], ["zumba", '"air drumming"', "third"], [1, 0]),
        (["a", "b"], ["LABEL_0", "LABEL_1"], [0, 1]),
        (["a b", "A_B"], ["A_B", "a b"], [1, 0]),  # letter for letter comes first
    ],
)
def test_classes_are_found_by_name(names: list[str], model_names: list[str], expected: list[int]):
    assert match_labels(names, dict(enumerate(model_names)), cure="") == expected


@pytest.mark.parametrize(
    ("names", "model_names", "message"),
    [
        (["jump", "runing"], ["jump", "Running", "ruling"], r"1 of 2 .* 3: 'runing' \(nearest: 'Running', .*Do it"),
        (["a", "zumba"], ["LABEL_0", "LABEL_1", "LABEL_2"], r"2 of 2 .*3: 'a', 'zumba' \(nothing is near; "),
        ([f"x{number:02d}" for number in range(12)], ["a", "b"], r"12 of 12 .*'x09' .*; and 2 more\. Do it\."),
        (["A B"], ["a_b", "a b"], r"'A B' of the data may be any of the model's 'a_b', 'a b'"),
        (["A b", "a_B"], ["a b", "c"], r"'A b', 'a_B' of the data are one class of the model, 'a b'"),
    ],
)  # fmt: skip
def test_classes_that_a_model_lacks(names: list[str], model_names: list[str], message: str):
    with pytest.raises(ValueError, match=message):
        match_labels(names, dict(enumerate(model_names)), cure="Do it.")


@pytest.mark.parametrize(
    "content",
    [
        ["jump", "run", "walk"],
        {"jump": 0, "walk": 2, "run": 1},
        {"jump": "0", "walk": "2", "run": "1"},
        {"0": "jump", "2": "walk", "1": "run"},
        {'"jump"': 0, '"walk"': 2, "run": 1},
    ],
)
def test_class_names_from_json(content, tmp_path):
    (tmp_path / "labels.json").write_text(json.dumps(content))
    assert read_class_names(tmp_path / "labels.json") == ["jump", "run", "walk"]


def test_class_names_one_a_line(tmp_path):
    (tmp_path / "labels.txt").write_bytes(b'\xef\xbb\xbfjump up\r\n"run"\r\n\r\nsay "hi"\r\n')
    assert read_class_names(tmp_path / "labels.txt") == ["jump up", "run", 'say "hi"']


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('["a", "a"]', "twice: a"),
        ("a\nb\na", "twice: a"),
        (
            '{"a": 1, "b": 2}',
            "numbered 0 to 1, each number once; they begin at 1: take 1 from each",
        ),
        ('{"a": 0, "b": 3}', "numbered 0 to 1, .* no class has number 1, 2: number them anew"),
        ('{"a": 0, "b": 0}', "a number stands for two"),
        ('{"a": 0, "b": "x"}', "must hold class names"),
        ("[1, 2]", "must hold class names"),
        ("[]", "must hold class names"),
        ("", "must hold class names"),
        ("[oops", "no readable JSON"),
    ],
)
def test_files_that_name_no_classes(content, message, tmp_path):
    (tmp_path / "labels.json").write_text(content)
    with pytest.raises(ValueError, match=rf"labels\.json.*{message}"):
        read_class_names(tmp_path / "labels.json")
