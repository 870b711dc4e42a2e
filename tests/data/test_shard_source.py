"""The plan of an epoch of tar shards, against plain counting; readers that open no more than they
must.
"""

import io
import tarfile
from collections import Counter

import numpy as np
import pytest
from datasets import IterableDataset

from hf_timesformer.data.records import video_features
from hf_timesformer.data.row_source import deal_by_shares
from hf_timesformer.data.shard_source import (
    ShardSource,
    StreamLayout,
    buffered_order,
    count_clips,
    cut_line,
    warn_of_few_shards,
)


OPENED = []


def generate(shards: list[tuple[int, int]]):
    for shard, size in shards:
        OPENED.append(shard)
        for clip in range(size):
            yield {"video_id": f"{shard}/{clip}", "video": b"", "label": 0}


def make_source(sizes, layout: StreamLayout, **options) -> ShardSource:
    features = video_features(["only"], video_type="binary")
    shards = {"shards": list(enumerate(sizes))}
    videos = IterableDataset.from_generator(generate, features=features, gen_kwargs=shards)
    return ShardSource(videos, sizes, layout, **options)


def read_epoch(
    sizes, layout: StreamLayout, epoch: int, first_step: int = 0, **options
) -> list[list[str]]:
    """Clips of each global batch from `first_step` on: each stream has its own source, as workers
    have.
    """
    sources, batches = {}, []
    keys = list(layout.keys(epoch))[first_step * layout.batch_size * layout.num_processes :]
    for start in range(0, len(keys), layout.batch_size):
        batch = keys[start : start + layout.batch_size]
        assert len({key.stream for key in batch}) == 1
        source = sources.setdefault(batch[0].stream, make_source(sizes, layout, **options))
        batches.append([next(source.candidates(key))["video_id"] for key in batch])
    return batches


LAYOUTS = [
    ((9, 1, 7, 4), 3, 2, 2),
    ((9, 1, 7, 4), 4, 1, 1),
    ((5, 5), 2, 2, 3),
    ((3,), 1, 2, 2),
    ((40, 2, 2), 8, 3, 1),
    ((7, 6, 5, 4, 3, 2, 1), 1, 4, 2),
]


@pytest.mark.parametrize(("sizes", "batch", "processes", "workers"), LAYOUTS)
@pytest.mark.parametrize("epoch", [0, 1])
def test_every_clip_once_and_equal_steps(sizes, batch, processes, workers, epoch):
    layout = StreamLayout(sum(sizes), batch, processes, workers)
    batches = read_epoch(sizes, layout, epoch, shuffle_buffer=4, seed=5)
    assert len(batches) == layout.steps * processes
    ranks = [
        [name for one in batches[rank::processes] for name in one] for rank in range(processes)
    ]
    everything = {f"{shard}/{clip}" for shard, size in enumerate(sizes) for clip in range(size)}
    assert set().union(*ranks) == everything
    repeats = layout.num_keys - sum(sizes)
    assert sum(len(names) for names in ranks) == len(everything) + repeats
    assert repeats < processes * batch + processes
    # otherwise a process has to borrow a clip
    if layout.num_keys // layout.batch_size <= sum(sizes):
        assert sum(len(set(names)) for names in ranks) == len(everything)


def test_epochs_and_seeds_differ_and_repeat():
    layout = StreamLayout(21, 3, 1, 2)

    def order(epoch, seed):
        return read_epoch((9, 1, 7, 4), layout, epoch, shuffle_buffer=6, seed=seed)

    assert order(0, 1) == order(0, 1)
    assert order(0, 1) != order(1, 1)
    assert order(0, 1) != order(0, 2)


@pytest.mark.parametrize(("sizes", "batch", "processes", "workers"), LAYOUTS)
def test_resumed_at_any_step_the_same_clips_follow(sizes, batch, processes, workers):
    layout = StreamLayout(sum(sizes), batch, processes, workers)
    whole = read_epoch(sizes, layout, 3, shuffle_buffer=5, seed=0)
    for step in range(1, layout.steps):
        assert (
            read_epoch(sizes, layout, 3, first_step=step, shuffle_buffer=5, seed=0)
            == whole[step * processes :]
        )


@pytest.mark.parametrize(("sizes", "batch", "processes", "workers"), LAYOUTS)
def test_clips_of_a_stream_come_by_their_shares(sizes, batch, processes, workers):
    """As often as `deal_by_shares` says, each process and worker knowing it of all; resumed too."""
    count = sum(sizes)
    shares = np.arange(count) ** 2 + 1.0
    shares /= shares.sum()
    layout = StreamLayout(count, batch, processes, workers)
    options = {"shuffle_buffer": 5, "seed": 7, "shares": shares}
    whole = read_epoch(sizes, layout, 2, **options)
    rows = deal_by_shares(shares, np.random.default_rng([7, 2, 0, 1]))
    names = [f"{shard}/{clip}" for shard, size in enumerate(sizes) for clip in range(size)]
    drawn = Counter(name for one in whole for name in one)
    expected = Counter(names[row] for row in rows)
    assert drawn.keys() == expected.keys()
    if layout.num_keys == count:  # no place is filled up by a repeat
        assert drawn == expected
    for step in range(1, layout.steps):
        rest = read_epoch(sizes, layout, 2, first_step=step, **options)
        assert rest == whole[step * processes :]


def test_resuming_leaves_finished_shards_closed():
    sizes, layout = (10, 10, 10, 10, 10), StreamLayout(50, 5)
    OPENED.clear()
    read_epoch(sizes, layout, 0, first_step=8, shuffle_buffer=3, seed=0)
    # clips 40 to 49, those of the batch before, and what lingered in the buffer
    assert len(OPENED) <= 3


def test_evaluation_keeps_the_order_and_leaves_places_empty():
    layout = StreamLayout(7, 2, 2, 1)
    source = make_source((4, 3), layout)
    records = [next(source.candidates(key), None) for key in layout.keys(0)]
    assert len(records) == source.num_keys == 8
    assert sorted(record["video_id"] for record in records if record) == [
        *(f"0/{clip}" for clip in range(4)),
        *(f"1/{clip}" for clip in range(3)),
    ]


def test_stand_ins_are_the_next_clips_and_come_again_in_their_turn():
    layout = StreamLayout(6, 2)
    source = make_source((6,), layout, shuffle_buffer=1, seed=0)
    keys = list(layout.keys(0))
    order = [
        next(make_source((6,), layout, shuffle_buffer=1, seed=0).candidates(key))["video_id"]
        for key in keys
    ]
    stand_ins = source.candidates(keys[1])
    assert [next(stand_ins)["video_id"] for _ in range(4)] == order[1:5]
    assert [next(source.candidates(key))["video_id"] for key in keys[2:]] == order[2:]


@pytest.mark.parametrize(
    ("begin", "end", "pieces"),
    [
        (2, 5, [(1, 2, 3), (0, 0, 2)]),
        (0, 7, [(1, 0, 3), (0, 0, 4)]),
        (3, 3, []),
        (3, 4, [(0, 0, 1)]),
    ],
)
def test_cut_line(begin, end, pieces):
    assert cut_line(np.array([4, 3]), np.array([1, 0]), begin, end) == pieces


@pytest.mark.parametrize(("length", "size"), [(0, 3), (2, 3), (3, 3), (50, 3), (50, 100)])
def test_buffered_order_is_a_permutation_that_looks_no_further_than_the_buffer(length, size):
    order = buffered_order(length, size, np.random.default_rng(0))
    assert sorted(order) == list(range(length))
    assert all(place < turn + size for turn, place in enumerate(order))


def test_too_few_clips():
    with pytest.raises(ValueError, match="3 clips are too few for 4 processes"):
        StreamLayout(3, 1, num_processes=4)


def test_few_shards_are_said_with_the_cure(caplog):
    warn_of_few_shards(3, StreamLayout(100, 1, num_processes=2, num_workers=4))
    assert "3 shards are fewer than 2 processes x 4 workers = 8 readers" in caplog.text
    assert "lower --dataloader_num_workers to 1" in caplog.text
    caplog.clear()
    warn_of_few_shards(8, StreamLayout(100, 1, num_processes=2, num_workers=4))
    assert not caplog.text


def test_clips_of_a_shard_without_manifest(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("x.mp4", "x.json", "y.cls", "y.webm", "z.txt"):
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    assert count_clips([str(tmp_path / "a.tar")]) == [2]
    (tmp_path / "b.tar").write_text("no tar")
    with pytest.raises(ValueError, match=r"cannot read shard .*b\.tar"):
        count_clips([str(tmp_path / "b.tar")])
    with pytest.raises(ValueError, match=r"shards\.json"):
        count_clips(["https://example.com/a.tar"])
