"""Publishing, against a Hub on loopback, and opening what was published where this package is
absent.
"""

import json
import os
import runpy
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from hub_server import TOKEN, USER, File, Hub
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import httpx

from hf_timesformer.data.synthetic import make_motion_dataset, motion_frames
from hf_timesformer.hub.publish import (
    add_code,
    complete_folder,
    files_to_publish,
    push_folder,
    save_for_hub,
)
from hf_timesformer.model.configuration_timesformer import TimeSformerConfig
from hf_timesformer.model.modeling_timesformer import TimeSformerForVideoClassification
from hf_timesformer.video.encoding import write_video
from hf_timesformer.video.video_processing_timesformer import TimeSformerVideoProcessor


ROOT = Path(__file__).resolve().parents[2]
WITHOUT_PACKAGE = """
    import sys
    class Absent:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] == "hf_timesformer":
                raise ModuleNotFoundError("No module named 'hf_timesformer'")
    sys.meta_path.insert(0, Absent())
"""
TINY = {
    "image_size": 32, "patch_size": 8, "num_frames": 4, "hidden_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 4, "intermediate_size": 64, "id2label": {0: "falls", 1: "rises", 2: "turns"},
    "label2id": {"falls": 0, "rises": 1, "turns": 2},
}  # fmt: skip


def make_model(
    folder: Path, scheme: str, *, seed: int = 0, **save_options: object
) -> torch.nn.Module:
    torch.manual_seed(seed)
    model = TimeSformerForVideoClassification(
        TimeSformerConfig(attention_type=scheme, **TINY)
    ).eval()
    # the extra dense layers start from zero: let every step count
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    processor = TimeSformerVideoProcessor(
        num_frames=4,
        sampling_rate=4,
        size={"shortest_edge": 32},
        crop_size={"height": 32, "width": 32},
    )
    save_for_hub(model, folder, processor=processor)
    complete_folder(folder, f"{USER}/{folder.name}")
    return model


def run(code: str, hub: Hub, folder: Path, **variables: str) -> subprocess.CompletedProcess:
    """Run `code` in a process of its own, in an empty folder, with the Hub on loopback and an empty
    cache.
    """
    home = folder / "home"
    home.mkdir(parents=True, exist_ok=True)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    environment |= hub.environment(home) | {"OMP_NUM_THREADS": "1", **variables}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(
        command, cwd=home, env=environment, capture_output=True, text=True, timeout=900
    )


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    with Hub() as server:
        yield server


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "tiny"
    make_model(folder, "divided_space_time")
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A folder of one's own that may be spoiled."""
    copy = tmp_path / "tiny"
    copy.mkdir()
    for path in saved.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    return copy


def push(folder: Path, hub: Hub, repo_id: str = f"{USER}/tiny", **options: object) -> object:
    return push_folder(folder, repo_id, token=TOKEN, endpoint=hub.url, **options)


# published, then opened elsewhere


def test_what_is_published_opens_where_the_package_is_absent(hub: Hub, tmp_path: Path) -> None:
    frames = motion_frames("up", np.random.default_rng(0), num_frames=20, size=32)
    clip = write_video(tmp_path / "clip.mp4", frames)
    pixels = torch.rand(2, 4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    torch.save({"pixels": pixels, "frames": torch.from_numpy(frames[:4])}, tmp_path / "inputs.pt")
    schemes = ["divided_space_time", "sparse_local_global", "axial"]
    models = {scheme: make_model(tmp_path / scheme, scheme) for scheme in schemes}
    for scheme in schemes:
        push(tmp_path / scheme, hub, f"{USER}/{scheme}")
    found = run(
        WITHOUT_PACKAGE
        + f"""
    import json, torch
    from transformers import (AutoImageProcessor, AutoModel, AutoModelForVideoClassification, AutoVideoProcessor,
                              TimesformerForVideoClassification, pipeline)
    inputs, answer = torch.load({str(tmp_path / "inputs.pt")!r}), {{}}
    def ask(name, model):
        with torch.no_grad():
            logits = model.eval()(inputs["pixels"]).logits.tolist()
        answer[name] = {{"logits": logits, "class": type(model).__module__}}
    ask("divided_space_time", TimesformerForVideoClassification.from_pretrained("{USER}/divided_space_time"))
    processor = AutoVideoProcessor.from_pretrained("{USER}/divided_space_time")
    answer["stock_pixels"] = processor(inputs["frames"], do_sample_frames=False)["pixel_values"][0].tolist()
    for scheme in ("sparse_local_global", "axial"):
        repo = "{USER}/" + scheme
        try:
            AutoModelForVideoClassification.from_pretrained(repo)
        except ValueError as error:
            refusal = str(error)
        ask(scheme, AutoModelForVideoClassification.from_pretrained(repo, trust_remote_code=True))
        answer[scheme]["refusal"] = refusal
    scores = pipeline("video-classification", model=repo, trust_remote_code=True)({str(clip)!r}, top_k=3)
    answer["scores"] = {{row["label"]: row["score"] for row in scores}}
    answer["kinds"] = [
        type(kind.from_pretrained(repo, trust_remote_code=True)).__name__
        for kind in (AutoModel, AutoVideoProcessor, AutoImageProcessor)
    ]
    assert "hf_timesformer" not in sys.modules
    print("ANSWER" + json.dumps(answer))
    """,
        hub,
        tmp_path / "elsewhere",
    )
    assert "ANSWER" in found.stdout, found.stderr[-3000:]
    answer = json.loads(found.stdout.split("ANSWER")[1])
    with torch.no_grad():
        for scheme, model in models.items():
            assert np.allclose(answer[scheme]["logits"], model(pixels).logits, atol=1e-5), scheme
    assert answer["divided_space_time"]["class"].startswith("transformers.models.timesformer")
    for scheme in schemes[1:]:
        assert answer[scheme]["class"].startswith("transformers_modules")
        assert scheme in answer[scheme]["refusal"]
        assert "trust_remote_code" in answer[scheme]["refusal"]
    assert answer["kinds"] == [
        "TimeSformerModel",
        "TimeSformerVideoProcessor",
        "TimeSformerImageProcessor",
    ]

    processor = TimeSformerVideoProcessor.from_pretrained(tmp_path / "axial")
    ours = processor(frames[:4], return_tensors="pt", do_sample_frames=False)["pixel_values"][0]
    assert np.allclose(answer["stock_pixels"], ours, atol=1e-5)
    with torch.no_grad():
        scores = models["axial"](**processor(str(clip), return_tensors="pt")).logits.softmax(-1)[0]
    assert np.allclose([answer["scores"][label] for label in TINY["label2id"]], scores, atol=1e-5)


def test_script_publishes_and_never_shows_the_token(
    hub: Hub,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
) -> None:
    (folder / "README.md").unlink()
    (folder / "training_args.bin").write_bytes(b"a pickle that stays at home")
    (folder / "eval_results.json").write_text(
        '{"top1_accuracy": 0.5, "data_dir": "/home/me/falling"}'
    )
    script = str(ROOT / "scripts" / "push_to_hub.py")
    arguments = [
        str(folder),
        f"{USER}/by-script",
        "--private",
        "--dataset",
        "Falling things",
        "--license",
        "mit",
    ]
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    huggingface_hub.logging.set_verbosity_debug()
    runpy.run_path(script, run_name="__main__")
    huggingface_hub.logging.set_verbosity_warning()
    done = capfd.readouterr()
    assert f"{USER}/by-script/commit/" in done.out
    assert hub.repos[f"{USER}/by-script"].private
    files = hub.repos[f"{USER}/by-script"].files()
    expected = {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"}
    assert hub.names(f"{USER}/by-script") == expected | {"video_preprocessor_config.json"}
    assert files["model.safetensors"].data == (folder / "model.safetensors").read_bytes()
    assert files["model.safetensors"].sha256
    card = files["README.md"].data.decode()
    assert "Falling things" in card
    assert "license: mit" in card
    assert "value: 50.0" in card
    seen = [done.out.encode(), done.err.encode(), *(file.data for file in files.values())]
    seen += [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(TOKEN.encode() in data for data in seen)
    assert not any(b"/home/me" in file.data for file in files.values())


def test_training_publishes_code_processors_and_card(hub: Hub, tmp_path: Path) -> None:
    clips = make_motion_dataset(
        tmp_path / "falling-things", splits={"train": 2}, num_frames=6, size=40
    )
    network = "image_size=32,patch_size=16,hidden_size=16,num_hidden_layers=2,num_attention_heads=2,num_frames=2"
    arguments = {
        "data_dir": clips, "attention_type": "axial", "config_overrides": network, "recipe": "none",
        "validation_fraction": 0, "max_steps": 2, "per_device_train_batch_size": 2, "learning_rate": 0.0125,
        "dataloader_num_workers": 0, "use_cpu": True, "save_strategy": "no", "report_to": "none",
        "output_dir": "run", "push_to_hub": True, "hub_model_id": f"{USER}/trained", "hub_token": TOKEN,
    }  # fmt: skip
    flags = [str(part) for name, value in arguments.items() for part in (f"--{name}", value)]
    code = f"""
    import runpy, sys
    sys.argv[1:] = {flags!r}
    runpy.run_path({str(ROOT / "scripts" / "train.py")!r}, run_name="__main__")
    """
    done = run(code, hub, tmp_path, HF_TOKEN="")
    assert done.returncode == 0, done.stderr[-3000:]
    files = hub.repos[f"{USER}/trained"].files()
    shipped = {
        "modeling_timesformer.py",
        "video_processing_timesformer.py",
        "decoding.py",
        "schemes.py",
    }
    assert shipped | {"config.json", "model.safetensors", "video_preprocessor_config.json"} <= set(
        files
    )
    config = json.loads(files["config.json"].data)
    assert config["auto_map"]["AutoModelForVideoClassification"].startswith("modeling_timesformer.")
    card = files["README.md"].data.decode()
    for text in (
        "| learning_rate | 0.0125 |",
        "`axial` attention",
        "Trained on: falling-things",
        "12 training videos",
    ):
        assert text in card, text
    # Trainer pickles its arguments: the token must not be among them
    assert "training_args.bin" in files
    seen = [done.stdout.encode(), done.stderr.encode(), *(file.data for file in files.values())]
    seen += [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(TOKEN.encode() in data for data in seen)


# uploads that break


@pytest.mark.parametrize(
    ("faults", "error"),
    [
        ({"commit": ["500"]}, HfHubHTTPError),
        ({"commit": ["drop"]}, ConnectionError),
        ({"put": ["403"]}, ConnectionError),
    ],
    ids=["commit refused", "commit cut off", "weights refused"],
)
def test_upload_that_breaks_leaves_nothing_and_can_be_repeated(
    hub: Hub, folder: Path, faults: dict[str, list[str]], error: type[Exception]
) -> None:
    hub.faults = faults
    with pytest.raises(error) as caught:
        push(folder, hub)
    assert TOKEN not in str(caught.value)
    assert hub.names(f"{USER}/tiny") == set()
    sent_before = [path for method, path in hub.log if method == "PUT"]
    push(folder, hub)
    assert hub.names(f"{USER}/tiny") == {path.name for path in folder.iterdir()}
    sent = [path for method, path in hub.log if method == "PUT"]
    assert len(sent) == (2 if "put" in faults else len(sent_before)), (
        "weights that had arrived were sent again"
    )
    assert len(hub.repos[f"{USER}/tiny"].messages) == 2


def test_upload_over_an_older_model_is_all_or_nothing(
    hub: Hub, folder: Path, tmp_path: Path
) -> None:
    push(folder, hub)
    before = dict(hub.repos[f"{USER}/tiny"].files())
    make_model(tmp_path / "new" / "tiny", "axial", seed=5)
    hub.faults = {"commit": ["500"]}
    with pytest.raises(HfHubHTTPError):
        push(tmp_path / "new" / "tiny", hub)
    assert hub.repos[f"{USER}/tiny"].files() == before


def test_connection_that_drops_within_the_weights_is_taken_up_again(hub: Hub, folder: Path) -> None:
    hub.faults = {"put": ["drop"]}
    push(folder, hub)
    stored = hub.repos[f"{USER}/tiny"].files()["model.safetensors"]
    assert stored.data == (folder / "model.safetensors").read_bytes()
    assert [method for method, _ in hub.log].count("PUT") == 2


def test_answer_that_is_lost_after_the_commit_makes_no_second_commit(
    hub: Hub, folder: Path
) -> None:
    hub.faults = {"commit-answer": ["drop"]}
    with pytest.raises(ConnectionError, match="run it again"):
        push(folder, hub)
    commit = push(folder, hub)
    repo = hub.repos[f"{USER}/tiny"]
    assert repo.messages == ["initial", "Publish model"]
    assert commit.oid == repo.branches["main"]


def test_two_pushes_at_a_time_do_not_mix(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_commit = HfApi.create_commit

    def overtaken(self: HfApi, *args: object, **kwargs: object) -> object:
        hub.repos[f"{USER}/tiny"].commit("main", {"config.json": File(b"{}")}, "somebody else's")
        return create_commit(self, *args, **kwargs)

    monkeypatch.setattr(HfApi, "create_commit", overtaken)
    with pytest.raises(HfHubHTTPError, match="412"):
        push(folder, hub)
    assert hub.names(f"{USER}/tiny") == {"config.json"}


def test_wrong_token_is_refused_and_not_repeated_in_the_error(hub: Hub, folder: Path) -> None:
    wrong = "hf_" + "WrongTokenOfTheTests".ljust(34, "1")
    with pytest.raises(HfHubHTTPError, match="401") as caught:
        push_folder(folder, f"{USER}/tiny", token=wrong, endpoint=hub.url)
    assert wrong not in str(caught.value)
    assert hub.repos == {}


# what is published


def test_weights_of_an_earlier_push_do_not_stay_behind(hub: Hub, folder: Path) -> None:
    model = TimeSformerForVideoClassification.from_pretrained(folder)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="40KB")
    shards = {path.name for path in folder.glob("model-*.safetensors")}
    assert len(shards) > 1
    push(folder, hub)
    assert shards | {"model.safetensors.index.json"} <= hub.names(f"{USER}/tiny")
    for path in [*folder.glob("model-*"), folder / "model.safetensors.index.json"]:
        path.unlink()
    (folder / "model.safetensors").write_bytes(weights)
    push(folder, hub)
    assert not {name for name in hub.names(f"{USER}/tiny") if name.startswith("model")} - {
        "model.safetensors"
    }


def test_a_branch_is_created_and_main_stays(hub: Hub, folder: Path) -> None:
    push(folder, hub, revision="trial")
    assert "config.json" in hub.names(f"{USER}/tiny", "trial")
    assert hub.names(f"{USER}/tiny") == set()


def test_same_model_twice_is_one_commit(hub: Hub, folder: Path) -> None:
    push(folder, hub)
    push(folder, hub)
    assert len(hub.repos[f"{USER}/tiny"].commits) == 2  # the Hub's own first one, and ours


def spoil_weights(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def lose_shard(folder: Path) -> None:
    index = {
        "metadata": {},
        "weight_map": {"classifier.weight": "model-00002-of-00002.safetensors"},
    }
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def lose_processor(folder: Path) -> None:
    for path in folder.glob("*preprocessor_config.json"):
        path.unlink()


def lose_code(folder: Path) -> None:
    add_code(folder)
    (folder / "decoding.py").unlink()
    (folder / "modeling_timesformer.py").unlink()


def other_scheme(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"attention_type": "axial"}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "no config.json"),
        (spoil_weights, "model.safetensors is damaged"),
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lose_shard, "model-00002-of-00002.safetensors is missing"),
        (lose_processor, "no processor"),
        (lose_code, "code that is not there: .*modeling_timesformer.py"),
        (other_scheme, "axial.*save_for_hub"),
        (lambda f: (f / "README.md").unlink(), "no README.md"),
        (
            lambda f: (f / "README.md").write_text(f"---\nlicense: mit\n---\nmy token is {TOKEN}"),
            "access token",
        ),
    ],
)
def test_half_a_model_is_not_uploaded(
    hub: Hub, folder: Path, spoil: Callable, message: str
) -> None:
    spoil(folder)
    with pytest.raises((ValueError, OSError), match=message) as caught:
        push(folder, hub)
    assert TOKEN not in str(caught.value)
    assert hub.log == [], "something was sent before the folder was checked"


def test_only_what_belongs_there_is_published(folder: Path) -> None:
    for name in (
        "optimizer.pt",
        "training_args.bin",
        "trainer_state.json",
        "train_results.json",
        ".env",
    ):
        (folder / name).write_text("x")
    (folder / "checkpoint-10").mkdir()
    (folder / "checkpoint-10" / "model.safetensors").write_text("x")
    (folder / "eval_test").mkdir()
    (folder / "eval_test" / "confusion_matrix.png").write_text("x")
    names = {path.relative_to(folder).as_posix() for path in files_to_publish(folder)}
    assert names == {
        "README.md", "config.json", "model.safetensors", "preprocessor_config.json", "video_preprocessor_config.json",
        "eval_test/confusion_matrix.png",
    }  # fmt: skip


# the Hub of the tests is strict enough


def test_hub_serves_ranges(hub: Hub, folder: Path) -> None:
    push(folder, hub)
    url = f"{hub.url}/{USER}/tiny/resolve/main/model.safetensors"
    data = (folder / "model.safetensors").read_bytes()
    head = httpx.head(url)
    assert (head.status_code, head.headers["X-Linked-Size"]) == (302, str(len(data)))
    part = httpx.get(url, headers={"Range": "bytes=100-199"}, follow_redirects=True)
    assert (part.status_code, part.content) == (206, data[100:200])
    metadata = HfApi(endpoint=hub.url).parse_safetensors_file_metadata(
        f"{USER}/tiny", "model.safetensors"
    )
    assert metadata.parameter_count["F32"] > 10_000


def test_hub_refuses_content_that_does_not_match_its_sha256(hub: Hub) -> None:
    answer = httpx.put(f"{hub.storage}/lfs/{'0' * 64}?size=3", content=b"abc")
    assert answer.status_code == 400
    assert hub.objects == {}
