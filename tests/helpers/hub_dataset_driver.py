"""Reads data sets of a Hub, map-style and streamed, and prints what it found as JSON. A process of
its own, since `HF_ENDPOINT` is looked at when the libraries are imported.

    python hub_dataset_driver.py tester/clips ...
"""

import json
import sys

from hf_timesformer.data.dataset_factory import available_splits, find_videos
from hf_timesformer.data.record_video import decode_record


def brightness(record: dict) -> int:
    """Which clip it is: each is 30 brighter than the one before."""
    return round(float(decode_record(record, [0])[0].float().mean()) / 30)


def describe(name: str, streaming: bool) -> dict:
    """What `--dataset hub --data_dir user/name` finds."""
    found = find_videos("hub", name, "train", streaming=streaming)
    return {
        "splits": available_splits("hub", name),
        "class_names": found.class_names,
        "num_found": found.num_found,
        "shard_sizes": found.shard_sizes,
        "clips": sorted([brightness(row), row["label"]] for row in found.videos),
    }


if __name__ == "__main__":
    print(json.dumps({name: [describe(name, s) for s in (False, True)] for name in sys.argv[1:]}))
