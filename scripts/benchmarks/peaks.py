"""The memory that a work takes at its worst moment, in a process of its own."""

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from works import Work, build, make_clip, runner


def measure_peak(work: Work, kind: str, args: argparse.Namespace) -> float:
    """MiB above the weights at the worst moment, in a process of its own.

    There glibc gives every large buffer back at once: what it would keep depends on the order of
    sizes more than on how much is in use.
    """
    command = [sys.executable, str(Path(__file__).parent), "model", "--threads", str(args.threads)]
    request = json.dumps({"work": asdict(work), "kind": kind})
    command += ["--layers", str(args.layers), "--peak", request]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**16)}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def peak_of_child(request: dict, layers: int) -> float:
    work = Work(**request["work"])
    model, clip = build(work, request["kind"], layers), make_clip(work)
    call = runner(model, clip, work)
    if torch.cuda.is_available():
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    torch.nn.Linear(64, 64)(torch.randn(64, 64)).softmax(-1)  # the libraries' own first-time memory
    gc.collect()
    # else what was freed while building would be taken for the weights'
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = read_status("VmRSS")
    call()
    return (read_status("VmHWM") - before) / 1024


def read_status(field: str) -> int:
    """A field of the process' status in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])
