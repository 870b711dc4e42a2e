"""What the first process finds out for all: its result, or its failure, reaches every process."""

from types import SimpleNamespace

import pytest
import torch

from hf_timesformer.model.configuration_timesformer import TimeSformerConfig
from hf_timesformer.model.modeling_timesformer import TimeSformerForVideoClassification
from hf_timesformer.training import first_process, run_start
from hf_timesformer.training.first_process import of_first_process


@pytest.fixture
def sent(monkeypatch) -> list:
    """What was broadcast, by a stand-in: process 0 has its turn before the others."""
    mail: list = []

    def broadcast(values):
        if not mail:
            mail.extend(values)
        values[:] = mail

    monkeypatch.setattr(first_process, "broadcast_object_list", broadcast)
    return mail


def process(index: int, of: int = 3) -> SimpleNamespace:
    return SimpleNamespace(
        process_index=index, world_size=of, device="cpu", bf16=False, fp16=False, deepspeed=None
    )


def test_all_get_what_the_first_one_found(sent):
    found = {"a": torch.arange(3)}
    assert of_first_process(lambda: found, process(0)) is found
    for index in (1, 2):
        assert of_first_process(lambda: pytest.fail("only the first"), process(index)) == found


def test_one_alone_tells_nobody(sent):
    assert of_first_process(lambda: 7, process(0, of=1)) == 7
    with pytest.raises(ZeroDivisionError):
        of_first_process(lambda: 1 / 0, process(0, of=1))
    assert not sent


@pytest.mark.parametrize("error", [OSError("disk is gone"), RuntimeError("out of memory")])
def test_all_end_with_what_the_first_one_failed_of(error, sent):
    def fail():
        raise error

    with pytest.raises(type(error), match=str(error)):
        of_first_process(fail, process(0))
    for index in (1, 2):
        message = f"process {index} ends, because the first one has failed: {type(error).__name__}: {error}"
        with pytest.raises(ValueError, match=message):
            of_first_process(fail, process(index))


@pytest.mark.parametrize("name", ["comparisons", "auto"])
def test_a_start_that_cannot_be_learned_or_chosen(name, sent, monkeypatch):
    """No process is left behind in `start_network`."""

    def fail(*_):
        raise ValueError("no clip can be read")

    monkeypatch.setattr(run_start, "_obstacle", lambda *_: None)
    monkeypatch.setattr(run_start, "_choose", fail)
    monkeypatch.setattr(run_start, "_some_clips", fail)
    network = TimeSformerForVideoClassification(
        TimeSformerConfig(
            image_size=16, patch_size=16, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=8, attention_type="divided_space_time",
        )
    )  # fmt: skip
    for index in range(3):
        first = "" if index == 0 else f"process {index} ends, .*: ValueError: "
        with pytest.raises(ValueError, match=f"^{first}no clip can be read$"):
            run_start.start_network(network, name, None, None, process(index), label_ids=[0])
