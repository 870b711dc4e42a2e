"""Real processes: two of them on uneven shards, and runs killed with SIGKILL that go on as if
nothing had happened.
"""

import json
import re

import pytest
from train_processes import NETWORK, SHARD_SIZES, assert_same_weights, launch


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "webdataset"])
def test_killed_run_goes_on_with_the_clips_that_come_next(train, kind, folder, shards, tmp_path):
    data = ["--dataset", kind, "--data_dir", str(folder if kind == "folder" else shards)]
    options = [*data, "--save_strategy", "steps", "--save_steps", "3", "--eval_strategy", "no"]
    options += ["--load_best_model_at_end", "false", "--save_total_limit", "1"]
    whole = train(tmp_path / "whole", *options)
    assert whole.returncode == 0, whole.output
    # Saved after step 3 and after step 6: one kind dies before step 6, the other while it writes
    # checkpoint 6.
    death = {"DIE_AT_STEP": "5"} if kind == "folder" else {"DIE_SAVING": "6"}
    killed = train(tmp_path / "killed", *options, **death)
    assert killed.returncode == -9, killed.output
    resumed = train(tmp_path / "killed", *options, "--resume_from_checkpoint")
    assert resumed.returncode == 0, resumed.output
    assert whole.steps()[:3] == killed.steps()[:3]
    assert resumed.steps() == whole.steps()[3:]
    assert_same_weights(tmp_path / "whole", tmp_path / "killed", tolerance=0)
    assert ("checkpoint-6 was being written when the run was killed" in resumed.output) == (
        kind == "webdataset"
    )
    decoded = [
        tuple(map(int, line.split()))
        for line in (resumed.log / "decoded-0.txt").read_text().splitlines()
    ]
    assert len(decoded) == len(set(decoded)) == sum(len(step) for step in resumed.steps())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "webdataset"])
def test_two_processes_killed_and_resumed_end_where_one_ends(train, kind, folder, shards, tmp_path):
    data = [
        "--dataset",
        kind,
        "--data_dir",
        str(folder if kind == "folder" else shards),
        "--mixup",
        "0",
    ]
    options = [
        *data,
        "--config_overrides",
        f"{NETWORK},num_frames=2",
        "--save_strategy",
        "steps",
        "--save_steps",
        "2",
    ]
    # Not Adam, which turns the rounding noise of gradients that ought to be zero into steps of full
    # size.
    options += [
        "--eval_strategy",
        "no",
        "--max_steps",
        "5",
        "--optim",
        "sgd",
        "--learning_rate",
        "0.1",
    ]
    total_batch = ["--per_device_train_batch_size", "6", "--stream_processes", "2"]
    one = train(tmp_path / "one", *options, *total_batch)
    assert one.returncode == 0, one.output
    killed = train(tmp_path / "two", *options, processes=2, DIE_AT_STEP="3")
    assert killed.returncode == -9, killed.output
    two = train(tmp_path / "two", *options, "--resume_from_checkpoint", processes=2)
    assert two.returncode == 0, two.output
    both = [left + right for left, right in zip(two.steps(0), two.steps(1))]
    assert [sorted(step) for step in both] == [sorted(step) for step in one.steps()[2:]]
    assert_same_weights(tmp_path / "one", tmp_path / "two", tolerance=1e-6)


@pytest.mark.slow
def test_two_processes_share_uneven_shards(shards, tmp_path):
    options = [
        "--dataset",
        "webdataset",
        "--data_dir",
        str(shards),
        "--dataloader_num_workers",
        "2",
    ]
    run = launch(tmp_path / "two", *options, processes=2)
    assert run.returncode == 0, run.output
    # DDP says so where it looks for what is not there
    assert "find_unused_parameters" not in run.output
    steps = [run.steps(rank) for rank in (0, 1)]
    # 21 clips, 2 processes, batches of 3: 4 steps in each of 2 epochs
    assert [len(one) for one in steps] == [8, 8]
    for epoch in (slice(0, 4), slice(4, 8)):
        left, right = ({name for step in one[epoch] for name in step} for one in steps)
        assert not left & right
        assert len(left | right) == sum(SHARD_SIZES)
    assert [one[:4] for one in steps] != [one[4:] for one in steps]
    results = json.loads((tmp_path / "two" / "train_results.json").read_text())
    assert (results["train_samples"], results["bad_clips"]) == (21, 0)
    state = json.loads((tmp_path / "two" / "trainer_state.json").read_text())
    assert [entry["eval_videos"] for entry in state["log_history"] if "eval_videos" in entry] == [
        5,
        5,
    ]
    assert "4 shards are fewer" not in run.output
    for rank in (0, 1):  # a thread of gloo that Python's end finds alive may abort the process
        assert "gloo" not in (run.log / f"threads-{rank}.txt").read_text()


@pytest.mark.slow
def test_new_classifier_is_fitted_at_both_ends_and_to_the_clips_of_all_processes(
    train, folder, vit, tmp_path
):
    """As the recipe for few clips does it, whose temporal heads begin with parts of the clip."""
    data = ["--data_dir", str(folder), "--mixup", "0", "--save_strategy", "steps"]
    data += ["--save_steps", "2", "--eval_strategy", "no", "--max_steps", "3"]
    data += ["--config_overrides", "num_frames=2", "--probe_passes", "2"]
    data += ["--optim", "sgd", "--learning_rate", "0", "--refit_classifier", "true"]
    start = ["--from_vit", str(vit), "--temporal_start", "parts", "--image_size", "32"]
    options = [*data, *start]
    one = train(tmp_path / "one", *options, "--per_device_train_batch_size", "6")
    assert one.returncode == 0, one.output
    # 24 clips: two augmented passes, and at the end the crop in the middle besides
    for views in (48, 72):
        assert one.output.count(f"classifier fitted to {views} views") == 1
    killed = train(tmp_path / "two", *options, processes=2, DIE_AT_STEP="2")
    assert killed.returncode == -9, killed.output
    assert killed.output.count("classifier fitted to 48 views") == 1
    two = train(tmp_path / "two", *options, "--resume_from_checkpoint", processes=2)
    assert two.returncode == 0, two.output
    assert re.findall(r"classifier fitted to (\d+) views", two.output) == ["72"]  # at the end
    assert_same_weights(tmp_path / "one", tmp_path / "two", tolerance=0.02)  # of values up to 139
    old_head = train(tmp_path / "old", *data, "--model", str(tmp_path / "one"))
    assert old_head.returncode == 0, old_head.output
    assert "the classifier is not a new one" in old_head.output


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "webdataset"])
def test_evaluations_while_training_give_the_same_numbers_on_two_processes(
    train, kind, folder, shards, tmp_path
):
    """Five or six clips in batches of four: what fills the last batch up counts neither in the loss
    nor elsewhere.
    """
    options = [
        "--dataset",
        kind,
        "--data_dir",
        str(folder if kind == "folder" else shards),
        "--learning_rate",
        "0",
    ]
    options += [
        "--max_steps",
        "2",
        "--eval_strategy",
        "steps",
        "--eval_steps",
        "2",
        "--save_strategy",
        "no",
    ]
    options += ["--load_best_model_at_end", "false", "--per_device_eval_batch_size", "4"]
    found = []
    for processes in (1, 2):
        run = train(tmp_path / str(processes), *options, processes=processes)
        assert run.returncode == 0, run.output
        state = json.loads((tmp_path / str(processes) / "trainer_state.json").read_text())
        (entry,) = [entry for entry in state["log_history"] if "eval_loss" in entry]
        found.append(
            {
                name: entry[f"eval_{name}"]
                for name in ("loss", "top1_accuracy", "top5_accuracy", "videos")
            }
        )
    assert found[0]["videos"] == (6 if kind == "folder" else 5)
    assert found[1] == pytest.approx(found[0], rel=1e-5)


@pytest.mark.slow
def test_all_processes_end_where_the_first_cannot_start_the_network(train, shards, vit, tmp_path):
    """Comparisons are learned from clips of all the data, which shards do not give."""
    options = ["--dataset", "webdataset", "--data_dir", str(shards), "--image_size", "32"]
    options += ["--from_vit", str(vit), "--config_overrides", "num_frames=2"]
    run = train(tmp_path / "run", *options, "--temporal_start", "comparisons", processes=2)
    assert run.returncode == 2, run.output  # -9 where one had to be killed
    why = "--temporal_start comparisons looks at some clips from all over the data"
    assert f"error: {why}" in run.output
    assert (
        f"error: process 1 ends, because the first one has failed: ValueError: {why}" in run.output
    )
