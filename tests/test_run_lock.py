"""No two runs write the same files of a folder, and the dead hold nothing."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from filelock import FileLock

from hf_timesformer import run_lock
from hf_timesformer.run_lock import Work, only_run_in


# Holds what `torchrun --nproc_per_node 2` gives to its second process. The module alone, without
# the package, starts at once.
HOLD = f"""
import sys
sys.path.insert(0, {str(Path(run_lock.__file__).parent)!r})
from run_lock import Work, only_run_in
with only_run_in(sys.argv[1], Work("extract", (1, 2))):
    print("held", flush=True)
    input()
"""


def names(*given: str) -> Work:
    return Work("label", names=frozenset(given))


@pytest.mark.parametrize("parts", [(n, m) for n in range(1, 7) for m in range(1, 7)])
def test_parts_overlap_where_they_share_an_item(parts: tuple[int, int]):
    n, m = parts
    for i in range(n):
        for j in range(m):
            common = set(range(i, 60, n)) & set(range(j, 60, m))
            assert Work("extract", (i, n)).overlaps(Work("extract", (j, m))) == bool(common)


@pytest.mark.parametrize(
    ("one", "other", "overlap"),
    [
        (names("a", "b"), names("b", "c"), True),
        (names("a", "b"), names("c"), False),
        (names(), names("c"), False),  # a share without a video
        (names("a"), Work("train"), False),
        (Work("train"), Work("train"), True),
    ],
)
def test_names_overlap(one: Work, other: Work, overlap: bool):
    assert one.overlaps(other) == other.overlaps(one) == overlap


def test_another_process_holds_its_part_until_it_dies(tmp_path, monkeypatch, caplog):
    folder = tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout.readline()
        for part in [(1, 2), (0, 1), (3, 4)]:
            with (
                pytest.raises(ValueError, match=f"at work in {folder}: process {other.pid} on "),
                only_run_in(folder, Work("extract", part)),
            ):
                pass
        for part in [(0, 2), (2, 4)]:
            with only_run_in(folder, Work("extract", part)):
                pass
        assert len(list(folder.iterdir())) == 2  # the other one's
        other.kill()
    assert not caplog.text
    sign, lock = sorted(folder.iterdir())
    assert (sign.suffix, lock.suffix) == (".json", ".lock")
    # its process is gone, and somebody whom it began holds its lock on: that may end soon
    monkeypatch.setattr(run_lock, "WAIT_SECONDS", 0)
    with (
        FileLock(lock),
        pytest.raises(ValueError, match=f"at work in {folder}: process {other.pid} on "),
        only_run_in(folder, Work("extract")),
    ):
        pass
    assert f"holds {folder}: waiting up to 0 s" in caplog.text
    with only_run_in(folder, Work("extract")), only_run_in(folder, Work("extract")):
        (own,) = folder.glob("*.json")  # what the dead one left is gone
        assert own != sign
        assert f'"pid": {os.getpid()}' in own.read_text()
    assert not list(folder.iterdir())


@pytest.mark.parametrize("count", [2, 6])
def test_of_runs_that_start_together_one_stays(count, tmp_path, monkeypatch):
    """Threads, each with a sign and locks of its own, as processes have them. All put their signs
    before any looks for others, if they may.
    """
    all_signs, all_tried = threading.Barrier(count), threading.Barrier(count)
    write = run_lock._write_whole

    def write_and_wait(*given) -> None:
        write(*given)
        with suppress(threading.BrokenBarrierError):
            all_signs.wait(0.3)

    monkeypatch.setattr(run_lock, "_write_whole", write_and_wait)

    def start(number: int) -> str:
        try:
            with only_run_in(tmp_path, names("a", str(number))):
                all_tried.wait(60)
                return "stayed"
        except ValueError as error:
            all_tried.wait(60)
            return str(error)

    with ThreadPoolExecutor(count) as pool:
        said = sorted(pool.map(start, range(count)))
    assert said[-1] == "stayed"
    assert all(f"another run is at work in {tmp_path}" in other for other in said[:-1])
    assert not list(tmp_path.iterdir())


def test_two_never_stay_even_where_one_stands_still_in_the_door(tmp_path, monkeypatch):
    """The second one comes while the first one looks for others, and goes on without the lock."""
    look, refused = run_lock._find_other, []

    def second_comes(sign, work):
        monkeypatch.setattr(run_lock, "_find_other", look)
        with pytest.raises(ValueError, match="at work"), only_run_in(tmp_path, names("a", "b")):
            pass
        refused.append(True)
        return look(sign, work)

    monkeypatch.setattr(run_lock, "WAIT_SECONDS", 0)
    monkeypatch.setattr(run_lock, "_find_other", second_comes)
    with only_run_in(tmp_path, names("a")):
        assert refused
    assert not list(tmp_path.iterdir())


def test_a_disk_without_locks_is_said(tmp_path, monkeypatch, caplog):
    def acquire(self, timeout):
        raise NotImplementedError("no flock here")

    monkeypatch.setattr(FileLock, "acquire", acquire)
    with only_run_in(tmp_path, Work("train")):
        assert f"{tmp_path} cannot be locked (no flock here)" in caplog.text
