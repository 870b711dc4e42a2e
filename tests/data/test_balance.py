"""How often clips are drawn: by weight and by class, the same after a resume and over several
processes.
"""

from collections import Counter

import numpy as np
import pytest
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader

from hf_timesformer.data.balance import draw_shares
from hf_timesformer.data.records import VideoRecords
from hf_timesformer.data.row_source import ClipKey, RecordSource
from hf_timesformer.data.targets import MULTI_LABEL, REGRESSION, SINGLE_LABEL


def records_of(labels: list, problem_type: str = SINGLE_LABEL, weights: list | None = None):
    records = VideoRecords(["a", "b", "c"], problem_type)
    for number, label in enumerate(labels):
        records.add(
            str(number), str(number), label, weight=None if weights is None else weights[number]
        )
    return records.to_dataset()


def drawn(shares: np.ndarray, epochs: int) -> list[list[ClipKey]]:
    sampler = RecordSource(records_of([0] * len(shares)), shares=shares).make_sampler(seed=1)
    keys = []
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        keys.append(list(sampler))
        assert keys[-1] == list(sampler)
        # each time another draw of frames and crop
        assert len(keys[-1]) == len(set(keys[-1])) == len(sampler)
    return keys


def test_every_class_comes_equally_often():
    labels = [0] * 40 + [1] * 16 + [2] * 4
    shares = draw_shares(records_of(labels), balanced=True)
    epochs = drawn(shares, epochs=400)
    for keys in epochs:
        classes = Counter(labels[key.index] for key in keys)
        assert all(abs(classes[label] - 20) <= 2 for label in range(3))
        rows = Counter(key.index for key in keys)
        assert all(
            rows[row] in (np.floor(60 * shares[row]), np.ceil(60 * shares[row]))
            for row in range(60)
        )
    rows = Counter(key.index for keys in epochs for key in keys)
    assert all(rows[row] == pytest.approx(400 * 60 * shares[row], rel=0.25) for row in range(60))


def test_weights():
    shares = draw_shares(records_of([0, 0, 1, 1], weights=[3, None, 0, 2]), balanced=False)
    assert shares.tolist() == [3 / 6, 1 / 6, 0, 2 / 6]
    assert not any(key.index == 2 for keys in drawn(shares, epochs=30) for key in keys)
    balanced = draw_shares(records_of([0, 0, 1, 1], weights=[3, 1, 0, 2]), balanced=True)
    np.testing.assert_allclose(balanced, [3 / 8, 1 / 8, 0, 1 / 2])
    assert draw_shares(records_of([0, 1]), balanced=False) is None
    assert draw_shares(records_of([0, 1], weights=[2, 2]), balanced=False) is None
    with pytest.raises(ValueError, match="weights of all clips are 0"):
        draw_shares(records_of([0, 1], weights=[0, 0]), balanced=False)


def test_several_labels():
    shares = draw_shares(records_of([[0], [0], [0, 1], []], MULTI_LABEL), balanced=True)
    expected = np.array([1 / 3, 1 / 3, (1 / 3 + 1) / 2, 1])
    np.testing.assert_allclose(shares, expected / expected.sum())
    with pytest.raises(ValueError, match="is for classes"):
        draw_shares(records_of([1.0, 2.0], REGRESSION), balanced=True)


def test_equal_shares_are_every_row_once():
    assert sorted(key.index for key in drawn(np.full(7, 1 / 7), epochs=1)[0]) == list(range(7))


@pytest.mark.parametrize("num_processes", [2, 3])
def test_processes_divide_an_epoch(num_processes: int):
    """Batch after batch goes to one process after another, as accelerate deals them."""
    shares = draw_shares(records_of([0] * 20 + [1] * 4), balanced=True)
    sampler = RecordSource(records_of([0] * 24), shares=shares).make_sampler(seed=3)
    sampler.set_epoch(2)
    loader = DataLoader(list(range(24)), batch_size=2, sampler=sampler, collate_fn=list)
    shards = []
    for rank in range(num_processes):
        dealt = prepare_data_loader(
            loader, num_processes=num_processes, process_index=rank, put_on_device=False
        )
        shards.append(list(dealt.batch_sampler))
    merged = [key for batches in zip(*shards) for batch in batches for key in batch]
    assert merged[:24] == list(sampler)
