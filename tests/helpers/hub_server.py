"""A Hub on loopback: the parts of the Hugging Face Hub's HTTP API that publishing and loading a
model need.

It keeps what the Hub keeps (branches, commits, LFS objects by SHA-256) in memory, checks what the
Hub checks (token, card metadata, size and SHA-256 of an LFS object, its presence before a commit
names it) and applies a commit whole or not at all. `faults` makes it fail where a test wants it to.
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit

import yaml


TOKEN = "hf_" + "LoopbackTokenOfTheTests".ljust(34, "0")
USER = "tester"
# A repository in an address: `tester/model` of a model, `datasets/tester/clips` of a data set.
API = r"/api/(?:models/)?(?P<repo>(?:datasets/)?[^/]+/[^/]+)"
REPO = r"/(?P<repo>(?:datasets/)?[^/]+/[^/]+)"
LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".png", ".mp4")


def git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass(frozen=True)
class File:
    """One file of a commit: a git blob, or a pointer to the LFS object with this SHA-256."""

    data: bytes
    sha256: str | None = None

    @property
    def etag(self) -> str:
        return self.sha256 or git_sha1(self.data)

    def describe(self) -> dict:
        info = {"type": "file", "oid": git_sha1(self.data), "size": len(self.data)}
        return (
            {**info, "lfs": {"oid": self.sha256, "size": len(self.data), "pointerSize": 134}}
            if self.sha256
            else info
        )


@dataclass
class Repo:
    private: bool
    branches: dict[str, str] = field(default_factory=dict)  # name -> commit
    commits: dict[str, dict[str, File]] = field(default_factory=dict)  # commit -> files
    messages: list[str] = field(default_factory=list)

    def commit(self, branch: str, files: dict[str, File], message: str) -> str:
        seed = f"{len(self.commits)}{branch}{message}".encode() + b"".join(
            f.etag.encode() for f in files.values()
        )
        oid = hashlib.sha1(seed).hexdigest()
        self.commits[oid], self.branches[branch] = files, oid
        self.messages.append(message)
        return oid

    def files(self, revision: str = "main") -> dict[str, File]:
        return self.commits[self.branches.get(revision, revision)]


class HubError(Exception):
    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


class Hub:
    """Run the server as a context manager; `url` goes to `HF_ENDPOINT`."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.log: list[tuple[str, str]] = []  # (method, path) of every request
        self.ranges: list[str] = []  # Range headers that were served
        # "commit" or "put" -> what the next requests do: "500", "403", "drop"
        self.faults: dict[str, list[str]] = {}
        self.lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"hub": self})
        self.servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler) for _ in range(2)]
        # As on the Hub, large objects live at another host, which must never see a token: another
        # name, since huggingface_hub before 2 takes two ports of one host for the same.
        hosts = zip(("127.0.0.1", "localhost"), self.servers)
        self.url, self.storage = (
            f"http://{host}:{server.server_address[1]}" for host, server in hosts
        )

    def __enter__(self) -> "Hub":
        for server in self.servers:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        for server in self.servers:
            server.shutdown()
            server.server_close()

    def names(self, repo_id: str, revision: str = "main") -> set[str]:
        return set(self.repos[repo_id].files(revision)) - {".gitattributes"}

    def add_dataset(self, name: str, folder: Path) -> None:
        """A data set `user/name` with the files under a folder."""
        repo = self.repos[f"datasets/{name}"] = Repo(private=False)
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        contents = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
        repo.commit("main", {path: File(data) for path, data in contents.items()}, "clips")

    def environment(self, home: object) -> dict[str, str]:
        """Variables that point a process of huggingface_hub at this server and at a cache of its
        own.
        """
        return {
            "HF_ENDPOINT": self.url, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": TOKEN, "HF_HOME": str(home),
            "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "NO_PROXY": "127.0.0.1,localhost",
        }  # fmt: skip


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    ROUTES = [
        ("GET", r"/api/whoami-v2", "whoami"),
        ("POST", r"/api/repos/create", "create_repo"),
        ("POST", r"/api/validate-yaml", "validate_yaml"),
        ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/branch/(?P<revision>[^/]+)", "create_branch"),
        ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/preupload/(?P<revision>[^/]+)", "preupload"),
        ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/commit/(?P<revision>[^/]+)", "commit"),
        ("GET", rf"{API}/tree/(?P<revision>[^/]+)(?P<folder>/.*)?", "tree"),
        ("POST", rf"{API}/paths-info/(?P<revision>[^/]+)", "paths_info"),
        ("GET", rf"{API}/revision/(?P<revision>[^/]+)", "repo_info"),
        ("GET", API, "repo_info"),
        ("POST", r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch", "lfs_batch"),
        ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", "lfs_put"),
        ("GET", r"/lfs/(?P<oid>[0-9a-f]{64})", "lfs_get"),
        ("HEAD", r"/lfs/(?P<oid>[0-9a-f]{64})", "lfs_get"),
        ("GET", rf"{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
        ("HEAD", rf"{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
    ]

    # one request

    def _serve(self) -> None:
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        self.hub.log.append((self.command, url.path))
        self.body_left = int(self.headers.get("Content-Length") or 0)
        try:
            for method, pattern, name in self.ROUTES:
                match = re.fullmatch(pattern, url.path)
                if method == self.command and match:
                    groups = {
                        key: unquote(value)
                        for key, value in match.groupdict().items()
                        if value is not None
                    }
                    getattr(self, name)(**groups)
                    return
            raise HubError(404, f"no such address: {self.command} {url.path}")
        except HubError as error:
            self._body()  # so that the next request on this connection starts at its beginning
            self._json(
                {"error": error.message},
                error.status,
                {"X-Error-Code": error.code} if error.code else {},
            )

    do_GET = do_HEAD = do_POST = do_PUT = _serve

    def log_message(self, *args: object) -> None:
        pass

    def _chunked(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked" and self.body_left == 0:
            return self._chunked()
        size, self.body_left = self.body_left, 0
        return self.rfile.read(size)

    def _send(self, data: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _json(
        self, value: object, status: int = 200, headers: dict[str, str] | None = None
    ) -> None:
        self._send(
            json.dumps(value).encode(),
            status,
            {"Content-Type": "application/json", **(headers or {})},
        )

    def _fault(self, where: str) -> None:
        kind = self.hub.faults[where].pop(0) if self.hub.faults.get(where) else None
        if kind == "drop":  # read a part of what is sent, then hang up
            self.rfile.read(min(self.body_left, 1000))
            self.close_connection = True
            self.connection.close()
            raise ConnectionAbortedError("a fault that the test asked for")
        if kind is not None:
            raise HubError(int(kind), "a fault that the test asked for")

    def _repo(self, repo: str, *, write: bool = False) -> Repo:
        known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if write and not known:
            raise HubError(401, "Invalid username or password.")
        if repo not in self.hub.repos or (self.hub.repos[repo].private and not known):
            raise HubError(404 if known else 401, "Repository not found", "RepoNotFound")
        return self.hub.repos[repo]

    # the API

    def whoami(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise HubError(401, "Invalid username or password.")
        self._json(
            {"type": "user", "name": USER, "orgs": [], "auth": {"accessToken": {"role": "write"}}}
        )

    def create_repo(self) -> None:
        request = json.loads(self._body())
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise HubError(401, "Invalid username or password.")
        name = f"{request.get('organization') or USER}/{request['name']}"
        if name in self.hub.repos:
            return self._json(
                {"error": "You already created this model repo", "url": f"{self.hub.url}/{name}"},
                409,
            )
        repo = self.hub.repos[name] = Repo(private=request.get("visibility") == "private")
        repo.commit(
            "main",
            {".gitattributes": File(b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n")},
            "initial",
        )
        self._json({"url": f"{self.hub.url}/{name}", "name": name})

    def validate_yaml(self) -> None:
        match = re.match(r"---\n(.*?)\n---\n", json.loads(self._body())["content"], flags=re.DOTALL)
        errors = [] if match else ["no metadata block"]
        if match:
            metadata = yaml.safe_load(match[1])
            for model in metadata.get("model-index", []):
                for result in model["results"]:
                    missing = {"task", "dataset", "metrics"} - result.keys()
                    errors += [f"model-index: a result without {name}" for name in sorted(missing)]
        self._json(
            {"errors": [{"message": e} for e in errors], "warnings": []}, 400 if errors else 200
        )

    def create_branch(self, repo: str, revision: str) -> None:
        self._body()
        stored = self._repo(repo, write=True)
        if revision in stored.branches:
            raise HubError(409, "Reference already exists")
        stored.branches[revision] = stored.branches["main"]
        self._json({})

    def repo_info(self, repo: str, revision: str = "main") -> None:
        stored = self._repo(repo)
        if stored.branches.get(revision, revision) not in stored.commits:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        siblings = [{"rfilename": path} for path in stored.files(revision)]
        sha = stored.branches.get(revision, revision)
        self._json(
            {
                "id": repo.removeprefix("datasets/"),
                "modelId": repo,
                "sha": sha,
                "private": stored.private,
                "tags": [],
                "siblings": siblings,
            }
        )

    def tree(self, repo: str, revision: str, folder: str = "") -> None:
        files, folder = self._repo(repo).files(revision), folder.strip("/")
        found = {
            path: file
            for path, file in files.items()
            if not folder or path.startswith(folder + "/")
        }
        if folder and not found:
            raise HubError(404, f"{folder} does not exist", "EntryNotFound")
        entries = [{"path": path, **file.describe()} for path, file in found.items()]
        below = {str(up) for path in found for up in PurePosixPath(path).parents} - {".", folder}
        entries += [{"type": "directory", "path": path, "oid": "0" * 40} for path in below]
        if self.query.get("recursive", ["false"])[0].lower() not in ("true", "1"):
            entries = [
                e for e in entries if str(PurePosixPath(e["path"]).parent) == (folder or ".")
            ]
        self._json(entries)

    def paths_info(self, repo: str, revision: str) -> None:
        # huggingface_hub sends JSON or a form, as its version has it
        body = self._body().decode()
        wanted = json.loads(body)["paths"] if body[:1] == "{" else parse_qs(body)["paths"]
        files = self._repo(repo).files(revision)
        found = [path for path in wanted if path in files]
        self._json([{"path": path, **files[path].describe()} for path in found])

    def preupload(self, repo: str, revision: str) -> None:
        request, files = json.loads(self._body()), self._repo(repo, write=True).files(revision)
        answers = []
        for item in request["files"]:
            lfs = item["path"].endswith(LFS_SUFFIXES) or item["size"] > 5_000_000
            old = files.get(item["path"])
            answers.append({
                "path": item["path"], "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False,
                "oid": old.etag if old else None,
            })  # fmt: skip
        self._json({"files": answers})

    def lfs_batch(self, repo: str) -> None:
        request = json.loads(self._body())
        self._repo(repo, write=True)
        answers = []
        for item in request["objects"]:
            answer = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in self.hub.objects:
                answer["actions"] = {
                    "upload": {"href": f"{self.hub.storage}/lfs/{item['oid']}?size={item['size']}"}
                }
            answers.append(answer)
        self._json({"transfer": "basic", "objects": answers})

    def lfs_put(self, oid: str) -> None:
        self._fault("put")
        self._no_token()
        data = self._body()
        if len(data) != int(self.query["size"][0]) or hashlib.sha256(data).hexdigest() != oid:
            raise HubError(
                400, f"content of {len(data)} bytes does not have the announced size and SHA-256"
            )
        self.hub.objects[oid] = data
        self._json({})

    def commit(self, repo: str, revision: str) -> None:
        self._fault("commit")
        lines = [json.loads(line) for line in self._body().splitlines()]
        stored = self._repo(repo, write=True)
        with self.hub.lock:
            files, header = dict(stored.files(revision)), lines[0]["value"]
            if header.get("parentCommit") not in (None, stored.branches[revision]):
                raise HubError(412, "A commit has happened since. Please refresh and try again.")
            for line in lines[1:]:
                self._apply(files, line["key"], line["value"])
            oid = stored.commit(revision, files, header["summary"])
        self._fault("commit-answer")
        url = f"{self.hub.url}/{repo}/commit/{oid}"
        self._json({"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})

    def _apply(self, files: dict[str, File], key: str, value: dict) -> None:
        if key == "file":
            files[value["path"]] = File(base64.b64decode(value["content"], validate=True))
        elif key == "lfsFile":
            data = self.hub.objects.get(value["oid"])
            if data is None or len(data) != value.get("size", len(data)):
                raise HubError(
                    400, f"LFS pointer of {value['path']} names an object that was not uploaded"
                )
            files[value["path"]] = File(data, sha256=value["oid"])
        elif key == "deletedFile":
            if files.pop(value["path"], None) is None:
                raise HubError(404, "A file with this name doesn't exist", "EntryNotFound")
        else:
            raise HubError(400, f"unknown operation {key}")

    # downloads

    def resolve(self, repo: str, revision: str, path: str) -> None:
        stored = self._repo(repo)
        commit = stored.branches.get(revision, revision)
        if commit not in stored.commits:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        file = stored.commits[commit].get(path)
        if file is None:
            raise HubError(404, "Entry not found", "EntryNotFound")
        headers = {"X-Repo-Commit": commit, "ETag": f'"{file.etag}"'}
        if file.sha256:  # as on the Hub: LFS objects live at another address
            linked = {"X-Linked-Size": str(len(file.data)), "X-Linked-Etag": f'"{file.sha256}"'}
            self._send(
                b"", 302, {**headers, **linked, "Location": f"{self.hub.storage}/lfs/{file.sha256}"}
            )
        else:
            self._ranged(file.data, headers)

    def _no_token(self) -> None:
        if "Authorization" in self.headers:
            raise HubError(400, "a token was sent to the storage")

    def lfs_get(self, oid: str) -> None:
        self._no_token()
        if oid not in self.hub.objects:
            raise HubError(404, "no such object")
        self._ranged(self.hub.objects[oid], {"ETag": f'"{oid}"'})

    def _ranged(self, data: bytes, headers: dict[str, str]) -> None:
        headers = {**headers, "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not match:
            return self._send(data, 200, headers)
        start, end = int(match[1]), min(int(match[2] or len(data) - 1), len(data) - 1)
        if start > end:
            return self._send(b"", 416, {**headers, "Content-Range": f"bytes */{len(data)}"})
        self.hub.ranges.append(match[0])
        self._send(
            data[start : end + 1],
            206,
            {**headers, "Content-Range": f"bytes {start}-{end}/{len(data)}"},
        )
