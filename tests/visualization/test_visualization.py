"""Rollout against dense matrices read off the network's own attention, and the pictures made of it."""

import itertools
import runpy
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from hf_timesformer.data.synthetic import motion_frames
from hf_timesformer.model.attention import TimeSformerSelfAttention
from hf_timesformer.model.configuration_timesformer import TimeSformerConfig
from hf_timesformer.model.modeling_timesformer import TimeSformerForVideoClassification
from hf_timesformer.model.schemes import SCHEMES
from hf_timesformer.video.encoding import write_video
from hf_timesformer.video.video_processing_timesformer import TimeSformerVideoProcessor
from hf_timesformer.visualization.pictures import (
    QUERY_COLOUR,
    STEP_COLOURS,
    Explanation,
    contact_sheet,
    overlay,
    pattern_frames,
    restore_frames,
    write_attention_video,
)
from hf_timesformer.visualization.rollout import (
    Recorded,
    attention_rollout,
    record_attention,
    step_rows,
    visible_patches,
)


ROOT = Path(__file__).resolve().parents[2]
STEPS = ("space", "joint", "temporal", "width", "height", "global", "local")
GRIDS = [(4, 4, 2), (3, 5, 3), (5, 4, 1)]


def seen_by_definition(step: str, grid: tuple, q: tuple) -> np.ndarray:
    """Which patches the paper lets `q` see, from its words alone (the five schemes)."""
    height, width, _ = grid
    rules = {
        "space": lambda h, w, t: t == q[2],
        "joint": lambda h, w, t: True,
        "temporal": lambda h, w, t: (h, w) == q[:2],
        "width": lambda h, w, t: (h, t) == (q[0], q[2]),
        "height": lambda h, w, t: (w, t) == (q[1], q[2]),
        "global": lambda h, w, t: all((a - b) % 2 == 0 for a, b in zip((h, w, t), q)),
        "local": lambda h, w, t: (
            abs(h - q[0]) <= height // 2 // 2 and abs(w - q[1]) <= width // 2 // 2
        ),
    }
    seen = np.zeros(grid, bool)
    for place in itertools.product(*map(range, grid)):
        seen[place] = rules[step](*place)
    return seen


def attention_matrix(
    step: str, grid: tuple, *, with_cls: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The dense `(1 + n, 1 + n)` attention matrix of a step with random weights, and the weights as
    it gives them.

    Tokens are one-hot and the value projection is the identity, so what a token gathers is its row
    of the matrix.
    """
    count = 1 + int(np.prod(grid))
    config = TimeSformerConfig(hidden_size=count, num_attention_heads=1, qkv_bias=False)
    config._attn_implementation = "eager"
    attention = TimeSformerSelfAttention(config, step, with_cls)
    with torch.no_grad():
        attention.qkv.weight.copy_(torch.cat((3 * torch.randn(2 * count, count), torch.eye(count))))
        tokens = torch.eye(count)[None]
        rows, weights = attention(tokens if with_cls else tokens[:, 1:], grid, with_weights=True)
    first = tokens[0, :0] if with_cls else tokens[0, :1]
    return torch.cat((first, rows[0])), weights.mean(dim=1)


# What a patch may see


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("step", STEPS)
def test_visible_patches_are_those_of_the_paper_and_of_the_network(step: str, grid: tuple) -> None:
    torch.manual_seed(0)
    matrix, _ = attention_matrix(step, grid, with_cls=False)
    for index, query in enumerate(itertools.product(*map(range, grid))):
        seen = visible_patches(step, grid, query).numpy()
        assert np.array_equal(seen, seen_by_definition(step, grid, query)), query
        assert np.array_equal(seen, matrix[1 + index, 1:].reshape(grid).numpy() > 0), query


# Rollout


def test_rollout_of_a_case_worked_by_hand() -> None:
    # Two columns (w) of two frames (t). Patches in the order (w0 t0) (w0 t1) (w1 t0) (w1 t1).
    # one matrix for w0, one for w1
    temporal = torch.tensor([[[1.0, 0.0], [0.5, 0.5]], [[0.0, 1.0], [0.25, 0.75]]])
    space = torch.tensor(  # one matrix for t0, one for t1; CLS first
        [
            [[0.2, 0.4, 0.4], [0.5, 0.5, 0.0], [0.0, 0.0, 1.0]],
            [[0.6, 0.2, 0.2], [1.0, 0.0, 0.0], [0.2, 0.4, 0.4]],
        ]
    )
    recorded = Recorded(
        torch.zeros(1, 2), (1, 2, 2), "divided_space_time", [{"temporal": temporal, "space": space}]
    )
    # Space: CLS' row is the mean over frames, (0.4; 0.2 0.1 0.2 0.1), half of it beside half of
    # itself: (0.7; 0.1 0.05 0.1 0.05). Time then takes (0.1 0.05) of w0 to (0.125 0.025) and of w1
    # to (0.0125 0.1375), each averaged with what it was; CLS has no part in it.
    cls, patches = attention_rollout(recorded)
    assert cls.tolist() == pytest.approx([0.7])
    assert patches.flatten().tolist() == pytest.approx([0.1125, 0.0375, 0.05625, 0.09375])

    # From the patch (w1 t1). Space: half itself, half (0.2; 0 0.4 0 0.4): (0.1; 0 0.2 0 0.7).
    # Time: w0 (0 0.2) -> (0.1 0.1), w1 (0 0.7) -> (0.175 0.525).
    cls, patches = attention_rollout(recorded, query=(0, 1, 1))
    assert cls.tolist() == pytest.approx([0.1])
    assert patches.flatten().tolist() == pytest.approx([0.05, 0.15, 0.0875, 0.6125])


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize(
    ("step", "with_cls"),
    [(step, last) for step in STEPS for last in (False, True) if (step, last) != ("local", True)],
)
def test_a_row_through_a_step_is_the_row_times_its_matrix(
    step: str, grid: tuple, with_cls: bool
) -> None:
    torch.manual_seed(0)
    matrix, weights = attention_matrix(step, grid, with_cls=with_cls)
    assert matrix.sum(dim=1).tolist() == pytest.approx([1.0] * len(matrix), abs=1e-5)
    row = torch.rand(len(matrix))
    cls, patches = step_rows(row[:1], row[1:].reshape(1, *grid), weights, step)
    assert torch.allclose(torch.cat((cls, patches.flatten())), row @ matrix, atol=1e-5)


@pytest.mark.parametrize("scheme", [scheme for scheme in SCHEMES if scheme != "space_only"])
def test_rollout_is_the_product_of_all_steps(scheme: str) -> None:
    torch.manual_seed(0)
    grid, layers, product = (3, 4, 2), [], torch.eye(25)
    *early, last = SCHEMES[scheme]
    for _ in range(3):
        layers.append({})
        for step in (*early, last):
            matrix, layers[-1][step] = attention_matrix(step, grid, with_cls=step == last)
            product = (0.5 * torch.eye(25) + 0.5 * matrix) @ product
    recorded = Recorded(torch.zeros(1, 2), grid, scheme, layers)
    queries = [None, *itertools.product(*map(range, grid))]
    for row, query in zip(product, queries):
        cls, patches = attention_rollout(recorded, query=query)
        assert torch.allclose(torch.cat((cls, patches.flatten())), row, atol=1e-5), query
        assert float(cls + patches.sum()) == pytest.approx(1, abs=1e-5)


def small_model(scheme: str, **settings: object) -> TimeSformerForVideoClassification:
    torch.manual_seed(0)
    config = TimeSformerConfig(
        attention_type=scheme, image_size=[24, 40], patch_size=8, num_frames=3, hidden_size=32, num_hidden_layers=3,
        num_attention_heads=4, intermediate_size=64, num_labels=5, initializer_range=0.3, **settings,
    )  # fmt: skip
    model = TimeSformerForVideoClassification(config).eval()
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("scheme", SCHEMES)
def test_rollout_of_a_model_sums_to_one_and_leaves_the_model_as_it_was(scheme: str) -> None:
    model = small_model(scheme)
    model.set_attn_implementation("sdpa")
    pixels = torch.randn(2, 3, 3, 24, 40)
    recorded = record_attention(model, pixels)
    with torch.no_grad():
        assert torch.allclose(recorded.logits, model(pixels).logits, atol=1e-5)
    assert model.config._attn_implementation == "sdpa"
    for query in (None, (2, 1, 0)):
        cls, patches = attention_rollout(recorded, query=query)
        assert patches.shape == (2, 3, 5, 3)
        assert (cls + patches.sum(dim=(1, 2, 3))).tolist() == pytest.approx([1, 1], abs=1e-5)
    one, _ = attention_rollout(record_attention(model, pixels[1:]))
    assert float(one) == pytest.approx(float(attention_rollout(recorded)[0][1]), abs=1e-5)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_recorded_weights_are_those_of_output_attentions(scheme: str) -> None:
    model = small_model(scheme)
    model.set_attn_implementation("eager")
    pixels = torch.randn(1, 3, 3, 24, 40)
    with torch.no_grad():
        outputs = model(pixels, output_attentions=True)
    recorded, second = record_attention(model, pixels), record_attention(model, pixels, head=2)
    *early, last = SCHEMES[scheme]
    for name, step in [("attentions", last), *((f"{step}_attentions", step) for step in early)]:
        for layer, head, weights in zip(recorded.layers, second.layers, outputs[name]):
            assert torch.allclose(layer[step], weights.mean(dim=1), atol=1e-6), name
            assert torch.allclose(head[step], weights[:, 2], atol=1e-6), name


def test_rollout_of_space_only_is_the_mean_over_frames_that_ran_alone() -> None:
    model, pixels = small_model("space_only"), torch.randn(1, 3, 3, 24, 40)
    cls, patches = attention_rollout(record_attention(model, pixels))
    alone = [
        attention_rollout(record_attention(model, pixels[:, frame : frame + 1]))
        for frame in range(3)
    ]
    assert float(cls) == pytest.approx(sum(float(share) for share, _ in alone) / 3, abs=1e-6)
    for frame, (_, expected) in enumerate(alone):
        assert torch.allclose(patches[..., frame], expected[..., 0] / 3, atol=1e-6)


def test_one_layer_and_one_head_are_what_cls_sees_there() -> None:
    model = small_model("divided_space_time")
    model.set_attn_implementation("eager")
    pixels = torch.randn(1, 3, 3, 24, 40)
    with torch.no_grad():
        space = model(pixels, output_attentions=True).attentions[1][:, 3]  # (t, 1 + h*w, 1 + h*w)
    recorded = record_attention(model, pixels, head=3)
    cls, _ = attention_rollout(recorded, layers=[1])
    assert float(cls) == pytest.approx(0.5 + 0.5 * float(space[:, 0, 0].mean()), abs=1e-5)
    no_time = Recorded(
        recorded.logits, recorded.grid, "divided_space_time", [dict(recorded.layers[1])]
    )
    no_time.layers[0]["temporal"] = torch.eye(3).expand(15, 3, 3)
    _, patches = attention_rollout(no_time, residual=0.0)
    expected = space[:, 0, 1:].unflatten(1, (3, 5)).permute(1, 2, 0) / 3
    assert torch.allclose(patches[0], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: record_attention(m, torch.zeros(1, 3, 3, 3, 24, 40)), "one view"),
        (lambda m: record_attention(m, torch.zeros(1, 3, 3, 24, 40), head=4), "head 4 .* 0 to 3"),
        (
            lambda m: attention_rollout(
                record_attention(m, torch.zeros(1, 3, 3, 24, 40)), layers=[3]
            ),
            "0 to 2",
        ),
        (
            lambda m: attention_rollout(
                record_attention(m, torch.zeros(1, 3, 3, 24, 40)), query=(3, 0, 0)
            ),
            "grid",
        ),
        (lambda m: record_attention(m, torch.zeros(1, 3, 3, 1600, 1600)), "GiB.*fewer frames"),
    ],
)
def test_what_cannot_be_shown_is_one_clear_error(call: object, message: str) -> None:
    model = small_model("joint_space_time")
    with pytest.raises(ValueError, match=message):
        call(model)
    with torch.no_grad():
        model(torch.zeros(1, 3, 3, 24, 40))  # and the model still runs


# Pictures


def an_explanation(count: int = 3, height: int = 24, width: int = 41) -> Explanation:
    attention = np.zeros((count, 3, 5), np.float32)
    attention[count // 2, 2, 4] = 1.0
    frames = np.full((count, height, width, 3), 128, np.uint8)
    return Explanation(
        frames, np.arange(count) / 2, np.array([0.2, 0.8]), attention, 0.4, "rises 80%"
    )


def test_overlay_is_brightest_where_the_attention_is() -> None:
    explanation = an_explanation()
    change = np.abs(overlay(explanation.frames, explanation.attention).astype(int) - 128).sum(
        axis=-1
    )
    warm = overlay(explanation.frames, explanation.attention)[..., 0].astype(int)
    assert np.unravel_index(warm.argmax(), warm.shape) >= (1, 16, 32)
    assert warm[1, 20:, 36:].min() > 170
    assert warm[0].max() == warm[2].max() == warm[1, :8].max() < 128
    assert (change > 0).all()


def test_overlay_of_even_attention_is_even() -> None:
    frames = np.full((2, 16, 16, 3), 90, np.uint8)
    assert len(np.unique(overlay(frames, np.full((2, 2, 2), 0.25, np.float32))[..., 0])) == 1


@pytest.mark.parametrize("count", [1, 3, 11])
def test_contact_sheet_shows_every_frame(count: int) -> None:
    explanation = an_explanation(count)
    explanation.frames[:] = np.arange(10, 10 + 20 * count, 20, dtype=np.uint8)[:, None, None, None]
    sheet = np.asarray(contact_sheet(explanation))
    for value in range(10, 10 + 20 * count, 20):
        assert (sheet == value).all(axis=-1).sum() >= 3 * 24 * 3 * 41, (
            f"the frame of value {value} is not on the sheet"
        )


@pytest.mark.parametrize(("fps", "expected"), [(None, 2), (5, 5)])
def test_attention_video_plays_frames_beside_their_attention(
    tmp_path: Path, fps: float | None, expected: int
) -> None:
    explanation = an_explanation(count=4)
    path = write_attention_video(tmp_path / "attention.mp4", explanation, fps=fps)
    with av.open(str(path)) as container:
        assert float(container.streams.video[0].average_rate) == pytest.approx(expected, rel=0.01)
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert frames.shape == (4, 24, 82, 3)
    assert np.abs(frames[:, :, :40].astype(int) - 128).max() < 12
    over = overlay(explanation.frames, explanation.attention)
    assert np.abs(frames[:, 2:-2, 44:80].astype(int) - over[:, 2:-2, 3:39]).mean() < 6


@pytest.mark.parametrize("scheme", SCHEMES)
def test_pattern_colours_the_patches_of_each_step(scheme: str) -> None:
    grid, query, patch = (6, 5, 3), (2, 3, 1), 4
    picture = pattern_frames(scheme, grid, query, patch=patch)
    centres = picture[:, patch // 2 :: patch, patch // 2 :: patch]  # (t, h, w, 3)
    steps = SCHEMES[scheme]
    seen = np.stack([seen_by_definition(step, grid, query) for step in steps]).transpose(0, 3, 1, 2)
    for place in itertools.product(range(3), range(6), range(5)):
        by = [colour for colour, step in zip(STEP_COLOURS, seen) if step[place]]
        if place == (1, 2, 3):
            assert tuple(centres[place]) == QUERY_COLOUR
        elif len(by) == 1:
            assert tuple(centres[place]) == by[0], place
        else:
            assert (tuple(centres[place]) == (238, 238, 238)) == (not by), place


def test_restored_frames_are_the_centre_crop(tmp_path: Path) -> None:
    frames = motion_frames("left", np.random.default_rng(0), num_frames=6, size=32)
    processor = TimeSformerVideoProcessor(
        num_frames=6, size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    pixels = processor(frames, return_tensors="pt", do_sample_frames=False)["pixel_values"][0]
    assert np.array_equal(restore_frames(pixels, processor), frames)


def test_attention_follows_what_moves() -> None:
    """A network whose attention is made to prefer bright patches looks where the bright square is."""
    model = small_model("joint_space_time")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        for name, parameter in model.named_parameters():
            if "layernorm" in name and name.endswith("weight"):
                parameter.fill_(1)
        # feature 0: brightness
        model.timesformer.embeddings.patch_embeddings.projection.weight[0] = 1.0
        model.timesformer.embeddings.cls_token[..., 1] = 5.0
        for block in model.timesformer.encoder.layer:
            weight = block.attention.attention.qkv.weight
            weight[:8, 1] = 2.0  # queries: of CLS
            weight[32:40, 0] = 2.0  # keys: brightness, in head 0
    pixels = torch.zeros(1, 3, 3, 24, 40)
    for frame, column in enumerate((0, 2, 4)):
        pixels[0, frame, :, 8:16, 8 * column : 8 * column + 8] = 1.0
    _, patches = attention_rollout(record_attention(model, pixels, head=0))
    found = [tuple(np.unravel_index(int(patches[0, ..., f].argmax()), (3, 5))) for f in range(3)]
    assert found == [(1, 0), (1, 2), (1, 4)]


def run_script(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    script = ROOT / "scripts" / "visualize_attention.py"
    monkeypatch.setattr(sys, "argv", [str(script), *arguments])
    try:
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as done:
        return done.code
    return 0


def test_script_writes_sheet_and_video_and_goes_on_after_a_bad_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    model = small_model("divided_space_time")
    model.save_pretrained(tmp_path / "model")
    processor = TimeSformerVideoProcessor(
        num_frames=3,
        sampling_rate=4,
        size={"shortest_edge": 24},
        crop_size={"height": 24, "width": 40},
        num_crops=3,
    )
    processor.save_pretrained(tmp_path / "model")
    write_video(
        tmp_path / "clip.mp4",
        motion_frames("up", np.random.default_rng(0), num_frames=16, size=48),
        fps=8,
    )
    (tmp_path / "bad.mp4").write_text("no video")
    monkeypatch.chdir(tmp_path)
    arguments = ["learned", "bad.mp4", "clip.mp4", "--model", "model", "--output_dir", "out"]
    assert run_script(monkeypatch, *arguments, "--layers", "1", "2", "--head", "0") == 1
    errors = capsys.readouterr().err
    assert errors.count("error: ") == 1
    assert "bad.mp4" in errors
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"clip.png", "clip.mp4"}
    with av.open(str(tmp_path / "out" / "clip.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 3
    with Image.open(tmp_path / "out" / "clip.png") as sheet:
        assert sheet.width > 3 * 100
    assert run_script(monkeypatch, *arguments, "--layers", "7") == 2
    assert "layers [7] are not among the model's 0 to 2" in capsys.readouterr().err


def test_script_draws_the_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(
        tmp_path / "clip.mp4", motion_frames("up", np.random.default_rng(0), num_frames=16, size=48)
    )
    plain, over = tmp_path / "plain.png", tmp_path / "over.png"
    arguments = [
        "patterns",
        "--grid",
        "6",
        "7",
        "--frames",
        "3",
        "--query",
        "1",
        "2",
        "1",
        "--output",
    ]
    assert run_script(monkeypatch, *arguments, str(plain)) == 0
    assert (
        run_script(monkeypatch, *arguments, str(over), "--video", str(tmp_path / "clip.mp4")) == 0
    )
    pixels = np.asarray(Image.open(plain).convert("RGB"))
    squares = (pixels == QUERY_COLOUR).all(axis=-1).sum()
    assert squares == len(SCHEMES) * 11 * 11 + 11 * 11  # one a scheme, and the one of the legend
    assert Image.open(over).size == Image.open(plain).size
    assert not np.array_equal(np.asarray(Image.open(over)), pixels)
    assert (
        run_script(monkeypatch, "patterns", "--query", "14", "0", "0", "--output", str(plain)) == 2
    )
