"""Tar shards made by hand."""

import io
import tarfile
from pathlib import Path


def pack(shard: Path, clips: list[Path]) -> None:
    with tarfile.open(shard, "w") as tar:
        for clip in clips:
            tar.add(clip, f"{clip.stem}.mp4")
            label = clip.parent.name.encode()
            info = tarfile.TarInfo(f"{clip.stem}.cls")
            info.size = len(label)
            tar.addfile(info, io.BytesIO(label))
