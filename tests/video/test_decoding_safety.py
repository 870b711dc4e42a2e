"""Untrusted files: nothing beside the video is read, no address is opened, nothing is without
bounds.
"""

import http.server
import io
import os
import threading
from pathlib import Path

import pytest
import torch
from decoding_clips import encode, picture_sequence

from hf_timesformer.video.decoding import DecodeLimits, VideoDecodeError, decode_video, probe_video


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video that no attack may read: a leak would decode."""
    return encode(tmp_path_factory.mktemp("secret") / "secret.mp4", picture_sequence(8))


class Server(http.server.ThreadingHTTPServer):
    """A loopback server of one video that counts what is asked of it."""

    def __init__(self, data: bytes):
        self.data, self.requests, self.redirect = data, [], None
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        if self.path == "/redirect":
            self.send_response(302)
            self.send_header("Location", self.server.redirect)
            self.end_headers()
            return
        if self.path == "/missing":
            self.send_error(404)
            return
        self.send_response(200)
        if self.path == "/endless":
            self.end_headers()
            while True:
                try:
                    self.wfile.write(bytes(1 << 16))
                except OSError:
                    return
        self.send_header("Content-Length", str(len(self.server.data)))
        self.end_headers()
        self.wfile.write(self.server.data)

    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def server(secret: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("no_proxy", "*")
    server = Server(secret.read_bytes())
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
    )
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def attacks(secret: Path, url: str) -> dict[str, bytes]:
    """Files that lead elsewhere, to the secret or to the server."""
    hls = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:10\n#EXTINF:10.0,\n{}\n#EXT-X-ENDLIST\n"
    dash = (
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
        'mediaPresentationDuration="PT1S"><Period><AdaptationSet mimeType="video/mp4"><Representation id="1" '
        'bandwidth="1"><BaseURL>{}</BaseURL></Representation></AdaptationSet></Period></MPD>'
    )
    sdp = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
    sdp += "m=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n"
    smooth = '<SmoothStreamingMedia MajorVersion="2"><StreamIndex Url="{}"/></SmoothStreamingMedia>'
    texts = {"sdp": sdp, "imf": f'<?xml version="1.0"?><AssetMap><Path>{secret}</Path></AssetMap>'}
    for place, target in (("file", secret), ("address", f"{url}/clip.mp4")):
        texts[f"ffconcat-{place}"] = f"ffconcat version 1.0\nfile '{target}'\n"
        texts[f"hls-{place}"] = hls.format(target)
        texts[f"dash-{place}"] = dash.format(target)
        texts[f"smooth-{place}"] = smooth.format(target)
        texts[f"m3u-{place}"] = f"#EXTM3U\n{target}\n"
        texts[f"pls-{place}"] = f"[playlist]\nFile1={target}\n"
        texts[f"asx-{place}"] = f'<asx version="3.0"><entry><ref href="{target}"/></entry></asx>'
        texts[f"rtsp-{place}"] = f"[Reference]\nRef1={target}\n"
    return {name: text.encode() for name, text in texts.items()}


NAMES = sorted(attacks(Path("secret"), "http://localhost"))


@pytest.mark.parametrize("name", NAMES)
def test_files_that_lead_elsewhere(tmp_path, secret, server, name):
    data = attacks(secret, server.url)[name]
    for suffix in (".mp4", ".m3u8", ".txt"):
        path = tmp_path / f"clip{suffix}"
        path.write_bytes(data)
        with path.open("rb") as file:
            for source in (path, data, file):
                with pytest.raises(VideoDecodeError) as caught:
                    decode_video(source, [0], allow_urls=True)
                assert caught.value.reason == "container"
    assert server.requests == []


PREFIXES = [
    "concat:{0}|{0}",
    "concatf:{0}",
    "subfile:,,start,0,end,0,,:{0}",
    "file:{0}",
    "async:{0}",
    "cache:{0}",
    "crypto:{0}",
    "pipe:0",
    "fd:0",
    "data:video/mp4;base64,AAAA",
    "lavfi:testsrc",
    "hls+file:{0}",
    "tee:{0}",
]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_protocol_prefixes_are_names_of_files_that_are_missing(secret, prefix):
    with pytest.raises(VideoDecodeError) as caught:
        decode_video(prefix.format(secret), [0], allow_urls=True)
    assert caught.value.reason == "not-found"


def test_file_whose_name_is_a_prefix_is_just_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.rename(encode(tmp_path / "clip.mp4", picture_sequence(4)), "concat:clip.mp4")
    assert decode_video("concat:clip.mp4", [3])[0].shape == (1, 3, 48, 64)


@pytest.mark.parametrize("name", ["secret", "address", "pattern"])
def test_name_of_a_file_object_means_nothing(secret, server, name):
    class Named(io.BytesIO):
        pass

    file = Named(b"#EXTM3U\n#EXTINF:1,\nsecret.mp4\n")
    file.name = {
        "secret": str(secret),
        "address": f"{server.url}/clip.mp4",
        "pattern": f"{secret.parent}/%d.png",
    }[name]
    with pytest.raises(VideoDecodeError) as caught:
        decode_video(file, [0], allow_urls=True)
    assert caught.value.reason == "container"
    assert server.requests == []


def test_file_object_that_returns_more_than_asked(secret):
    class Generous(io.BytesIO):
        def read(self, size=-1):
            return super().read(size) + bytes(1 << 20)

    assert torch.equal(
        decode_video(Generous(secret.read_bytes()), [3])[0], decode_video(secret, [3])[0]
    )


@pytest.mark.parametrize("scheme", ["http", "https", "HTTP"])
def test_addresses_are_refused_by_default(server, scheme):
    url = f"{scheme}{server.url.removeprefix('http')}/clip.mp4"
    for call in (lambda: decode_video(url, [0]), lambda: probe_video(url)):
        with pytest.raises(VideoDecodeError, match="refused unless allow_urls=True") as caught:
            call()
        assert caught.value.reason == "url"
    assert server.requests == []


@pytest.mark.parametrize(
    "url",
    ["ftp://127.0.0.1/x.mp4", "rtsp://127.0.0.1/x", "rtmp://127.0.0.1/x", "tcp://127.0.0.1:1"],
)
def test_other_schemes_are_refused_always(url):
    with pytest.raises(VideoDecodeError, match=r"only http\(s\) addresses") as caught:
        decode_video(url, [0], allow_urls=True)
    assert caught.value.reason == "url"


def test_address_that_is_allowed_is_fetched_once(secret, server):
    frames, _ = decode_video(f"{server.url}/clip.mp4", [2, 7], allow_urls=True)
    assert torch.equal(frames, decode_video(secret, [2, 7])[0])
    assert server.requests == ["/clip.mp4"]


def test_limits_of_a_download(secret, server):
    small = DecodeLimits(max_bytes=1000)
    for path, message in (
        ("/clip.mp4", "more than the limit of 1000"),
        ("/endless", "more bytes than the limit of 1000"),
    ):
        with pytest.raises(VideoDecodeError, match=message) as caught:
            decode_video(server.url + path, [0], allow_urls=True, limits=small)
        assert caught.value.reason == "limit"
    with pytest.raises(VideoDecodeError, match=r"longer than the limit of 0\.2 s") as caught:
        decode_video(
            f"{server.url}/endless", [0], allow_urls=True, limits=DecodeLimits(max_seconds=0.2)
        )
    with pytest.raises(VideoDecodeError, match=r"could not be downloaded.*404") as caught:
        decode_video(f"{server.url}/missing", [0], allow_urls=True)
    assert caught.value.reason == "fetch"


def test_redirect_to_a_file_is_not_followed(secret, server):
    for target in (f"file://{secret}", "ftp://127.0.0.1/x"):
        server.redirect = target
        with pytest.raises(VideoDecodeError) as caught:
            decode_video(f"{server.url}/redirect", [0], allow_urls=True)
        assert caught.value.reason == "fetch"
    server.redirect = f"{server.url}/clip.mp4"
    assert decode_video(f"{server.url}/redirect", [0], allow_urls=True)[0].shape == (1, 3, 48, 64)


def test_endless_streams_end():
    class Endless(io.RawIOBase):
        def readable(self):
            return True

        def read(self, size=-1):
            return bytes(1 << 20)

    with pytest.raises(VideoDecodeError, match="more bytes than the limit") as caught:
        decode_video(Endless(), [0], limits=DecodeLimits(max_bytes=10 << 20))
    assert caught.value.reason == "limit"


def test_pipe_is_refused_without_waiting(tmp_path):
    pipe = tmp_path / "pipe.mp4"
    os.mkfifo(pipe)
    with pytest.raises(VideoDecodeError) as caught:
        decode_video(pipe, [0])
    assert caught.value.reason == "not-a-file"


def test_bomb_by_declared_size(tmp_path):
    """A file of a few bytes that says its pictures are 16000 x 16000, in the container and in the
    stream alike.
    """
    path = encode(tmp_path / "clip.webm", picture_sequence(2), "libvpx", options={"cpu-used": "8"})
    data = path.read_bytes()
    width, height = (64).to_bytes(2, "little"), (48).to_bytes(2, "little")
    big = (16000).to_bytes(2, "little")
    start = data.index(b"\x9d\x01\x2a" + width + height)  # the key frame's own size
    bomb = data[: start + 3] + big + big + data[start + 7 :]
    with pytest.raises(VideoDecodeError) as caught:
        decode_video(bomb, [0])
    assert caught.value.reason in ("limit", "damaged")


def test_bomb_by_number_of_frames(tmp_path):
    """Tiny pictures, many of them: the limit stops the count."""
    raw = encode(tmp_path / "clip.h264", picture_sequence(2, 16, 16))
    bomb = raw.read_bytes() * 2000
    with pytest.raises(VideoDecodeError, match="more than the limit of 1000 frames") as caught:
        decode_video(bomb, [0], limits=DecodeLimits(max_frames=1000))
    assert caught.value.reason == "limit"
