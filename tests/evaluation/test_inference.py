"""What a model says of a video, for each kind of problem, beside the stock pipeline; dtypes; what
was looked at.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_model
from transformers import pipeline
from transformers.video_utils import VideoMetadata

from hf_timesformer import TimeSformerVideoProcessor
from hf_timesformer.cli import predict
from hf_timesformer.data.synthetic import motion_frames
from hf_timesformer.inference import (
    REGRESSION,
    choose_device,
    choose_dtype,
    classify,
    load_model_and_processor,
    make_views,
    problem_type_of,
    seconds_looked_at,
)
from hf_timesformer.video.encoding import write_video
from hf_timesformer.visualization.pictures import explain


PROBLEMS = (None, "single_label_classification", "multi_label_classification", "regression")


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    frames = motion_frames("left", np.random.default_rng(0), num_frames=40, size=24)
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4", frames, fps=10)


@pytest.fixture(scope="module", params=PROBLEMS, ids=str)
def model_folder(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    names = {index: f"class {index}" for index in range(3)}
    tiny_model(
        "divided_space_time", problem_type=request.param, num_labels=3, id2label=names
    ).save_pretrained(folder)
    sizes = {"size": {"shortest_edge": 12}, "crop_size": {"height": 12, "width": 8}}
    TimeSformerVideoProcessor(num_frames=4, sampling_rate=2, **sizes).save_pretrained(folder)
    return folder


def test_answers_are_the_stock_pipelines(model_folder: Path, clip: Path):
    model, processor = load_model_and_processor(str(model_folder))
    rows = classify(model.eval(), make_views(processor, str(clip)))
    stock = pipeline("video-classification", model=str(model_folder), video_processor=processor)(
        str(clip), top_k=3
    )
    expected = {row["label"]: pytest.approx(row["score"], abs=1e-5) for row in stock}
    key = "value" if problem_type_of(model.config) == REGRESSION else "score"
    assert {row["label"]: row[key] for row in rows} == expected
    if key == "score":
        assert [row["label"] for row in rows] == [row["label"] for row in stock]
    else:
        # the order of the outputs
        assert [row["label"] for row in rows] == ["class 0", "class 1", "class 2"]


def test_explanations_say_the_same(model_folder: Path, clip: Path):
    model, processor = load_model_and_processor(str(model_folder))
    said = explain(model.eval(), processor, str(clip))
    rows = classify(model, make_views(processor, str(clip)))
    figures = [row.get("score", row.get("value")) for row in rows]
    assert sorted(said.scores.tolist()) == pytest.approx(sorted(figures), abs=1e-5)
    if model.config.problem_type == "regression":
        assert said.title.startswith(f"class 0 {rows[0]['value']:.4g}, class 1")
    else:
        assert said.title.startswith(f"{rows[0]['label']} {rows[0]['score']:.0%}")


def test_one_output_is_a_number():
    config = tiny_model("space_only", num_labels=1).config
    assert problem_type_of(config) == REGRESSION
    logits = torch.tensor([[3.25]])
    model = torch.nn.Module()
    model.config, model.forward = (
        config,
        lambda pixel_values: type("Output", (), {"logits": logits}),
    )
    assert classify(model, torch.zeros(1, 4, 3, 12, 8)) == [{"label": "LABEL_0", "value": 3.25}]


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({"avx2": True}, torch.float32),
    ],
)
def test_auto_dtype_is_what_the_cpu_computes_in(
    monkeypatch, capabilities: dict, expected: torch.dtype
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert choose_dtype("auto", torch.device("cpu")) == expected
    assert choose_dtype("float16", torch.device("cpu")) == torch.float16


def test_unknown_dtype_and_device():
    with pytest.raises(
        ValueError, match="--dtype int4 is unknown: choose auto, float32, bfloat16, float16"
    ):
        choose_dtype("int4", torch.device("cpu"))
    with pytest.raises(ValueError, match="--device abacus"):
        choose_device("abacus")


@pytest.mark.parametrize(
    ("indices", "num_clips", "fps", "expected"),
    [
        ([0, 4, 8], 1, 10.0, (0.9, 2.0)),
        ([0, 4, 8, 6, 10, 14], 2, 10.0, (1.5, 2.0)),  # two clips that overlap
        ([0, 1, 18, 19], 2, 10.0, (0.4, 2.0)),
        ([0, 0, 0], 1, 10.0, (0.1, 2.0)),
        ([0, 4, 8], 1, None, None),
    ],
)
def test_seconds_looked_at(indices: list[int], num_clips: int, fps: float | None, expected):
    metadata = VideoMetadata(total_num_frames=20, fps=fps, frames_indices=indices)
    found = seconds_looked_at(metadata, num_clips)
    assert found == (expected if expected is None else pytest.approx(expected))


def test_predict_says_what_it_looked_at(model_folder: Path, clip: Path, capsys):
    for arguments, words in (
        (
            [],
            "(looked at 0.8 s of 4.0 s; --num_clips auto or `timesformer label` look at more; float32)",
        ),
        (["--num_clips", "5"], "(looked at 4.0 s of 4.0 s; float32)"),
        (["--num_clips", "auto"], "(looked at 4.0 s of 4.0 s; float32)"),
    ):
        with pytest.raises(SystemExit) as end:
            predict.main(
                [str(clip), "--model", str(model_folder), "--dtype", "float32", *arguments]
            )
        assert end.value.code == 0
        assert capsys.readouterr().out.splitlines()[0] == f"{clip}  {words}"


def test_all_of_a_video_is_as_many_clips_as_cover_it(model_folder: Path, clip: Path, capsys):
    answers = []
    for num_clips in ("5", "auto"):  # clips of 8 frames of 40
        with pytest.raises(SystemExit):
            predict.main(
                [
                    str(clip),
                    "--model",
                    str(model_folder),
                    "--json",
                    "--dtype",
                    "float32",
                    "--num_clips",
                    num_clips,
                ]
            )
        answers.append(json.loads(capsys.readouterr().out)[0])
    rows = [
        {row["label"]: row.get("score", row.get("value")) for row in answer["predictions"]}
        for answer in answers
    ]
    assert rows[0] == pytest.approx(rows[1], abs=1e-5)


def test_predict_in_bfloat16(model_folder: Path, clip: Path, capsys):
    answers = {}
    for dtype in ("float32", "bfloat16"):
        with pytest.raises(SystemExit):
            predict.main([str(clip), "--model", str(model_folder), "--json", "--dtype", dtype])
        (answer,) = json.loads(capsys.readouterr().out)
        assert answer["dtype"] == dtype
        assert answer["seconds"] == 4
        answers[dtype] = {
            row["label"]: row.get("score", row.get("value")) for row in answer["predictions"]
        }
    assert answers["bfloat16"] != answers["float32"]
    assert answers["bfloat16"] == pytest.approx(answers["float32"], abs=0.1)
