"""Which files are clips: what the decoder reads is what is listed."""

from pathlib import Path

import av
import numpy as np
import pytest

from hf_timesformer.data.clip_index import ClipIndex
from hf_timesformer.data.media_files import (
    SUFFIXES_OF_CONTAINER,
    VIDEO_EXTENSIONS,
    find_media,
    is_video,
    stem_of,
)
from hf_timesformer.video.decoding import probe_video
from hf_timesformer.video.decoding_source import CONTAINERS


# suffix, format, codec, pixel format: one of each kind of file that people have
KINDS = (
    ("3g2", "3g2", "mpeg4", "yuv420p"),
    ("asf", "asf", "wmv1", "yuv420p"),
    ("divx", "avi", "mpeg4", "yuv420p"),
    ("f4v", "f4v", "libx264", "yuv420p"),
    ("gif", "gif", "gif", "rgb8"),
    ("m2ts", "mpegts", "mpeg2video", "yuv420p"),
    ("mjpeg", "mjpeg", "mjpeg", "yuvj420p"),
    ("mxf", "mxf", "mpeg2video", "yuv420p"),
    ("ogv", "ogg", "libvpx", "yuv420p"),
    ("vob", "vob", "mpeg2video", "yuv420p"),
    ("webm", "webm", "libvpx", "yuv420p"),
    ("y4m", "yuv4mpegpipe", "wrapped_avframe", "yuv420p"),
)


def write_clip(
    path: Path, container_format: str, codec: str, pixel_format: str, frames: int = 6
) -> Path:
    with av.open(str(path), "w", format=container_format) as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pixel_format
        for value in range(frames):
            picture = np.full((48, 64, 3), 20 * value, np.uint8)
            container.mux(
                stream.encode(av.VideoFrame.from_ndarray(picture).reformat(format=pixel_format))
            )
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("suffix", "container_format", "codec", "pixel_format"), KINDS, ids=[k[0] for k in KINDS]
)
def test_what_is_listed_is_what_can_be_read(
    tmp_path: Path, suffix: str, container_format: str, codec: str, pixel_format: str
):
    """Whatever containers the decoder accepts: a file of an accepted one is a clip, another is
    counted.
    """
    path = write_clip(tmp_path / f"clip.{suffix}", container_format, codec, pixel_format)
    media = find_media(tmp_path)
    if suffix in VIDEO_EXTENSIONS:
        assert media.clips == [path]
        assert probe_video(path).total_num_frames == 6
    else:
        assert media.left_out == {f".{suffix}": 1}


def test_every_container_of_the_decoder_has_its_suffixes():
    unknown = set(CONTAINERS.split(",")) - SUFFIXES_OF_CONTAINER.keys()
    assert not unknown, f"name the suffixes of {unknown} in SUFFIXES_OF_CONTAINER"
    for suffix in (
        "3g2",
        "asf",
        "divx",
        "f4v",
        "gif",
        "mp4",
        "mkv",
        "webm",
        "avi",
        "mpg",
        "vob",
        "mts",
        "wmv",
    ):
        assert is_video(f"a.{suffix.upper()}")
    assert not is_video(".a.mp4")


def test_files_without_a_suffix_are_opened(tmp_path: Path):
    for name in ("clip", "Mr. Bean", "take 1.5", "AVSEQ01.DAT"):
        write_clip(tmp_path / name, "mpegts", "mpeg2video", "yuv420p")
    (tmp_path / "LICENSE").write_text("all rights reserved " * 50)
    (tmp_path / "data.dat").write_bytes(bytes(1000))
    media = find_media(tmp_path)
    assert [path.name for path in media.clips] == ["AVSEQ01.DAT", "Mr. Bean", "clip", "take 1.5"]
    assert media.left_out == {
        "without suffix and without a video in it": 1,
        ".dat without a video in it": 1,
    }


def test_what_the_message_says(tmp_path: Path):
    for name in ("a.mp4", "b.xyz", "c.xyz", "d.txt", "e.blend"):
        (tmp_path / name).touch()
    assert find_media(tmp_path).describe() == (
        "1 of 5 files used; left out: 2 .xyz (b.xyz), 1 .txt (d.txt), 1 .blend (e.blend); "
        "for videos among them add --extensions blend xyz or rename"
    )
    assert (
        find_media(tmp_path, ["XYZ"])
        .describe()
        .startswith("3 of 5 files used; left out: 1 .txt (d.txt)")
    )


@pytest.mark.parametrize(
    ("name", "stem"),
    [("a.mp4", "a"), ("v_1.5.webm", "v_1.5"), ("Mr. Bean", "Mr. Bean"), ("a.264", "a"), ("x", "x")],
)
def test_stem_of(name: str, stem: str):
    assert stem_of(name) == stem


@pytest.mark.parametrize(
    ("listed", "found"),
    [
        ("run/1.mp4", "clips/run/1.mp4"),
        ("run/1", "clips/run/1.mp4"),
        ("run\\1.avi", "clips/run/1.mp4"),
        ("/other/machine/jump/1.mp4", "clips/jump/1.mp4"),
        ("2.mp4", "clips/run/2.mp4"),
        ("somewhere/2.mp4", "clips/run/2.mp4"),  # no folder of that name is there
        ("jump/2.mp4", None),  # there is one, without that clip: the one in `run` is another
        ("run/3.mp4", None),
    ],
)
def test_where_a_listed_clip_is(tmp_path: Path, listed: str, found: str | None):
    for name in ("run/1.mp4", "run/2.mp4", "jump/1.mp4"):
        (tmp_path / "clips" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "clips" / name).touch()
    index = ClipIndex(tmp_path)
    assert index.locate(listed) == (found and tmp_path / found)
    with pytest.raises(
        ValueError, match=r"x/1.mp4 is not in .* may be .*jump/1.mp4 or .*run/1.mp4"
    ):
        index.locate("x/1.mp4")
