"""Training augmentation: the same for every frame of a clip, and the same again from the same seed."""

import numpy as np
import pytest
import torch

from hf_timesformer.data.augmentation import ClipAugmentation, mix_clips


MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def make(crop=16, short_side=(16, 16), **options) -> ClipAugmentation:
    return ClipAugmentation(crop, short_side=short_side, image_mean=MEAN, image_std=STD, **options)


def noise(frames=3, height=16, width=16, seed=0) -> torch.Tensor:
    return torch.randint(256, (frames, 3, height, width), generator=torch.manual_seed(seed), dtype=torch.uint8)


def normalise(frames: torch.Tensor) -> torch.Tensor:
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    return (frames / 255 - mean) / std


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


def test_no_flip_is_no_flip():
    frames = noise()
    augmentation = make(flip=False)
    for seed in range(20):
        torch.testing.assert_close(augmentation(frames, 16, np.random.default_rng(seed)), normalise(frames))


def test_all_frames_of_a_clip_are_treated_alike():
    frames = noise(frames=1, height=30, width=40).expand(4, -1, -1, -1)
    augmentation = make(short_side=(18, 26), color_jitter=0.4)
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


@pytest.mark.parametrize("short_side", [(15, 20), (20, 18)])
def test_jitter_that_does_not_fit_the_crop(short_side):
    with pytest.raises(ValueError, match=rf"{short_side[0]} to {short_side[1]} does not fit crops of 16"):
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
