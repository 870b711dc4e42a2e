"""Training augmentation: the same for every frame of a clip, and the same again from the same seed."""

import re

import numpy as np
import pytest
import torch

from hf_timesformer.data.augmentation import ClipAugmentation, cut_and_mix_clips, mix_clips
from hf_timesformer.data.clips import ClipCollator


MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def make(crop=16, short_side=(16, 16), **options) -> ClipAugmentation:
    return ClipAugmentation(crop, short_side=short_side, image_mean=MEAN, image_std=STD, **options)


def noise(frames=3, height=16, width=16, seed=0) -> torch.Tensor:
    return torch.randint(
        256, (frames, 3, height, width), generator=torch.manual_seed(seed), dtype=torch.uint8
    )


def normalise(frames: torch.Tensor) -> torch.Tensor:
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    return (frames / 255 - mean) / std


@pytest.mark.parametrize(("crop", "width"), [((16, 24), 30), ((24, 16), 30), ((16, 24), 20)])
def test_crops_may_be_higher_or_wider(crop, width):
    """Every frame of the clip is cut alike; where the frame is too small for the crop it gets a
    black border.
    """
    frames = noise(width=width)
    clip = make(crop, flip=False)(frames, 16, np.random.default_rng(0))
    assert clip.shape == (3, 3, *crop)
    black = normalise(torch.zeros(1, 3, 1, 1))
    is_black = torch.isclose(clip, black, atol=1e-5).all(dim=1)  # (t, h, w)
    assert bool(is_black.any()) == (crop[0] > 16 or crop[1] > frames.shape[-1])


def test_pixels_are_cropped_mirrored_and_normalised_and_nothing_else():
    frames, seen = noise(width=20), set()
    for seed in range(60):
        clip = make()(frames, 16, np.random.default_rng(seed))
        found = []
        for left in range(5):
            crop = normalise(frames[..., left : left + 16])
            found += [
                (left, flip)
                for flip in (False, True)
                if torch.allclose(clip, crop.flip(-1) if flip else crop, atol=1e-5)
            ]
        assert len(found) == 1
        seen.update(found)
    assert len(seen) == 10  # every place, both ways round


def test_one_mean_makes_clips_grey():
    """By the weights of BT.601, as the processor does it in evaluation."""
    frames = noise()
    augment = ClipAugmentation(
        16, short_side=(16, 16), flip=False, image_mean=[0.4], image_std=[0.2]
    )
    clip = augment(frames, 16, np.random.default_rng(0))
    luminance = (frames * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    assert clip.shape == (3, 1, 16, 16)
    torch.testing.assert_close(clip, (luminance / 255 - 0.4) / 0.2, atol=1.1 / 255 / 0.2, rtol=0)


def test_no_flip_is_no_flip():
    frames = noise()
    augmentation = make(flip=False)
    for seed in range(20):
        torch.testing.assert_close(
            augmentation(frames, 16, np.random.default_rng(seed)), normalise(frames)
        )


STRONG = {
    "color_jitter": {"color_jitter": 0.4},
    "random_resized_crop": {"random_resized_crop": (0.1, 0.8)},
    "rand_augment": {"rand_augment": (2, 20)},
    "random_erasing": {"random_erasing": 1.0},
    "all": {
        "color_jitter": 0.4,
        "random_resized_crop": (0.1, 1.0),
        "rand_augment": (2, 9),
        "random_erasing": 0.5,
    },
}


@pytest.mark.parametrize("options", STRONG.values(), ids=STRONG)
def test_all_frames_of_a_clip_are_treated_alike(options):
    frames = noise(frames=1, height=30, width=40).expand(4, -1, -1, -1)
    augmentation = make(short_side=(18, 26), **options)
    for seed in range(10):
        generator = np.random.default_rng(seed)
        clip = augmentation(frames, augmentation.draw_short_side(generator), generator)
        assert clip.shape == (4, 3, 16, 16)
        for frame in clip[1:]:
            torch.testing.assert_close(frame, clip[0], rtol=0, atol=0)


def test_follows_from_the_generator_and_leaves_torchs_own_alone():
    frames, augmentation = noise(height=30, width=40), make(short_side=(18, 26), color_jitter=0.4)
    torch.manual_seed(3)
    expected_next = torch.rand(2)
    clips = []
    for junk in (1, 2):
        torch.manual_seed(junk)
        clips.append(augmentation(frames, 20, np.random.default_rng(9)))
    torch.testing.assert_close(*clips, rtol=0, atol=0)
    assert not torch.equal(clips[0], augmentation(frames, 20, np.random.default_rng(10)))
    torch.manual_seed(3)
    augmentation(frames, 20, np.random.default_rng(9))
    torch.testing.assert_close(torch.rand(2), expected_next, rtol=0, atol=0)


def test_short_side_covers_its_range():
    generator = np.random.default_rng(0)
    augmentation = make(short_side=(18, 21))
    assert {augmentation.draw_short_side(generator) for _ in range(100)} == {18, 19, 20, 21}


def test_inverse_short_side_is_uniform_in_its_inverse():
    generator = np.random.default_rng(0)
    augmentation = make(short_side=(16, 32), inverse_short_side=True)
    drawn = np.array([augmentation.draw_short_side(generator) for _ in range(20_000)])
    assert (drawn.min(), drawn.max()) == (16, 32)
    # 1/x uniform on [1/32, 1/16]: E[x] = 16 * 32 / (32 - 16) * ln 2
    assert drawn.mean() == pytest.approx(32 * np.log(2), abs=0.1)


def test_a_crop_of_any_size_has_the_share_that_was_asked_for():
    """A ramp from left to right says how wide a crop was."""
    frames = torch.arange(64, dtype=torch.uint8).mul(4).expand(2, 3, 64, 64)
    augmentation = make(short_side=(64, 64), random_resized_crop=(0.25, 0.25), flip=False)
    widths = []
    for seed in range(30):
        clip = augmentation(frames, 64, np.random.default_rng(seed))
        pixels = clip[0, 0, 0] * STD[0] + MEAN[0]
        widths.append(((pixels[-2] - pixels[1]) * 255 / 4).item() * 16 / 13)
    assert 25 < min(widths) < max(widths) < 40  # 64 * sqrt(1/4 * 3/4) and its inverse, 27.7 to 37
    assert augmentation.draw_short_side(np.random.default_rng(0)) == 64


def test_a_rectangle_is_erased_in_that_share_of_the_clips():
    augmentation = make(flip=False, random_erasing=0.5)
    frames, erased = noise(frames=2), 0
    for seed in range(60):
        changed = (
            augmentation(frames, 16, np.random.default_rng(seed)) - normalise(frames)
        ).abs().amax((0, 1)) > 1e-5
        rows, columns = changed.any(1).nonzero().flatten(), changed.any(0).nonzero().flatten()
        erased += len(rows) > 0
        if len(rows):
            assert changed[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
    assert 18 <= erased <= 42


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"random_resized_crop": (0.0, 1.0)}, "0 < smallest <= largest <= 1"),
        ({"random_resized_crop": (0.5, 0.2)}, "0 < smallest <= largest <= 1"),
        ({"rand_augment": (0, 9)}, "number of operations and a strength from 0 to 30"),
        ({"rand_augment": (2, 31)}, "number of operations and a strength from 0 to 30"),
        ({"random_erasing": 1.5}, "share of the clips, 0 to 1, got 1.5"),
    ],
)
def test_strengths_that_are_none(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make(**options)


@pytest.mark.parametrize("short_side", [(15, 20), (20, 18)])
def test_jitter_that_does_not_fit_the_crop(short_side):
    with pytest.raises(
        ValueError, match=rf"{short_side[0]} to {short_side[1]} does not fit crops of 16"
    ):
        make(short_side=short_side)


def test_mixup_mixes_clips_and_labels_by_one_weight():
    clips = torch.tensor([1.0, 10.0, 100.0]).view(3, 1, 1, 1, 1)
    mixed, labels = mix_clips(clips, torch.tensor([0, 2, 1]), 4, 0.5, np.random.default_rng(4))
    weight = labels[0, 0].item()
    assert 0 < weight < 1
    torch.testing.assert_close(labels[0], torch.tensor([weight, 1 - weight, 0, 0]))
    torch.testing.assert_close(labels[1], torch.tensor([0.0, 0, 1, 0]))
    torch.testing.assert_close(
        mixed.flatten(), torch.tensor([weight + 100 * (1 - weight), 10, 100 * weight + 1 - weight])
    )


def test_cutmix_puts_one_rectangle_of_another_clip_into_all_frames():
    clips = torch.tensor([1.0, 2.0, 4.0]).view(3, 1, 1, 1, 1).expand(3, 2, 3, 10, 14)
    shares = []
    for seed in range(40):
        mixed, labels = cut_and_mix_clips(
            clips, torch.tensor([0, 1, 2]), 3, 1.0, np.random.default_rng(seed)
        )
        is_other = mixed[0] == 4.0
        torch.testing.assert_close(mixed[0], torch.where(is_other, 4.0, 1.0))
        assert (is_other == is_other[:1, :1]).all()  # the same place in all frames and channels
        share = is_other.float().mean().item()
        torch.testing.assert_close(
            labels, torch.tensor([[1 - share, 0, share], [0, 1, 0], [share, 0, 1 - share]])
        )
        rows, columns = is_other[0, 0].any(1), is_other[0, 0].any(0)
        assert is_other[0, 0].sum() == rows.sum() * columns.sum()
        shares.append(share)
    assert min(shares) < 0.1 < 0.5 < max(shares)
    torch.testing.assert_close(clips[0], torch.ones(2, 3, 10, 14))  # the batch itself stays


def test_a_batch_is_mixed_in_one_way_or_the_other():
    """With both, half of the batches each; the way follows from the batch's first clip."""
    items = [
        {
            "pixel_values": torch.full((1, 3, 8, 8), float(n)),
            "labels": n,
            "video_id": "",
            "faults": [],
        }
        for n in (0, 1)
    ]
    kinds = []
    for seed in range(40):
        for item in items:
            item["entropy"] = [seed]
        batch = ClipCollator(2, mixup_alpha=1.0, cutmix_alpha=1.0)(items)
        kinds.append(
            len(batch["pixel_values"][0].unique()) > 1
            or batch["pixel_values"][0, 0, 0, 0, 0] in (0, 1)
        )
        again = ClipCollator(2, mixup_alpha=1.0, cutmix_alpha=1.0)(items)
        torch.testing.assert_close(again["pixel_values"], batch["pixel_values"], rtol=0, atol=0)
    assert 10 < sum(kinds) < 30
