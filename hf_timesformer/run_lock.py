"""Which runs are at work on what in an output folder, so that no two write the same files.

A run that works in a folder puts two files there: `_run-<id>.lock`, which the operating system
keeps locked for it, and `_run-<id>.json`, which says who it is and what it works on. With the end
of a run, even by `kill -9`, its lock is free; the next run sees that and removes both files. For
the moment in which a run looks for others and puts its files there, it holds `_run.lock`.
"""

import json
import logging
import math
import os
import platform
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout


logger = logging.getLogger(__name__)

WAIT_SECONDS = 20  # decoding workers outlive a killed run by some seconds, and hold its lock
_held: set[tuple[Path, "Work"]] = set()  # what this process has already


@dataclass(frozen=True)
class Work:
    """What a run writes in a folder.

    Args:
        command: which command it is; the files of different ones have nothing in common.
        part: `(i, n)`, the i-th, from 0, of n equal shares of all there is.
        names: in place of a part, the names of what it writes.
    """

    command: str
    part: tuple[int, int] = (0, 1)
    names: frozenset[str] | None = None

    def overlaps(self, other: "Work") -> bool:
        """Whether two runs of these would write the same files.

        Part i of n has the items whose number leaves the remainder i by n. So where i and j leave
        different ones by a divisor of both n and m, the parts have nothing in common:

            1/2 is 1, 3, 5, 7, ...     0/4 is 0, 4, ...: nothing     3/4 is 3, 7, ...: all of it
        """
        if self.command != other.command:
            return False
        if self.names is not None and other.names is not None:
            return not self.names.isdisjoint(other.names)
        return (self.part[0] - other.part[0]) % math.gcd(self.part[1], other.part[1]) == 0


@dataclass(frozen=True)
class _Run:
    """A run that has put its files into a folder, as they say."""

    pid: int
    host: str
    work: Work

    @classmethod
    def read(cls, text: str) -> "_Run":
        found: dict[str, Any] = json.loads(text)
        work = found["work"]
        names = None if work["names"] is None else frozenset(work["names"])
        return cls(found["pid"], found["host"], Work(work["command"], tuple(work["part"]), names))

    def written(self) -> str:
        work = asdict(self.work)
        if self.work.names is not None:
            work["names"] = sorted(self.work.names)
        return json.dumps({"pid": self.pid, "host": self.host, "work": work})

    def is_seen_alive(self) -> bool:
        """Whether its process is there; False as well where nobody here can tell."""
        if self.host != platform.node() or os.name != "posix":
            return False
        try:
            os.kill(self.pid, 0)  # sends nothing
        except ProcessLookupError:
            return False
        except PermissionError:  # it is there, and somebody else's
            return True
        return True


@contextmanager
def only_run_in(output_dir: str | Path, work: Work) -> Iterator[None]:
    """Keep other runs off this work in the folder while this one is alive; also a `kill -9` gives
    it back.

    The launchers of torch and accelerate start every process in a session of its own, so a kill may
    miss one, which writes on. A process that has the same work already keeps it. Raises ValueError
    where another run has some of it: at once where its process is there, else after a while in
    which what is left of it may end.
    """
    folder = Path(output_dir).resolve()
    if (folder, work) in _held:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    sign = folder / f"_run-{uuid.uuid4().hex[:12]}.json"  # `_` keeps Trainer from pushing it
    lock = FileLock(_lock_of(sign))
    try:
        lock.acquire(timeout=0)
    except (OSError, NotImplementedError) as error:
        logger.warning(
            "%s cannot be locked (%s): two runs in it would not notice each other", folder, error
        )
        yield
        return
    try:
        _come_in(output_dir, sign, work)
        _held.add((folder, work))
        yield
    finally:
        _held.discard((folder, work))
        _remove(sign, lock)


def _come_in(output_dir: str | Path, sign: Path, work: Work) -> None:
    """Put the own sign where no other run has some of this work, or wait until none has."""
    end: float | None = None
    while (other := _put_sign(sign, work)) is not None:
        if other.is_seen_alive():
            raise _refusal(output_dir, other)
        if end is None:
            end = time.monotonic() + WAIT_SECONDS
            logger.warning(
                "another run, or what is left of a killed one (process %d on %s), holds %s: waiting up to %d s",
                other.pid, other.host, output_dir, WAIT_SECONDS,
            )  # fmt: skip
        if time.monotonic() >= end:
            raise _refusal(output_dir, other)
        time.sleep(0.2)


def _put_sign(sign: Path, work: Work) -> _Run | None:
    """Put the own sign, whose lock is held already: a sign whose lock is free is of the dead. Where a
    run is alive that has some of this work, take the sign away again, and say which run it is.
    """
    with _one_at_a_time(sign.parent):
        _write_whole(sign, _Run(os.getpid(), platform.node(), work).written())
        other = _find_other(sign, work)
        if other is not None:
            sign.unlink()
        return other


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Of runs that come in together, one is first: it finds nobody, and the others find it.

    This settles only who stays. That two never stay comes from the order, first the own sign, then a
    look at those of others: without the lock, each of the two would see the other one, and leave.
    So whoever does not get it for long, because its holder has been stopped, goes on without it.
    """
    door = folder / "_run.lock"
    lock = FileLock(door)
    try:
        lock.acquire(timeout=WAIT_SECONDS, poll_interval=0.01)
    except Timeout:
        yield
        return
    try:
        yield
    finally:
        with suppress(OSError):  # Windows keeps a file that is open
            door.unlink()
        lock.release()


def _refusal(output_dir: str | Path, other: _Run) -> ValueError:
    return ValueError(
        f"another run is at work in {output_dir}: process {other.pid} on {other.host}. Let it finish, or end all of "
        "its processes, those too that outlived their launcher, or choose another --output_dir"
    )


def _find_other(own: Path, work: Work) -> _Run | None:
    """A run that is alive and has some of this work; the files of the dead are removed."""
    for sign in sorted(own.parent.glob("_run-*.json")):
        if sign == own:
            continue
        try:
            other = _Run.read(sign.read_text(encoding="utf-8"))
        except FileNotFoundError:  # it has ended just now
            continue
        lock = FileLock(_lock_of(sign))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if work.overlaps(other.work):
                return other
        else:
            _remove(sign, lock)
    return None


def _lock_of(sign: Path) -> Path:
    return sign.with_suffix(".lock")


def _write_whole(path: Path, text: str) -> None:
    """Write a file that nobody can read by half."""
    beside = path.with_suffix(".new")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)


def _remove(sign: Path, lock: FileLock) -> None:
    """Take a sign away, and then its lock."""
    sign.unlink(missing_ok=True)
    lock.release()
    with suppress(OSError):  # Windows keeps a file that somebody looks at
        _lock_of(sign).unlink()
