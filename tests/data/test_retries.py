"""A file system that fails now and then costs no clip; a file that is not there is not waited for."""

import builtins
import errno
import io
from pathlib import Path

import numpy as np
import pytest

from hf_timesformer.data import retries
from hf_timesformer.data.preparation.scan import Listed, scan_video
from hf_timesformer.data.retries import read_with_retries
from hf_timesformer.video.decoding import VideoDecodeError, decode_video
from hf_timesformer.video.encoding import write_video


@pytest.fixture
def pauses(monkeypatch) -> list[float]:
    """The pauses that were made; nobody waits."""
    made: list[float] = []
    monkeypatch.setattr(retries.time, "sleep", made.append)
    return made


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    # more than one read's worth
    noise = np.random.default_rng(0).integers(0, 255, (12, 160, 240, 3), np.uint8)
    return write_video(tmp_path / "clip.mp4", noise, options={"crf": "10", "preset": "ultrafast"})


def is_decoders(path, options: dict, clip: Path) -> bool:
    """Whether a file is opened to be decoded: without a buffer. What only looks at its first bytes
    may fail.
    """
    return str(path) == str(clip) and options.get("buffering") == 0


class FlakyFile(io.FileIO):
    """A file of which the reads with these numbers fail."""

    failing: set[int] = set()
    count = 0

    def read(self, size: int = -1) -> bytes:
        FlakyFile.count += 1
        if FlakyFile.count in self.failing:
            raise OSError(errno.EIO, "Input/output error")
        return super().read(size)


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO, errno.ETIMEDOUT, errno.EACCES])
@pytest.mark.parametrize("failures", [1, 3])
def test_a_file_that_cannot_be_opened_for_a_moment(
    clip: Path, monkeypatch, pauses, number: int, failures: int
):
    real_open, calls = builtins.open, []

    def flaky(path, *args, **options):
        if is_decoders(path, options, clip):
            calls.append(path)
            if len(calls) <= failures:
                raise OSError(number, "hiccup")
        return real_open(path, *args, **options)

    monkeypatch.setattr(builtins, "open", flaky)
    frames, _ = read_with_retries(lambda: decode_video(clip, [3, 7]), "clip")
    assert pauses == list(retries.PAUSES[:failures])
    monkeypatch.setattr(builtins, "open", real_open)
    assert (frames == decode_video(clip, [3, 7])[0]).all()


@pytest.mark.parametrize("at", [1, 2, 3, 4, 5, 6])
def test_a_read_that_fails_in_the_middle(clip: Path, monkeypatch, pauses, at: int):
    expected, _ = decode_video(clip, range(12))
    FlakyFile.count, FlakyFile.failing = 0, {at}
    real_open = builtins.open

    def opened(path, *args, **options):
        return (
            FlakyFile(path)
            if is_decoders(path, options, clip)
            else real_open(path, *args, **options)
        )

    monkeypatch.setattr(builtins, "open", opened)
    frames, _ = read_with_retries(lambda: decode_video(clip, range(12)), "clip")
    assert FlakyFile.count >= at, "the file was read in fewer pieces"
    assert pauses == [retries.PAUSES[0]]
    assert (frames == expected).all()


def test_what_lasts_is_not_waited_for(tmp_path: Path, pauses):
    (tmp_path / "text.mp4").write_text("no video " * 100)
    for path in (tmp_path / "nowhere.mp4", tmp_path / "text.mp4", tmp_path):
        with pytest.raises(VideoDecodeError):
            read_with_retries(lambda path=path: decode_video(path, [0]), "clip")
    with pytest.raises(KeyError):
        read_with_retries(lambda: {}["x"], "clip")
    assert pauses == []


def test_a_file_system_that_stays_broken_is_the_fault_in_the_manifest(
    clip: Path, monkeypatch, pauses
):
    real_open = builtins.open

    def broken(path, *args, **options):
        if is_decoders(path, options, clip):
            raise OSError(errno.EIO, "Input/output error")
        return real_open(path, *args, **options)

    monkeypatch.setattr(builtins, "open", broken)
    row = scan_video(Listed("train", "a", str(clip), "clip.mp4", 0, "run"), "frames")
    assert row["status"] == "fault"
    assert "Input/output error" in row["message"]
    assert pauses == list(retries.PAUSES)
