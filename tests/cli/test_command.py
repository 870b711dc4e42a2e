"""`timesformer`: help that does not wait, one style of arguments, and a user's own file names left
alone.
"""

import importlib
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from hf_timesformer.cli import extract
from hf_timesformer.cli.__main__ import COMMANDS, main, only_prints
from hf_timesformer.cli.common import CommandParser, program_for_launchers, user_errors
from hf_timesformer.cli.train_help import make_train_parser
from hf_timesformer.data.arguments import dataset_arguments


ROOT = Path(__file__).resolve().parents[2]
# One process for all: what is loaded stays loaded, so the first that loads too much is the one named.
RUN_AND_PRINT_HEAVY_MODULES = """
import contextlib, io, json, sys
import timesformer_command
heavy = {"torch", "transformers", "datasets", "numpy", "gradio", "accelerate", "av"}
for argv in json.loads(sys.argv[1]):
    sys.argv = ["timesformer", *argv]
    code, out = 0, io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
            timesformer_command.main()
    except SystemExit as end:
        code = end.code or 0
    print(json.dumps([argv, code, sorted(heavy & set(sys.modules)), out.getvalue()]))
"""


def python(
    *arguments: object, folder: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess:
    variables = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(
        command, cwd=folder, env=variables, capture_output=True, text=True, timeout=120
    )


def test_help_and_wrong_arguments_load_nothing_that_takes_seconds():
    names = [name for name in COMMANDS if name != "train"]
    wrong = [["nonsense"], *([name, "--nonsense"] for name in names if name != "recipes")]
    command_lines = [[], ["--help"], ["recipes"], *([n, "--help"] for n in names), *wrong]
    done = python("-c", RUN_AND_PRINT_HEAVY_MODULES, json.dumps(command_lines))
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [argv for argv, *_ in answers] == command_lines, done.stderr
    for argv, code, heavy, out in answers:
        assert (heavy, code) == ([], 2 if argv in wrong else 0), argv
        if argv[1:] == ["--help"]:
            assert f"usage: timesformer {argv[0]}" in out


WORK_BESIDE_A_FILE_OF_THE_USERS = """
import importlib, pkgutil, sys
import timesformer_command
sys.argv = ["timesformer", "predict", "clip.mp4", "--model", "/nowhere"]
try:
    timesformer_command.main()
except SystemExit as end:
    print("code:", end.code)
from transformers import AutoConfig
import hf_timesformer.training
print(AutoConfig.for_model("timesformer").__class__.__name__, hf_timesformer.TimeSformerModel.__name__)
for module in pkgutil.walk_packages(hf_timesformer.__path__, "hf_timesformer."):
    if module.name != "hf_timesformer.evaluation.metric":
        importlib.import_module(module.name)
print("evaluate" in sys.modules)
"""


def test_a_command_that_works_finds_the_whole_package_and_leaves_a_users_evaluate_py_alone(
    tmp_path: Path,
):
    """Only help leaves out the package's `__init__`: here it has run, and the classes are
    registered. Only `evaluation/metric.py` imports the package `evaluate`: a file of that name in
    the user's folder hides it from nothing else.
    """
    (tmp_path / "evaluate.py").write_text(
        "raise SystemExit('the user\\'s own evaluate.py was imported')\n"
    )
    (tmp_path / "mine.py").write_text(WORK_BESIDE_A_FILE_OF_THE_USERS)
    done = python("mine.py", folder=tmp_path)
    expected = ["code: 2", "TimeSformerConfig TimeSformerModel", "False"]
    assert done.stdout.splitlines() == expected, done.stderr
    assert "error: there is no model folder '/nowhere'" in done.stderr.splitlines()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the module has been imported before
@pytest.mark.parametrize("module", ["hf_timesformer", "hf_timesformer.cli.predict"])
def test_python_m_runs_the_same(module: str, monkeypatch, capsys):
    command = [] if module.endswith("predict") else ["predict"]
    monkeypatch.setattr(sys, "argv", ["python -m", *command, "clip.mp4", "--model", "/nowhere"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    assert end.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "error: there is no model folder '/nowhere'"
    )


def test_an_unknown_command_names_the_nearest(capsys):
    with pytest.raises(SystemExit) as end:
        main(["evalate"])
    assert end.value.code == 2
    assert (
        capsys.readouterr().err == "error: there is no command 'evalate'; did you mean evaluate?\n"
    )


@pytest.mark.skipif(os.name == "nt", reason="a shell of its own kind")
def test_output_that_nobody_reads_ends_a_command_without_a_word():
    program = f"'{sys.executable}' -m timesformer_command"
    shell = [
        "bash",
        "-c",
        f"{program} --help | true; {program} recipes | true; {program} recipes k400-8x32-224 | head -n 1",
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(shell, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("{\n", "")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_a_file_with_main(name: str):
    assert callable(importlib.import_module(f"hf_timesformer.cli.{name}").main)


@pytest.mark.parametrize(
    ("argv", "prints"),
    [
        ([], True),
        (["--version"], True),
        (["predict", "-h"], True),
        (["train", "--help_all"], True),
        (["predict", "clip.mp4", "--model", "m"], False),
        (["predict", "--model", "m", "--", "--help"], False),  # a file of that name
        (["predict", "help"], False),
    ],
)
def test_what_only_prints(argv: list[str], prints: bool):
    assert only_prints(argv) == prints


@pytest.mark.parametrize(
    "command", ["predict", "export", "evaluate", "prepare", "convert", "publish", "app"]
)
def test_all_commands_have_one_style(command: str, capsys):
    """Abbreviated options are refused everywhere: a later option must not change what an old
    command line means.
    """
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    out = capsys.readouterr().out
    assert f"usage: timesformer {command} " in out
    assert "timesformer " + command in out.split("options:")[1]  # an example
    options = re.findall(r"^  --([\w-]+)", out, re.M)
    assert options
    assert not [name for name in options if "-" in name]
    module = importlib.import_module(f"hf_timesformer.cli.{command}")
    with pytest.raises(SystemExit) as end:
        module.parse_arguments(["--hel"])
    assert end.value.code == 2


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["a.mp4", "--top-k", "3"], {"top_k": 3}),
        (["a.mp4", "--top-k=3", "--allow-urls"], {"top_k": 3, "allow_urls": True}),
        (["--allow_urls", "a.mp4"], {"allow_urls": True}),
        (["--allow-urls", "true", "a.mp4"], {"allow_urls": True}),
        (["--allow_urls", "False", "a.mp4", "--json=true"], {"allow_urls": False, "json": True}),
        (["--json=false", "a.mp4"], {"json": False}),
        (["--", "a.mp4", "--top-k", "true"], {"videos": ["a.mp4", "--top-k", "true"]}),
        (["true", "false"], {"videos": ["true", "false"]}),
    ],
)
def test_options_in_every_spelling(argv: list[str], expected: dict):
    parser = CommandParser()
    parser.add_argument("videos", nargs="*")
    parser.add_argument("--top_k", type=int, default=5)
    group = parser.add_argument_group("more")
    group.add_argument("--allow_urls", action="store_true")
    group.add_argument("--json", action="store_true")
    found = vars(parser.parse_args(argv))
    everything = {"videos": ["a.mp4"], "top_k": 5, "allow_urls": False, "json": False}
    assert found == everything | expected


def test_choices_that_help_tells_are_those_of_the_package():
    """They stand in the commands' files a second time, because the package takes seconds to import."""
    from hf_timesformer.cli import evaluate, prepare, visualize
    from hf_timesformer.data.arguments import DATASETS
    from hf_timesformer.data.dataset_factory import LAYOUTS
    from hf_timesformer.data.preparation.pack import PackSettings
    from hf_timesformer.data.preparation.scan import CHECKS
    from hf_timesformer.evaluation.predictions import AUTOCAST_DTYPES
    from hf_timesformer.model.schemes import SCHEMES

    assert (*LAYOUTS, "webdataset", "hub") == DATASETS
    assert tuple(LAYOUTS) == prepare.SOURCES
    assert PackSettings.key_frame_every == prepare.KEY_FRAME_EVERY
    assert tuple(CHECKS) == prepare.CHECKS
    assert tuple(AUTOCAST_DTYPES) == evaluate.DTYPES
    assert tuple(SCHEMES) == visualize.SCHEMES


def test_recipes(capsys):
    main(["recipes"])
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert {"small-set", "k400-8x32-224", "ssv2-8-224"} <= set(lines)
    assert all(20 < len(text) < 110 for text in lines.values()), lines
    main(["recipes", "k400-8x32-224"])
    values = json.loads(capsys.readouterr().out)
    # the last by its base
    assert (values["num_frames"], values["sampling_rate"], values["optim"]) == (8, 32, "sgd")
    with pytest.raises(SystemExit):
        main(["recipes", "k400"])
    assert (
        "recipe 'k400' is neither a file nor one of: demo, diving48-16x16-448"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("argv", "program"),
    [
        (["scripts/train.py", "--data_dir", "clips"], "scripts/train.py"),
        (["/home/me/train.py"], "/home/me/train.py"),
        (["/venv/bin/timesformer", "train", "--data_dir", "clips"], "-m hf_timesformer.cli.train"),
        ([str(ROOT / "hf_timesformer/__main__.py"), "evaluate"], "-m hf_timesformer.cli.evaluate"),
        ([str(ROOT / "hf_timesformer/cli/__main__.py"), "train"], "-m hf_timesformer.cli.train"),
        ([str(ROOT / "hf_timesformer/cli/evaluate.py")], "-m hf_timesformer.cli.evaluate"),
    ],
)
def test_what_launchers_are_told_to_run(argv: list[str], program: str):
    assert program_for_launchers(argv) == program


def test_an_extra_that_is_missing_is_named(capsys):
    with pytest.raises(SystemExit) as end, user_errors():
        raise ModuleNotFoundError("No module named 'gradio'", name="gradio")
    assert end.value.code == 2
    assert 'pip install "hf-timesformer[app]"' in capsys.readouterr().err
    # a fault of ours is no mistake of the user's
    with pytest.raises(ModuleNotFoundError), user_errors():
        raise ModuleNotFoundError("No module named 'nonsense'", name="nonsense")


def test_train_help_shows_what_matters_in_groups(capsys):
    for option in ("--help", "--help_all"):
        with pytest.raises(SystemExit) as end:
            main(["train", option])
        assert end.value.code == 0
        if option == "--help":
            short = capsys.readouterr().out
    full = capsys.readouterr().out
    assert len(short.splitlines()) <= 250 < 400 < len(full.splitlines())
    titles = re.findall(r"^(\S.*):$", short, re.M)
    assert titles == [
        "the model",
        "the clips",
        "the training",
        "the most used of transformers' TrainingArguments",
    ]
    named = {text: set(re.findall(r"^  --(\w+)", text, re.M)) for text in (short, full)}
    ours = {"data_dir", "from_vit", "recipe", "freeze_depth", "max_bad_fraction"}
    most_used = {
        "output_dir",
        "num_train_epochs",
        "learning_rate",
        "per_device_train_batch_size",
        "bf16",
    }
    assert ours | most_used <= named[short] <= named[full]
    assert "torch_empty_cache_steps" in named[full] - named[short]
    # as the recipe small-set has it
    assert re.search(r"--layer_decay X\s[^-]*default:\s+0\.75", short)


def test_train_help_tells_the_defaults_of_the_recipe(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help", "--recipe", "k400-8x32-224"])
    assert re.search(r"--num_frames N\s[^-]*default:\s+8\)", capsys.readouterr().out)


def test_arguments_of_the_clips_are_the_same_after_train_was_parsed():
    """HfArgumentParser changes the types of the fields that both parsers read."""
    make_train_parser("Train.")
    words = "--model m --data_dir d --output_dir o --frame_rate 5 --fold 2 --extensions a b"
    args = extract.parse_arguments([*words.split(), "--limits", "max_frames=9", "max_seconds=1.5"])
    assert (args.frame_rate, args.fold, args.extensions) == (5.0, 2, ["a", "b"])
    data = dataset_arguments(args)
    limits = {"max_frames": 9, "max_seconds": 1.5}
    assert data.reading == {"frame_rate": 5.0, "limits": limits}
    assert not data.reader_options.keys() & data.reading.keys()
