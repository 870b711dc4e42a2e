"""A video whose packets have to be read to be counted: one scan of the file, from which its frames
are numbered.

Why not by an index, as in mp4:

Matroska, WebM: their cues tell where key frames lie, not how many pictures lie between two: 4 cues
    of 40 pictures in a test. A frame's number would be a guess from its time.
AVI: `idx1` lists every chunk, but only a second time: players go by the chunks themselves, and the
    two may differ: one entry may be missing while its picture plays. Only a scan tells. Most have
    MPEG-4, whose packets may hold two pictures or none.
Transport streams, raw streams: there is nothing but packets.

The scan takes little more than FFmpeg's own reading (40 minutes of H.264 in Matroska, 60,000
packets: 0.29 s, of which 0.23 s in FFmpeg), and keeps no data: after it, only what wanted frames need
is read again.
"""

from collections.abc import Collection, Iterator

import av
import numpy as np
from transformers.utils import logging

from .decoding_codecs import INTRA_CODECS, START_TESTS, WAITING_CODECS, judge_of
from .decoding_mpeg4 import PictureSplitter
from .decoding_packets import DISCARD, KEY, NO_TIME, PacketTable, scan_packets
from .decoding_segment import FrameTimes
from .decoding_source import VideoFile
from .decoding_timeline import Timeline, timeline_of_packets, timeline_of_pictures


logger = logging.get_logger(__name__)

# Containers that store a presentation time for each picture. Elsewhere FFmpeg infers it, and infers
# it wrongly.
TIMED_CONTAINERS = {"mov", "mp4", "matroska", "webm", "mpegts", "flv"}
# Those whose packets FFmpeg numbers in the order of the file, which is a time where nothing is
# reordered.
NUMBERED_CONTAINERS = {"avi"}
# Those among the timed whose times are held against MPEG-4's own account of the order.
TIMED_MPEG4_CONTAINERS = {"mov", "mp4", "matroska", "webm"}
# Those in which a recording may begin anywhere. In files, what comes first is there to be decoded.
BROADCAST_CONTAINERS = {"mpegts", "h264", "hevc"}


class ScannedVideo:
    """What the packets of a video tell of it.

    num_frames: how many frames it has num_packets: how many packets may give one num_before: how
    many packets come before the first key frame of a recording that begins between two
    """

    def __init__(
        self, container: av.container.InputContainer, stream: av.VideoStream, video: VideoFile
    ):
        codec = stream.codec_context.name
        formats = set(container.format.name.split(","))
        self._stream = stream
        self._timeline: Timeline | None = None
        self.num_before = 0
        if codec == "mpeg4":
            self._scan_pictures(container, stream, video, bool(formats & TIMED_MPEG4_CONTAINERS))
        else:
            self._scan_packets(container, stream, video, formats)
        self.num_packets = self._table.num_shown()
        self.num_frames = self.num_packets
        if self._timeline is not None and self.num_packets - self._timeline.stop > allowed_gap(
            self.num_packets
        ):
            # many pictures marked as not coded: packets, but no frames
            self.num_frames = self._timeline.stop

    def _scan_pictures(
        self, container, stream: av.VideoStream, video: VideoFile, is_timed: bool
    ) -> None:
        splitter = PictureSplitter(stream.codec_context.extradata or b"")

        def judge(packet: av.Packet) -> int:
            splitter.feed(bytes(packet))
            return 0

        self._table = scan_packets(container, stream, video, judge)
        self._timeline = timeline_of_pictures(self._table, splitter, is_timed)

    def _scan_packets(
        self, container, stream: av.VideoStream, video: VideoFile, formats: set[str]
    ) -> None:
        decoder = stream.codec_context
        self._table = scan_packets(
            container, stream, video, judge_of(decoder.name, decoder.extradata or b"")
        )
        if decoder.name in WAITING_CODECS and formats & BROADCAST_CONTAINERS:
            self.num_before = _packets_before_key(self._table, video)
            self._table.drop_first(self.num_before)
        is_timed = formats & TIMED_CONTAINERS or (
            formats & NUMBERED_CONTAINERS and decoder.name in INTRA_CODECS
        )
        if is_timed and decoder.name in START_TESTS:
            self._timeline = timeline_of_packets(self._table, decoder.name, is_whole=True)

    def timelines(self, wanted: Collection[int]) -> Iterator[Timeline]:
        """The one timeline of the video; none where only decoding can tell."""
        if self._timeline is not None:
            yield self._timeline

    def first_unit(self) -> av.Packet | None:
        """The first unit of the timeline, from which a decoder learns the encoder's version and the
        frame size.
        """
        return None if self._timeline is None else next(self._timeline.units.read(0, 1), None)

    def times(self) -> FrameTimes | None:
        """When each frame is shown: by the packets' own times where all have one, else by the frame
        rate.
        """
        pts = np.frombuffer(self._table.pts, dtype=np.int64)
        flags = np.frombuffer(self._table.flags, dtype=np.uint8)
        ticks = np.unique(pts[(flags & DISCARD == 0) & (pts != NO_TIME)])
        if len(ticks) == self.num_frames and self._stream.time_base:
            return FrameTimes.from_ticks(ticks, self._stream.time_base)
        rate = self._stream.average_rate or self._stream.guessed_rate
        return FrameTimes.evenly(self.num_frames, float(rate)) if rate else None

    scanned_times = times

    def confirms(self, times: FrameTimes, numbers: Collection[int]) -> bool:
        """True: these times are the packets' own."""
        return True


def allowed_gap(count: int) -> int:
    """How many frames fewer than packets a healthy video may give (HMDB51's files: one fewer)."""
    return max(2, count // 100)


def _packets_before_key(table: PacketTable, video: VideoFile) -> int:
    """How many packets a recording has before its first key frame; FFmpeg's decoders give no frame
    for them.
    """
    flags = np.frombuffer(table.flags, dtype=np.uint8)
    keys = np.flatnonzero(flags & KEY)
    if not len(keys) or not keys[0]:
        return 0
    logger.warning_once(
        f"{video.name}: begins between two key frames; its first {keys[0]} packets cannot be decoded and are left out"
    )
    return int(keys[0])
