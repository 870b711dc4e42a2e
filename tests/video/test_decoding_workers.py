"""Decoding beside torch, in real processes with time limits: workers, early exits, leaks, mutated
files.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import av
import pytest
from decoding_clips import make_clip


HELPERS = Path(__file__).resolve().parents[1] / "helpers"
FUZZED = [
    "b-frames.mp4",
    "b-pyramid.mkv",
    "mpeg4-b.avi",
    "packed.avi",
    "vp9.webm",
    "stream.ts",
    "hevc.mp4",
    "picture.gif",
    "raw.h264",
]

LOADER = """
import sys
import torchvision.io, torchvision.transforms.v2  # first, with whatever it loads
import torch
from torch.utils.data import DataLoader, Dataset
from hf_timesformer.video.decoding import VideoDecodeError, decode_video

class Clips(Dataset):
    def __init__(self, paths):
        self.paths = paths
    def __len__(self):
        return len(self.paths)
    def __getitem__(self, index):
        return decode_video(self.paths[index], [0, 20, 39], short_side=32)[0]

def sums(workers, method):
    loader = DataLoader(
        Clips([{clip!r}] * 8), batch_size=2, num_workers=workers,
        multiprocessing_context=method if workers else None,
    )
    return [int(batch.sum()) for batch in loader]

def main():
    torch.nn.functional.conv2d(torch.rand(4, 3, 64, 64), torch.rand(8, 3, 3, 3))  # torch's own threads are up
    expected = sums(0, None)
    assert len(set(expected)) == 1 and expected[0] > 0
    method, workers = {method!r}, {workers}
    assert sums(workers, method) == expected
    loader = DataLoader(Clips([{clip!r}] * 8), num_workers=workers, multiprocessing_context=method)
    for batch in loader:
        break  # an early exit
    del loader
    broken = Clips([{clip!r}, {clip!r}, "missing.mp4", {clip!r}])
    loader = DataLoader(broken, num_workers=workers, multiprocessing_context=method)
    try:
        list(loader)
    except VideoDecodeError as error:
        assert "missing.mp4: cannot be opened" in str(error), error
    else:
        raise AssertionError("the broken clip went unnoticed")
    print("done")

if __name__ == "__main__":
    main()
"""

GROWTH = """
import os, resource, sys
from hf_timesformer.video.decoding import VideoDecodeError, decode_video

def open_files():
    return len(os.listdir("/proc/self/fd"))

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

print("imported", file=sys.stderr, flush=True)
data = open({clip!r}, "rb").read()
sources = [{clip!r}, data, data[: len(data) // 2], b"no video", data[:50] + data[90:]]
def some(count):
    for index in range(count):
        try:
            decode_video(sources[index % len(sources)], [0], short_side=16)
        except VideoDecodeError:
            pass
some(200)
files, memory, threads = open_files(), resident(), len(os.listdir("/proc/self/task"))
some(1000)
assert open_files() == files, (files, open_files())
assert len(os.listdir("/proc/self/task")) == threads
assert resident() - memory < 16 << 20, (memory, resident())
print("done")
"""


def run_python(code_or_args: list[str], seconds: int) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "PYTHONPATH": str(HELPERS.parents[1])}
    return subprocess.run(
        [sys.executable, *code_or_args],
        capture_output=True,
        text=True,
        timeout=seconds,
        env=environment,
        check=False,
    )


@pytest.mark.parametrize(("workers", "method"), [(1, "fork"), (2, "fork"), (2, "spawn")])
def test_data_loader(tmp_path, workers, method):
    script = tmp_path / "loader.py"
    clip = make_clip(tmp_path, "b-frames.mp4")
    script.write_text(LOADER.format(clip=str(clip), workers=workers, method=method))
    result = run_python([str(script)], seconds=300)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.strip() == "done"


def test_thousand_opens_leave_nothing_behind(tmp_path):
    clip = make_clip(tmp_path, "b-frames.mp4")
    result = run_python(["-c", GROWTH.format(clip=str(clip))], seconds=300)
    assert result.returncode == 0, result.stderr[-3000:]
    if tuple(map(int, av.__version__.split(".")[:2])) >= (18, 1):  # PyAV before it lets them out
        # FFmpeg's complaints stay inside; what libraries say when they are imported is theirs
        assert result.stderr.partition("imported\n")[1:] == ("imported\n", "")
    assert result.stdout.strip() == "done"


def test_mutated_files(tmp_path):
    clips = [str(make_clip(tmp_path, name)) for name in FUZZED]
    result = run_python(
        [str(HELPERS / "fuzz_decoding.py"), *clips, "--count", "300", "--seed", "4"], seconds=300
    )
    assert result.stdout, f"died at mutation {result.stderr[-300:]}"
    summary = json.loads(result.stdout)
    assert summary["failures"] == []
    assert result.returncode == 0
    assert summary["slowest_cpu_seconds"] < 10
    assert summary["outcomes"]["frames"] > 50  # the mutations are not all fatal
    assert summary["outcomes"]["damaged"] > 10
