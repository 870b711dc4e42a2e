"""Mutated video files against the decoder:
`python tests/fuzz_decoding.py CLIP... --count 10000 --seed 1`.

Each mutation is decoded here, in this process: run it as a child, so that a crash or a hang is seen
from outside. The last line of the output is a JSON summary; the exit code is 1 where anything but
frames or `VideoDecodeError` came out.
"""

import argparse
import json
import random
import resource
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

from hf_timesformer.video.decoding import VideoDecodeError, decode_video, probe_video


def flip_bits(data: bytes, other: bytes, rng: random.Random) -> bytes:
    mutated = bytearray(data)
    # Every second time only near the ends, where containers keep their tables.
    edge = rng.random() < 0.5
    for _ in range(rng.choice((1, 3, 20, 200))):
        at = rng.randrange(min(4096, len(data))) if edge else rng.randrange(len(data))
        if edge and rng.random() < 0.5:
            at = len(data) - 1 - at
        mutated[at] ^= 1 << rng.randrange(8)
    return bytes(mutated)


def cut_end(data: bytes, other: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def cut_out(data: bytes, other: bytes, rng: random.Random) -> bytes:
    first, last = sorted(rng.randrange(len(data)) for _ in range(2))
    return data[:first] + data[last:]


def splice(data: bytes, other: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))] + other[rng.randrange(len(other)) :]


def overwrite(data: bytes, other: bytes, rng: random.Random) -> bytes:
    at, size = rng.randrange(len(data)), rng.choice((4, 64, 1024, 16384))
    filling = rng.choice((b"\0" * size, b"\xff" * size, rng.randbytes(size), other[:size]))
    return data[:at] + filling + data[at + size :]


MUTATIONS = (flip_bits, flip_bits, cut_end, cut_out, splice, overwrite)


def decode_one(data: bytes, rng: random.Random) -> str:
    """Decode a few frames of `data`; the outcome in a word. The calls are those that training
    makes.
    """
    try:
        if rng.random() < 0.1:
            probe_video(data)
        frames, metadata = decode_video(
            data,
            lambda metadata: [
                rng.randrange(metadata.total_num_frames) for _ in range(rng.choice((1, 4, 8)))
            ],
            short_side=rng.choice((None, 32)),
        )
    except VideoDecodeError as error:
        return error.reason
    assert frames.shape[0] == len(metadata.frames_indices)
    return "frames"


def fuzz(clips: list[bytes], count: int, seed: int) -> dict:
    """Decode `count` mutations of `clips` and count what came out."""
    outcomes: Counter[str] = Counter()
    failures = []
    slowest = (0.0, -1)
    for index in range(count):
        rng = random.Random(f"{seed}/{index}")
        data, other = rng.choice(clips), rng.choice(clips)
        mutated = rng.choice(MUTATIONS)(data, other, rng)
        # the last one printed is the one that crashed or hung
        print(index, end=" ", file=sys.stderr, flush=True)
        begin = time.process_time()
        try:
            outcomes[decode_one(mutated, rng)] += 1
        # the one place where everything is caught: it is what this program looks for
        except Exception:
            failures.append({"index": index, "error": traceback.format_exc()})
        slowest = max(slowest, (time.process_time() - begin, index))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return {
        "count": count,
        "seed": seed,
        "outcomes": dict(outcomes),
        "failures": failures,
        "slowest_cpu_seconds": round(slowest[0], 3),
        "slowest_index": slowest[1],
        "peak_memory_mb": peak,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clips", nargs="+", type=Path)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    summary = fuzz([clip.read_bytes() for clip in arguments.clips], arguments.count, arguments.seed)
    print(json.dumps(summary))
    return 1 if summary["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
