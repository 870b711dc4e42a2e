"""Features of data sets: the right vectors, every video once over shares and kills; neighbours that
vote.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_model
from tiny_models import write_clips, write_model

from hf_timesformer import run_lock
from hf_timesformer.cli import extract as command
from hf_timesformer.data.synthetic import MOTIONS
from hf_timesformer.evaluation import features as features_module
from hf_timesformer.evaluation.features import FeatureSettings, clip_features, read_features
from hf_timesformer.evaluation.neighbours import knn_accuracy, nearest_classes
from hf_timesformer.inference import load_model_and_processor, make_views


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    return write_clips(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("scheme", ["space_only", "divided_space_time"])
@pytest.mark.parametrize("pool", ["cls", "patches"])
@pytest.mark.parametrize("layer", [None, 1, 2])
@torch.no_grad()
def test_vectors(scheme: str, pool: str, layer: int | None):
    model = tiny_model(scheme)
    views = torch.randn(2, 3, 4, 3, 12, 8)
    found = clip_features(model, views, FeatureSettings(pool, layer))
    expected = []
    for clip in views.flatten(0, 1):
        outputs = model.timesformer(clip[None], output_hidden_states=True)
        tokens = outputs.last_hidden_state if layer is None else outputs.hidden_states[layer]
        if layer == 2:  # what the final LayerNorm is given
            normed = model.timesformer.layernorm(tokens.mean(0, keepdim=True))
            assert torch.allclose(normed, outputs.last_hidden_state, atol=1e-5)
        tokens = tokens.mean(0)  # space_only: the mean over its frames; else one clip
        expected.append(tokens[0] if pool == "cls" else tokens[1:].mean(0))
    torch.testing.assert_close(
        found, torch.stack(expected).unflatten(0, (2, 3)).mean(1), atol=1e-5, rtol=1e-4
    )


def run(capsys, *arguments: str | Path) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        command.main([*map(str, arguments)])
    streams = capsys.readouterr()
    return end.value.code, streams.out, streams.err


def arguments(clips: Path, model_folder: Path, output: Path) -> list[str | Path]:
    return [
        "--model",
        model_folder,
        "--data_dir",
        clips,
        "--split",
        "test",
        "--output_dir",
        output,
        "--num_workers",
        0,
    ]


def test_every_video_has_its_vector(clips, model_folder, tmp_path: Path, capsys):
    code, out, err = run(
        capsys, *arguments(clips, model_folder, tmp_path), "--num_crops", 3, "--num_workers", 2
    )
    assert code == 1  # one is no video
    assert "12 videos added" in out
    assert f"failed: {clips}/test/up/broken.mp4: " in err
    found = read_features(tmp_path)
    assert list(found["video_id"]) == sorted(found["video_id"])
    assert len(set(found["video_id"])) == 12
    model, processor = load_model_and_processor(str(model_folder), num_crops=3)
    for name, label, vector in zip(found["video_id"], found["label_name"], found["features"]):
        assert label == name.split("/")[0]
        views = make_views(processor, str(clips / "test" / name))
        with torch.no_grad():
            expected = model.eval().timesformer(views).last_hidden_state[:, 0].mean(0)
        np.testing.assert_allclose(vector, expected.numpy(), atol=1e-5)


def test_shares_and_a_kill(clips, model_folder, tmp_path: Path, capsys, monkeypatch):
    whole, shared = tmp_path / "whole", tmp_path / "shared"
    run(capsys, *arguments(clips, model_folder, whole))
    extract = features_module.extract
    monkeypatch.setattr(
        features_module,
        "extract",
        lambda *args, **kwargs: extract(*args, **kwargs | {"rows_per_part": 1}),
    )
    monkeypatch.setenv("WORLD_SIZE", "2")
    for shard, rank in (("0/2", "0"), ("0/2", "1"), ("1/2", "0"), ("1/2", "1")):
        monkeypatch.setenv("RANK", rank)
        forward = features_module.clip_features
        count = []

        def killed(*args, count=count, forward=forward):
            count.append(1)
            if len(count) == 3:
                raise KeyboardInterrupt
            return forward(*args)

        monkeypatch.setattr(features_module, "clip_features", killed)
        shares = [*arguments(clips, model_folder, shared), "--shard", shard, "--batch_size", 1]
        with pytest.raises(KeyboardInterrupt):
            command.main([*map(str, shares)])
        monkeypatch.setattr(features_module, "clip_features", forward)
        before = len(list(shared.glob("*.parquet")))
        _, out, _ = run(capsys, *shares)
        assert f"{shared} has {before} videos already" in out
    assert len(list(shared.glob("*.parquet"))) == 12  # none twice
    assert not [name for name in os.listdir(shared) if name.startswith(".")]
    one, other = read_features(whole), read_features(shared)
    assert list(one["video_id"]) == list(other["video_id"])
    np.testing.assert_allclose(one["features"], other["features"], atol=1e-5)
    code, _, err = run(capsys, *arguments(clips, model_folder, shared), "--pool", "patches")
    assert code == 2
    assert "holds features of pool='cls', now it is 'patches'" in err


def test_a_share_has_one_run_at_a_time(clips, model_folder, tmp_path: Path, capsys, monkeypatch):
    with run_lock.only_run_in(tmp_path, run_lock.Work("extract", (1, 2))):  # rank 1 of 2 is left
        monkeypatch.setattr(run_lock, "_held", set())  # as if it were another process
        code, _, err = run(capsys, *arguments(clips, model_folder, tmp_path))
        assert code == 2
        assert f"at work in {tmp_path}: process {os.getpid()} on " in err
        run(capsys, *arguments(clips, model_folder, tmp_path), "--shard", "0/4")
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".parquet"}
    assert not list(tmp_path.glob("_run-*"))


def test_shards_of_a_stream(clips, model_folder, tmp_path: Path, capsys, monkeypatch):
    from hf_timesformer.cli import prepare

    prepare.main(
        [
            *map(
                str,
                [
                    "--data_dir",
                    clips,
                    "--output_dir",
                    tmp_path / "shards",
                    "--pack",
                    "--videos_per_shard",
                    3,
                ],
            )
        ]
        + ["--num_workers", "0"]
    )
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        options = [
            "--dataset",
            "webdataset",
            *arguments(tmp_path / "shards", model_folder, tmp_path / "found"),
        ]
        assert run(capsys, *options)[0] == 0
    found = read_features(tmp_path / "found")
    assert len(set(found["video_id"])) == 12
    assert sorted(found["label_name"]) == sorted(sorted(MOTIONS) * 2)


@pytest.mark.parametrize(
    ("option", "message"),
    [(["--layer", 2], "1 to 1, got 2"), (["--shard", "2/2"], "from 0 to N-1, so it is 0/2 to 1/2")],
)
def test_mistakes(clips, model_folder, tmp_path, capsys, option: list, message: str):
    code, _, err = run(capsys, *arguments(clips, model_folder, tmp_path), *option)
    assert code == 2
    assert message in err
    with pytest.raises(ValueError, match="holds no features"):
        read_features(tmp_path / "none")


def test_neighbours_vote():
    rng = np.random.default_rng(0)
    known, labels = rng.normal(size=(40, 8)), rng.integers(0, 4, 40)
    asked = rng.normal(size=(25, 8))
    expected = []
    for vector in asked:  # one at a time, in words
        cosine = [
            vector @ other / np.linalg.norm(vector) / np.linalg.norm(other) for other in known
        ]
        nearest = np.argsort(cosine)[::-1][:7]
        votes = dict.fromkeys(range(4), 0.0)
        for index in nearest:
            votes[labels[index]] += np.exp(cosine[index] / 0.07)
        expected.append(max(votes, key=votes.get))
    assert nearest_classes(known, labels, asked, k=7).tolist() == expected
    features = {"features": known, "label_name": labels.astype(str)}
    assert knn_accuracy(features, features, k=1) == 1
    with pytest.raises(ValueError, match="k must lie between 1 and the 40 known videos, got 41"):
        nearest_classes(known, labels, asked, k=41)
