"""What the benchmarks keep: one column a machine, and nothing under a machine that did not run it."""

import argparse
import importlib
import itertools
import json
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import torch
from decoding_clips import encode, picture_sequence

from hf_timesformer.evaluation.predictions import Predictions
from hf_timesformer.evaluation.report import write_report
from hf_timesformer.timeline.segments import Segment
from hf_timesformer.timeline.timeline import Timeline
from hf_timesformer.timeline.windows import Windows


SCRIPTS = Path(__file__).parents[2] / "scripts" / "benchmarks"


@pytest.fixture(autouse=True)
def on_path(monkeypatch):
    """The benchmarks import each other by name, as a folder that is run."""
    monkeypatch.syspath_prepend(SCRIPTS)


def result(work: str, seconds: dict[str, float], dtype: str = "float32") -> dict:
    return {"work": work, "dtype": dtype, "seconds": seconds}


def test_machines_stand_side_by_side(tmp_path: Path):
    results = importlib.import_module("results")
    machine = importlib.import_module("machine").Machine
    file = tmp_path / "model.json"
    first, second = machine("A", ("VNNI",), 2, "2.14.1"), machine("B", (), 8, "2.14.1")
    seconds = {
        "ours": 2.0,
        "baseline": 4.0,
        "ViT frames": 1.0,
        "ours compiled": 1.0,
        "baseline compiled": 1.5,
    }
    results.record(first, 2, [result("T+S", {"ours": 1.0, "baseline": 9.0})], file)
    results.record(first, 2, [result("T+S", seconds)], file)  # takes the place of the older one
    results.record(second, 8, [result("ST", {"ours": 1.0, "baseline": 1.5})], file)
    heading, _, *rows = results.table(json.loads(file.read_text())).splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert cells == [
        ["ST, float32", "", "1.50"],
        ["T+S, float32", "2.00 (2.00)", ""],
        ["the same, compiled", "1.50", ""],
    ]
    assert "A, 2 threads" in heading
    assert "B, 8 threads" in heading


def test_the_processor_is_named_with_what_it_computes_by(tmp_path: Path, monkeypatch):
    module = importlib.import_module("machine")
    file = tmp_path / "cpuinfo"
    file.write_text(
        "processor\t: 0\nmodel name\t: Some CPU\ncpu family\t: 6\nmodel\t\t: 143\nflags\t\t: fpu avx2 amx_bf16\n\n"
    )
    fields = module.read_cpuinfo(file)
    assert module.read_cpuinfo(tmp_path / "none") == {}
    monkeypatch.setattr(module, "read_cpuinfo", lambda: fields)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = module.this_machine()
    assert (found.name, found.instruction_sets) == (
        "Some CPU (family 6, model 143)",
        ("AVX2", "AMX BF16"),
    )


def test_frames_through_a_vit_are_the_clips_frames():
    model = importlib.import_module("model")
    work = model.Work("divided_space_time", 2, 32, batch=3)
    clip = model.make_clip(work)
    vit = model.build_vit(work, layers=1)
    seen = []
    vit.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model.runner(vit, clip.flatten(0, 1), work)()
    assert torch.equal(seen[0], clip.flatten(0, 1))
    assert vit.config._attn_implementation == "sdpa"
    assert vit.config.image_size == 32


def test_gpu_table_compares_like_with_like(monkeypatch, capsys):
    """On a CPU: no GPU is said to have run; the table's own arithmetic, with nothing compiled."""
    gpu = importlib.import_module("gpu")
    if not torch.cuda.is_available():
        gpu.run(None)
        assert "no GPU ran" in capsys.readouterr().out
    monkeypatch.setattr(torch, "compile", lambda model, **settings: model)
    model = importlib.import_module("model")
    work = model.Work("divided_space_time", 2, 32, batch=3)
    arguments = argparse.Namespace(layers=1, repeats=1)
    table = gpu.measure(work, arguments)
    assert (
        table["ViT frames"]["over_ViT_frames"]
        == table["ViT frames compiled"]["over_ViT_frames"]
        == 1
    )
    names = ["ours", "ours, groups apart", "stock", "ours compiled", "stock compiled"]
    for name in [*names, "ours, groups apart compiled", "ours reduce-overhead"]:
        row = table[name]
        assert row["clips_per_second"] == pytest.approx(3 / (row["ms"] / 1e3), rel=0.01), name


def test_gpu_compares_temporal_attention_packed_and_apart(monkeypatch):
    """On a CPU that packs as a GPU does: both paths run, and both are held to fp32."""
    gpu, works = importlib.import_module("gpu"), importlib.import_module("works")
    monkeypatch.setattr(gpu, "INFERENCE", works.Work("divided_space_time", 4, 160, batch=1))
    monkeypatch.setattr(gpu.attention, "PACKING_DEVICES", (works.device(),))
    lengths = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def noting(query, *args, **settings):
        lengths.append(query.shape[2])
        return attend(query, *args, **settings)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", noting)
    found = gpu.temporal_attention(argparse.Namespace(repeats=1))
    assert set(lengths) <= {4, 128}
    assert 128 in lengths
    assert found["packed, error"] < 0.02
    assert found["packed, forward, ms"] > 0
    assert (works.device(),) == gpu.attention.PACKING_DEVICES


def test_label_counts_seconds_and_windows_of_a_video(tmp_path: Path):
    module = importlib.import_module("label")
    path = encode(tmp_path / "clip.mp4", picture_sequence(60), options={"g": "20"})  # 2 s
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    row = module.measure(path, parser.parse_args([str(path), "--window", "1", "--num_frames", "2"]))
    decoding = row["decoding"]
    assert decoding["seconds_of_video"] == 2.0
    assert decoding["windows"] == 3  # from 0, 0.5 and 1.0 s
    assert "times real time" in module.as_text(row)


def test_lengths_in_words():
    as_length = importlib.import_module("decode").as_length
    assert [as_length(x) for x in (10, 60, 90, 14400)] == ["10 s", "1 min", "1.5 min", "4 h"]


def test_reports_of_other_benchmarks_stand_side_by_side(tmp_path: Path):
    results, machine = importlib.import_module("results"), importlib.import_module("machine")
    for name, ratio in (("A", 1.0), ("B", 2.0), ("A", 3.0)):
        results.keep("decode", machine.Machine(name, (), 2, "2"), {"ratio": ratio}, tmp_path)
    stored = json.loads((tmp_path / "decode.json").read_text(encoding="utf-8"))
    ratios = {name: entry["report"]["ratio"] for name, entry in stored.items()}
    assert ratios == {"A": 3.0, "B": 2.0}
    assert all(entry["date"] for entry in stored.values())


def test_rows_take_the_place_of_older_ones_of_the_same_words(tmp_path: Path):
    results, machine = importlib.import_module("results"), importlib.import_module("machine")
    render = importlib.import_module("tables").render
    mine, other = machine.Machine("A", ("AVX2",), 2, "2"), machine.Machine("B", (), 4, "2")
    day = date.today().isoformat()
    for name, count in (("a", 1), ("b", 2), ("a", 3)):
        results.keep_rows("joints", mine, [{"what": name, "found": count}], "run", tmp_path)
    assert f"\n| a | 3 | {day} |\n| b | 2 | {day} |\n" in render("joints", tmp_path)
    results.keep_rows("joints", other, [{"what": "c", "found": 4}], "run", tmp_path)
    assert f":|\n| c | 4 | {day} |\n\nMeasured on B, 4 cores" in render("joints", tmp_path)


def test_joints_that_are_missed_and_why():
    """The network takes the first clip of c for b, and a border lies 1.5 s late."""
    joints = importlib.import_module("joints")
    ends, labels = (0, 5, 10, 15, 16.5, 21, 26), "abcbca"
    pieces = [joints.Piece(*ends[i : i + 2], labels[i], "clip") for i in range(6)]
    seen = "a" * 5 + "b" * 11 + "c" * 5 + "a" * 4  # by the windows from 0, 1, 2, ... s
    scores = np.array([[letter == name for name in "abc"] for letter in seen], np.float32)
    found = (0, 6.5, 14.5, 21, 26)
    segments = [Segment(*found[i : i + 2], "abca"[i], 1.0) for i in range(4)]
    timeline = Timeline("film", 26.0, Windows(2, 1, 4), list("abc"), scores, segments=segments)
    row, missed = joints.judge(timeline, pieces, 1.0)
    told = [(one.seconds, one.reason) for one in missed]
    assert told == [(5, "border"), (10, "model"), (16.5, "short")]
    assert (row["joints"], row["found"], row["false borders"]) == (5, 2, 1)


def test_parts_of_a_record_make_one_table(tmp_path: Path):
    """Eager and compiled runs were recorded apart, and four blocks are not twelve."""
    results = importlib.import_module("results")
    machine = importlib.import_module("machine").Machine("A", (), 2, "2")
    eager = result("T+S", {"ours": 1.0, "baseline": 2.0}) | {"part": "eager", "layers": 12}
    compiled = result("T+S", {"ours": 1.0, "baseline": 2.0, "ours compiled": 0.5})
    few = result("T+S", {"ours": 1.0, "baseline": 3.0}) | {"layers": 4}
    parts = [eager, compiled | {"part": "compiled", "layers": 12}, few]
    results.record(machine, 2, parts, tmp_path / "model.json")
    stored = json.loads((tmp_path / "model.json").read_text(encoding="utf-8"))
    rows = results.table(stored).splitlines()[2:]
    assert rows == [
        "| T+S, float32 | 2.00 |",
        "| the same, compiled | 4.00 |",
        "| T+S, float32, 4 blocks | 3.00 |",
    ]


def test_every_format_is_exported_once_and_compared_with_the_model(monkeypatch, tmp_path: Path):
    """Two of the six say something else of one video in two."""
    exported = importlib.import_module("exported")
    calls = []

    def export(argv: list[str]) -> None:
        calls.append(argv[2:])
        Path(argv[1]).mkdir()

    def evaluate(argv: list[str]) -> None:
        options = dict(itertools.pairwise(argv))
        folder = Path(options["--output_dir"])
        wrong = options.get("--precision") == "int8"
        logits = np.array([[1.0, 0.0], [float(wrong), 0.5]], np.float32)
        predictions = Predictions(["a", "b"], logits, np.array([0, 1]))
        write_report(folder, {"top1_accuracy": 1 - wrong / 2}, predictions, ["x", "y"])

    monkeypatch.setattr(exported.export, "main", export)
    monkeypatch.setattr(exported.evaluate, "main", evaluate)
    parser = argparse.ArgumentParser()
    exported.add_arguments(parser)
    options = ["--model", "m", "--data_dir", "clips", "--json", str(tmp_path / "found.json")]
    exported.run(parser.parse_args(options))
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))["formats"]
    assert [row["same_answer"] for row in found] == [1, 1, 0.5, 1, 1, 0.5]
    assert [row["top1_accuracy"] for row in found] == [1, 1, 0.5, 1, 1, 0.5]
    calibration = ["--calibration_dir", "clips/train", "--calibration_clips", "16"]
    openvino = ["--format", "openvino"]
    assert calls == [["--int8"], openvino, [*openvino, "--int8", *calibration]]


def test_a_form_that_cannot_run_is_named_and_the_others_are_timed(monkeypatch, tmp_path: Path):
    formats, page_tables = map(importlib.import_module, ("formats", "page_tables"))

    def missing():
        raise ImportError("No module named 'torchao'\nmore")

    made = {formats.BASELINE: lambda: torch.nn.Flatten(), "torchao, int8": missing}
    monkeypatch.setattr(formats, "forms", lambda folder, args: made)
    monkeypatch.setattr(formats, "make_clip", lambda work: torch.zeros(1, 2))
    args = argparse.Namespace(threads=1, layers=1, repeats=1)
    report = formats.measure(tmp_path, args)
    assert report["times_as_fast"] == {formats.BASELINE: 1}
    assert report["left_out"] == {"torchao, int8": "ImportError: No module named 'torchao'"}
    report["seconds"] |= {"OpenVINO, int8": report["seconds"][formats.BASELINE] - 1}
    report["times_as_fast"]["OpenVINO, int8"] = 3.0
    machine = {"name": "M", "instruction_sets": [], "cores": 2, "torch": "2"}
    other = report | {"seconds": {"new": 1.0}, "times_as_fast": {"new": 2.0}, "left_out": {}}
    stored = {"machine": machine, "date": "D", "load": 0.5}
    table = page_tables.formats({"M": stored | {"report": report}, "N": stored | {"report": other}})
    assert [row[0] for row in table["rows"]] == ["OpenVINO, int8", formats.BASELINE, "new"]
    assert table["rows"][0][2] == "3.00"
    assert table["rows"][2][1:] == [None, None, "1000", "2.00"]
    assert table["note"].endswith("load up to 0.5. Not run on M: torchao, int8.")


def test_fused_attention_is_no_gift():
    """Joint attention among the 9 tokens of 4 x 2 patches: what is multiplied, by hand."""
    works = importlib.import_module("works")
    model = works.build(works.Work("joint_space_time", 2, 32), "ours", layers=1)
    tokens, patches, width = 9, 8, 768
    layers = tokens * width * (3 + 1 + 4 + 4) * width
    attention = 2 * tokens * tokens * width
    found = works.count_flops(model.base_model, torch.zeros(1, 2, 3, 32, 32))
    expected = patches * width * width + layers + attention
    assert found == pytest.approx(expected / 1e12, rel=1e-9)
