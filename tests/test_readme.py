"""README.md and docs/: every block runs or is read by the command that it names, every command and
option in a sentence is one that there is, links lead somewhere, and tables are those of the files
that scripts wrote.

All in this process, where a Python that starts takes seconds: commands through their `main`, blocks
by `exec`. Only the README's first example has a process of its own, with a Hub on loopback, because
it must work as the first thing that somebody runs. What takes long (`PARSED_ONLY`) is held to its
command's arguments here and run by the tests of that command.
"""

import argparse
import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hub_server import File, Hub, Repo
from tiny import tiny_model
from transformers import (
    TimesformerConfig,
    TimesformerForVideoClassification,
    TimesformerVideoProcessor,
    ViTConfig,
    ViTForImageClassification,
)

from hf_timesformer import TimeSformerVideoProcessor
from hf_timesformer.cli.__main__ import COMMANDS
from hf_timesformer.data.synthetic import MOTIONS, make_motion_dataset, motion_frames
from hf_timesformer.video.decoding import decode_video
from hf_timesformer.video.encoding import write_video


ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in PAGES}
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.M | re.S)
BLOCKS = [
    (page, language, code) for page, text in TEXTS.items() for language, code in BLOCK.findall(text)
]
FIRST = next(code for page, language, code in BLOCKS if language == "python")
RELEASED = "facebook/timesformer-base-finetuned-k400"

# Tests of their own run these: `export` quantises, `prepare` starts workers, `publish` needs a Hub.
PARSED_ONLY = {"app", "demo", "export", "prepare", "publish"}
# Blocks that name what only such a command makes, or that train for minutes.
PARSED_PAGES = {"docs/deploy.md", "docs/many_gpus.md", "docs/packing.md", "README.md"}
BENCHMARKS = ["python", "scripts/benchmarks"]
# Known to be there, and no business of ours.
OTHER_PROGRAMS = {"pip", "hf", "accelerate", "torchrun", "sbatch", "bash", "python"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with the clips and, as local folders, the checkpoints that the pages name."""
    folder = tmp_path_factory.mktemp("readme")
    make_motion_dataset(folder / "clips", splits={"train": 2, "test": 1}, num_frames=12, size=32)
    frames = motion_frames("left", np.random.default_rng(0), num_frames=16, size=48)
    write_video(folder / "clip.mp4", frames)
    write_video(folder / "clip.webm", frames, codec="libvpx-vp9")
    rows = [f"clips/test/{name}/{name}_000.mp4,{name},test" for name in MOTIONS]
    (folder / "clips.csv").write_text("\n".join(["path,label,split", *rows]) + "\n")
    labels = {
        "id2label": dict(enumerate(MOTIONS)),
        "label2id": {n: i for i, n in enumerate(MOTIONS)},
    }
    sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    for name in ("my-model", "run", RELEASED):
        model = tiny_model(
            "divided_space_time", image_size=32, patch_size=8, num_labels=6, **labels
        )
        model.save_pretrained(folder / name)
        processor = TimeSformerVideoProcessor(num_frames=4, sampling_rate=2, **sizes)
        processor.save_pretrained(folder / name)
    vit = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8
    )  # fmt: skip
    ViTForImageClassification(vit).save_pretrained(folder / "google/vit-base-patch16-224")
    return folder


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, in which blocks run; what they print is kept."""
    monkeypatch.chdir(folder)
    return folder


def command_lines(code: str) -> list[list[str]]:
    """The words of each line of a shell block; lines that end in a backslash are joined."""
    lines = code.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def command_of(words: list[str]) -> tuple[str, list[str]] | None:
    """A command of ours and its arguments: of `timesformer train ...`, or behind a launcher."""
    if words[0] == "timesformer":
        return words[1], words[2:]
    for place, word in enumerate(words):
        if word.startswith("hf_timesformer.cli."):
            return word.rpartition(".")[2], words[place + 1 :]
    return None


def check_other_program(words: list[str]) -> None:
    """Whatever a reader types that is no command of ours: its program, script or extra is there."""
    assert words[0] in OTHER_PROGRAMS, words
    for script in (word for word in words if word.startswith("scripts/")):
        assert (ROOT / script).exists(), script
    for extra in re.findall(r"\[(\w+)\]", " ".join(words)):
        assert f'"{extra}"' in (ROOT / "setup.py").read_text(encoding="utf-8"), extra
    if words[0] == "torchrun":
        from torch.distributed.run import get_args_parser

        get_args_parser().parse_args(words[1:])


def run(name: str, argv: list[str]) -> None:
    """A command that must succeed, in this process."""
    code = None
    try:
        importlib.import_module(f"hf_timesformer.cli.{name}").main(argv)
    except SystemExit as end:
        code = end.code
    assert not code, (name, argv)


def parse(name: str, argv: list[str]) -> None:
    """Hold a command line to the command's own arguments."""
    assert name in COMMANDS
    module = importlib.import_module(f"hf_timesformer.cli.{name}")
    try:
        module.parse_arguments(argv)
    except SystemExit as end:
        raise AssertionError(f"timesformer {name} refuses {argv}") from end


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder scripts/benchmarks, whose files import each other by name."""
    monkeypatch.syspath_prepend(ROOT / "scripts" / "benchmarks")


def benchmark_parser(name: str) -> argparse.ArgumentParser:
    """The arguments of `python scripts/benchmarks NAME`."""
    parser = argparse.ArgumentParser()
    importlib.import_module(name).add_arguments(parser)
    return parser


@pytest.mark.parametrize(
    ("page", "code"),
    [(page, code) for page, language, code in BLOCKS if language == "bash"],
    ids=lambda text: text[:30],
)
def test_shell_block(
    page: str, code: str, here: Path, benchmarks: None, capsys: pytest.CaptureFixture
) -> None:
    for words in command_lines(code):
        command = command_of(words)
        if words[0] != "timesformer":
            check_other_program(words)
        if words[:2] == BENCHMARKS:
            benchmark_parser(words[2]).parse_args(words[3:])
        if command is None:
            continue
        name, argv = command
        parse(name, argv) if name != "demo" else None
        if name not in PARSED_ONLY and page not in PARSED_PAGES:
            run(name, argv)


@pytest.mark.parametrize(
    ("page", "code"),
    [(page, code) for page, language, code in BLOCKS if language == "python" and code != FIRST],
    ids=lambda text: text[:30],
)
def test_python_block(page: str, code: str, here: Path, capsys: pytest.CaptureFixture) -> None:
    for package in re.findall(r"torchao|bitsandbytes", code, re.I):  # no extra of ours
        pytest.importorskip(package.lower())
    exec(compile(code, page, "exec"), {"__name__": "__main__"})
    assert "print" not in code or capsys.readouterr().out
    for _, language, example in BLOCKS:  # blocks that need a camera
        if language == "py":
            compile(example, "py", "exec")


ASK_MORE = """
import json
processor = classify.video_processor
about = [type(processor).__name__, processor.sampling, processor.sampling_rate, dict(processor.crop_size)["height"]]
print(json.dumps([about, classify("clip.mp4", top_k=3)]))
"""


def released_files(folder: Path) -> tuple[TimesformerForVideoClassification, dict[str, File]]:
    """A stock model of three classes and 6 frames, and the processor file that the released ones
    have.
    """
    torch.manual_seed(0)
    config = TimesformerConfig(
        image_size=32, patch_size=8, num_frames=6, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, initializer_range=0.5, num_labels=3,
    )  # fmt: skip
    model = TimesformerForVideoClassification(config).eval()
    model.save_pretrained(folder)
    settings = {
        "image_processor_type": "VideoMAEImageProcessor",
        "image_mean": [0.45] * 3,
        "image_std": [0.225] * 3,
        "size": {"shortest_edge": 24},
        "crop_size": {"height": 24, "width": 24},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return model, {path.name: File(path.read_bytes()) for path in folder.iterdir()}


def test_the_first_example_is_all_that_it_takes(tmp_path: Path) -> None:
    """A released checkpoint by its Hub id and nothing else, on a Hub on loopback that has tiny
    weights under that name: the answers are stock's, of the frames that the authors' config says.
    """
    (tmp_path / "released").mkdir()
    model, files = released_files(tmp_path / "released")
    frames = np.random.default_rng(0).integers(0, 256, (240, 4, 6, 3), dtype=np.uint8)
    clip = write_video(tmp_path / "clip.mp4", frames.repeat(10, axis=1).repeat(10, axis=2))
    with Hub() as hub:
        hub.repos[RELEASED] = Repo(private=False)
        hub.repos[RELEASED].commit("main", files, "released")
        environment = os.environ | hub.environment(tmp_path / "home") | {"HF_HUB_OFFLINE": "0"}
        done = subprocess.run(
            [sys.executable, "-c", FIRST + ASK_MORE],
            env=environment, capture_output=True, text=True, timeout=240, cwd=tmp_path,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    *printed, more = done.stdout.splitlines()
    example = next(c for page, language, c in BLOCKS if (page, language) == ("README.md", "text"))
    for lines in (printed, example.splitlines()):
        assert len(lines) == 3
        assert all(re.fullmatch(r"\d\.\d{3}  \S.*", line) for line in lines), lines
    about, answers = json.loads(more)
    # the official config of K400 takes every 32nd frame; frames and size are the model's
    assert about == ["TimeSformerVideoProcessor", "clip", 32, 32]
    assert "sampling_rate=32 as this released checkpoint was trained" in done.stderr
    # 6 frames of a window of 192 in the middle of 240: from 24 to 215
    chosen, _ = decode_video(clip, [24, 62, 100, 138, 176, 215])
    stock = TimesformerVideoProcessor(
        image_mean=[0.45] * 3, image_std=[0.225] * 3, size={"shortest_edge": 32}, crop_size=32
    )
    with torch.no_grad():
        expected = model(**stock(chosen, return_tensors="pt")).logits.softmax(-1)[0]
    for answer in answers:
        label = model.config.label2id[answer["label"]]
        np.testing.assert_allclose(answer["score"], expected[label], atol=1e-5)


def options_of(name: str) -> set[str]:
    """The options that a command has."""
    if name == "train":
        from hf_timesformer.cli.train_help import make_train_parser

        return set(make_train_parser("train")._option_string_actions)
    package = ROOT / "hf_timesformer"
    files = [*(package / "cli").glob(f"{name}*.py"), package / "cli/common.py"]
    files.append(package / "data/arguments.py")
    source = "".join(file.read_text(encoding="utf-8") for file in files)
    return set(re.findall(r"--\w+", source)) | {"--help", "--version"}


def code_in_sentences(page: str) -> list[str]:
    """What stands in backticks outside of blocks, also where a line ends in it."""
    prose = BLOCK.sub("", TEXTS[page])
    return re.findall(r"`([^`\n]+)`", " ".join(prose.split("\n")))


# It says of what: `timesformer recipes small-set`, not `timesformer train --fsdp`.
WHOLE_COMMANDS = [
    (page, code)
    for page in TEXTS
    for code in code_in_sentences(page)
    if re.match(r"timesformer [a-z]+ [a-z]", code)
]


@pytest.mark.parametrize(("page", "code"), WHOLE_COMMANDS)
def test_whole_commands_in_sentences_run(
    page: str, code: str, here: Path, capsys: pytest.CaptureFixture
) -> None:
    _, name, *argv = shlex.split(code)
    run(name, argv)
    assert capsys.readouterr().out


def test_whole_commands_are_found() -> None:
    names = {code.split()[1] for _, code in WHOLE_COMMANDS}
    assert names >= {"predict", "recipes"}


@pytest.mark.parametrize("page", TEXTS)
def test_commands_and_options_in_sentences_are_ones_that_there_are(
    page: str, benchmarks: None
) -> None:
    every_option = set().union(*map(options_of, COMMANDS)) | LAUNCHERS_OPTIONS
    for code in code_in_sentences(page):
        words = code.split()
        if re.match(r"timesformer [a-z]+\b", code):
            assert words[1] in COMMANDS, code
            known = options_of(words[1])
        elif words[:2] == BENCHMARKS:
            known = set(benchmark_parser(words[2])._option_string_actions)
        else:
            known = every_option
        used = {word.partition("=")[0] for word in words if re.match(r"--\w", word)}
        assert used <= known, code
        for script in (word for word in words if word.startswith("scripts/")):
            assert (ROOT / script).exists(), code


# of `torchrun` and `accelerate launch`; `--png` of `benchmarks growth`
LAUNCHERS_OPTIONS = {"--nproc_per_node", "--multi_gpu", "--num_processes", "--png"}


@pytest.mark.parametrize("page", TEXTS)
def test_links_and_pictures_lead_somewhere(page: str) -> None:
    here = (ROOT / page).parent
    for target in re.findall(r"\]\(([^)\s]+)\)", TEXTS[page]):
        if target.startswith("https://"):
            continue
        path, _, place = target.partition("#")
        file = here / path if path else ROOT / page
        assert file.is_file(), target
        if place:
            titles = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.M)
            anchors = {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}
            assert place in anchors, target


def test_every_picture_is_shown_on_a_page() -> None:
    shown = set(re.findall(r"\bpictures/(\w+\.png)\)", "".join(TEXTS.values())))
    assert {path.name for path in (ROOT / "pictures").iterdir()} == shown


@pytest.fixture
def tables(benchmarks: None):
    """scripts/benchmarks/tables.py."""
    return importlib.import_module("tables")


@pytest.mark.parametrize("page", TEXTS)
def test_measured_tables_are_those_of_the_files(page: str, tables) -> None:
    assert tables.with_tables(TEXTS[page]) == TEXTS[page], (
        "run `python scripts/benchmarks results --write`"
    )


# `1.98 times`, `91.4 %`, `72 seconds`: what a stop-watch or an evaluation said
FIGURE = re.compile(r"\d+(?:\.\d+)? (?:%|MiB|times as|seconds for|minutes on)")


@pytest.mark.parametrize("page", TEXTS)
def test_no_measured_figure_stands_outside_a_table(page: str, tables) -> None:
    prose = tables.MARKED.sub("", BLOCK.sub("", TEXTS[page]))
    assert not FIGURE.findall(prose)


def test_a_table_says_where_and_when(tables, tmp_path: Path) -> None:
    page = "a\n<!-- table: speed -->\nold\n<!-- end -->\nb"
    with pytest.raises(ValueError, match=r"there is no speed\.json"):
        tables.with_tables(page, tmp_path)
    stored = {"machine": "M", "columns": ["work", "times"], "rows": [["x", "1.5"], ["y", None]]}
    (tmp_path / "speed.json").write_text(json.dumps(stored))
    with pytest.raises(ValueError, match="neither the file nor a column says its date"):
        tables.with_tables(page, tmp_path)
    stored["date"] = "2026-11-27"
    (tmp_path / "speed.json").write_text(json.dumps(stored))
    with pytest.raises(ValueError, match="does not say which command wrote it"):
        tables.with_tables(page, tmp_path)
    table = "| work | times |\n|---|---:|\n| x | 1.5 |\n| y |  |\n\nMeasured on M, 2026-11-27"
    for how, said in (({"command": "c"}, ", by `c`."), ({"copied": "By hand."}, ". By hand.")):
        (tmp_path / "speed.json").write_text(json.dumps(stored | how))
        assert f"-->\n\n{table}{said}\n\n<!-- end -->\nb" in tables.with_tables(page, tmp_path)
    records = {"machine": "M", "date": "D", "command": "c", "g": [{"video": "a", "us": {"MiB": 3}}]}
    (tmp_path / "speed.json").write_text(json.dumps(records))
    table = "| video | us, MiB |\n|---|---:|\n| a | 3 |\n\nMeasured on M, D, by `c`."
    assert table in tables.with_tables(page, tmp_path)


def test_readme_is_read_in_five_minutes() -> None:
    """At 250 words a minute, which is slow for prose and about right with code."""
    assert len(TEXTS["README.md"].split()) < 1250
