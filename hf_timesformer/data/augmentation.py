"""Training augmentation of clips with torchvision v2: one draw for all frames of a clip."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from ..video.memory_frames import to_channels


class ClipAugmentation:
    """Short-side jitter, random crop, horizontal flip and more, the same for every frame of a clip.

    Args:
        crop_size: side of the crops in pixels, or their height and width. A frame that is too short
            for the longer of two sides gets a black border there, as in evaluation.
        short_side: range that the shorter side is drawn from, in pixels (the paper: 256 to 320 for
            crops of 224).
        inverse_short_side: draw its inverse uniformly, so that small ones come more often, as the
            official code does for Something-Something-V2.
        flip: mirror half of the clips. Not for classes that tell left from right, as in
            Something-Something-V2.
        color_jitter: strength for brightness, contrast and saturation; 0: none.
        random_resized_crop: range of the share of the frame that a crop covers (Szegedy et al.
            2015), such as `(0.08, 1)`, in place of the jitter and a crop of one size.
        rand_augment: number of operations and their strength, 0 to 30 (Cubuk et al. 2020), such as
            `(2, 9)`.
        random_erasing: share of the clips in which a rectangle is replaced by noise (Zhong et al.
            2020).
        image_mean, image_std: of each channel, 0 to 1.

    Raises:
        ValueError: a crop would not fit, or a range or a share is none.
    """

    def __init__(
        self,
        crop_size: int | tuple[int, int],
        *,
        short_side: tuple[int, int],
        inverse_short_side: bool = False,
        flip: bool = True,
        color_jitter: float = 0.0,
        random_resized_crop: tuple[float, float] | None = None,
        rand_augment: tuple[int, int] | None = None,
        random_erasing: float = 0.0,
        image_mean: Sequence[float],
        image_std: Sequence[float],
    ):
        low, high = short_side
        crop = (crop_size, crop_size) if isinstance(crop_size, int) else crop_size
        if not min(crop) <= low <= high:
            size = f"{crop[0]}" if crop[0] == crop[1] else f"{crop[0]}x{crop[1]}"
            raise ValueError(
                f"short-side jitter {low} to {high} does not fit crops of {size}: "
                f"need {min(crop)} <= smallest <= largest"
            )
        _check_strengths(random_resized_crop, rand_augment, random_erasing)
        # A crop of any size is cut from the largest frames that there would be.
        self.short_side = (high, high) if random_resized_crop else (low, high)
        self.inverse_short_side = inverse_short_side and not random_resized_crop
        self.image_mean, self.image_std = list(image_mean), list(image_std)
        steps = [v2.RandomCrop(crop, pad_if_needed=crop[0] != crop[1])]
        if random_resized_crop:
            steps = [v2.RandomResizedCrop(crop, scale=random_resized_crop, antialias=True)]
        if flip:
            steps.append(v2.RandomHorizontalFlip())
        if rand_augment:
            steps.append(v2.RandAugment(num_ops=rand_augment[0], magnitude=rand_augment[1]))
        if color_jitter:
            steps.append(
                v2.ColorJitter(
                    brightness=color_jitter, contrast=color_jitter, saturation=color_jitter
                )
            )
        steps += [
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(list(image_mean), list(image_std)),
        ]
        if random_erasing:
            steps.append(v2.RandomErasing(p=random_erasing, value="random"))
        self.transform = v2.Compose(steps)

    def draw_short_side(self, generator: np.random.Generator) -> int:
        """Shorter side in pixels that this clip is resized to, so that the decoder can already
        deliver it; drawn by `generator`.
        """
        low, high = self.short_side
        if self.inverse_short_side:
            return round(1 / generator.uniform(1 / high, 1 / low))
        return int(generator.integers(low, high + 1))

    def __call__(
        self, frames: torch.Tensor, short_side: int, generator: np.random.Generator
    ) -> torch.Tensor:
        """uint8 frames `(T, 3, H, W)` -> normalised float32 `(T, 3, h, w)`, the crop; draws come
        from `generator`. With a single mean they become grey, `(T, 1, h, w)`, as in evaluation.
        """
        frames = to_channels(frames, len(self.image_mean))
        if min(frames.shape[-2:]) != short_side:
            frames = functional.resize(frames, [short_side], antialias=True)
        # torchvision draws from torch's global generator: seeded from the clip's own and put back
        # afterwards, so that a clip looks the same in whichever worker, and after whichever other
        # clips, it is read.
        with _seeded(generator):
            return self.transform(tv_tensors.Video(frames)).as_subclass(torch.Tensor)


def _check_strengths(
    random_resized_crop: tuple[float, float] | None,
    rand_augment: tuple[int, int] | None,
    random_erasing: float,
) -> None:
    if random_resized_crop and not 0 < random_resized_crop[0] <= random_resized_crop[1] <= 1:
        raise ValueError(
            f"random_resized_crop is a range of shares, 0 < smallest <= largest <= 1: {random_resized_crop}"
        )
    if rand_augment and not (rand_augment[0] >= 1 and 0 <= rand_augment[1] <= 30):
        raise ValueError(
            f"rand_augment is a number of operations and a strength from 0 to 30, got {rand_augment}"
        )
    if not 0 <= random_erasing <= 1:
        raise ValueError(f"random_erasing is the share of the clips, 0 to 1, got {random_erasing}")


@contextmanager
def _seeded(generator: np.random.Generator) -> Iterator[None]:
    """What draws from torch's generator draws from `generator` instead."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(generator.integers(2**63)))
        yield


def mix_clips(
    pixel_values: torch.Tensor,
    labels: torch.Tensor,
    num_classes: int,
    alpha: float,
    generator: np.random.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mixup of a batch with itself in reverse order, by one weight `~ Beta(alpha, alpha)` for the
    whole batch.

    Zhang et al. 2018, "mixup: Beyond Empirical Risk Minimization".

    Args:
        pixel_values: `(B, ...)`.
        labels: class numbers `(B,)`, which become one-hot, or floats `(B, num_classes)` or `(B,)`,
            mixed as they are.
        num_classes: classes of the model.
        alpha: of the Beta distribution; the smaller, the closer most clips stay to one of the two.
        generator: what the weight is drawn from.

    Returns:
        Clips `(B, ...)` and labels `(B, num_classes)`, or `(B,)` where they were floats of that
        shape.
    """
    weight = float(generator.beta(alpha, alpha))
    mixed = weight * pixel_values + (1 - weight) * pixel_values.flip(0)
    return mixed, _mix_labels(labels, num_classes, weight)


def cut_and_mix_clips(
    pixel_values: torch.Tensor,
    labels: torch.Tensor,
    num_classes: int,
    alpha: float,
    generator: np.random.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """CutMix: in each clip one rectangle, the same in all its frames, comes from the batch in
    reverse order.

    Yun et al. 2019, "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable
    Features". The labels are weighed by the area that each clip has in the end. Arguments and
    results as of `mix_clips`, with `pixel_values` `(B, T, C, H, W)`.
    """
    height, width = pixel_values.shape[-2:]
    side = np.sqrt(1 - generator.beta(alpha, alpha))  # of the rectangle, as a share of the frame's
    middle = int(generator.integers(height)), int(generator.integers(width))
    # A rectangle that reaches over the border is cut off there.
    top, bottom = _around(middle[0], side * height, height)
    left, right = _around(middle[1], side * width, width)
    mixed = pixel_values.clone()
    mixed[..., top:bottom, left:right] = pixel_values.flip(0)[..., top:bottom, left:right]
    weight = 1 - (bottom - top) * (right - left) / (height * width)
    return mixed, _mix_labels(labels, num_classes, weight)


def _around(middle: int, length: float, limit: int) -> tuple[int, int]:
    """Where a stretch of `length` about `middle` begins and ends within `limit`: 1, 4, 10 -> 0, 3."""
    return max(0, int(middle - length / 2)), min(limit, int(middle + length / 2))


def _mix_labels(labels: torch.Tensor, num_classes: int, weight: float) -> torch.Tensor:
    """Labels mixed with themselves in reverse order: class numbers `(b,) -> (b, num_classes)`;
    floats, `(b, num_classes)` or `(b,)`, keep their shape.
    """
    if not labels.is_floating_point():
        labels = torch.nn.functional.one_hot(labels, num_classes).float()
    return weight * labels + (1 - weight) * labels.flip(0)
