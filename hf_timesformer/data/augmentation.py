"""Training augmentation of clips with torchvision v2: one draw for all frames of a clip."""

from collections.abc import Sequence

import numpy as np
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional


class ClipAugmentation:
    """Short-side jitter, random crop, horizontal flip and colour jitter, the same for every frame of a clip.

    `short_side` is the range that the shorter side is drawn from, in pixels (paper, appendix: 256 to 320 for crops of
    224). `color_jitter` is the strength for brightness, contrast and saturation (0: none). `flip=False` for classes
    that tell left from right, as in Something-Something-V2. Raises ValueError where a crop would not fit.
    """

    def __init__(
        self,
        crop_size: int,
        *,
        short_side: tuple[int, int],
        flip: bool = True,
        color_jitter: float = 0.0,
        image_mean: Sequence[float],
        image_std: Sequence[float],
    ):
        low, high = short_side
        if not crop_size <= low <= high:
            raise ValueError(
                f"short-side jitter {low} to {high} does not fit crops of {crop_size}: "
                f"need {crop_size} <= smallest <= largest"
            )
        self.short_side = (low, high)
        steps = [v2.RandomCrop(crop_size)]
        if flip:
            steps.append(v2.RandomHorizontalFlip())
        if color_jitter:
            steps.append(v2.ColorJitter(brightness=color_jitter, contrast=color_jitter, saturation=color_jitter))
        steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(image_mean), list(image_std))]
        self.transform = v2.Compose(steps)

    def draw_short_side(self, generator: np.random.Generator) -> int:
        """Shorter side in pixels that this clip is resized to, so that the decoder can already deliver it."""
        return int(generator.integers(self.short_side[0], self.short_side[1] + 1))

    def __call__(self, frames: torch.Tensor, short_side: int, generator: np.random.Generator) -> torch.Tensor:
        """uint8 frames `(T, 3, H, W)` -> normalised float32 `(T, 3, crop, crop)`; all draws come from `generator`."""
        if min(frames.shape[-2:]) != short_side:
            frames = functional.resize(frames, [short_side], antialias=True)
        # torchvision draws from torch's global generator: seeded from the clip's own and put back afterwards, so that
        # a clip looks the same in whichever worker, and after whichever other clips, it is read.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(generator.integers(2**63)))
            return self.transform(tv_tensors.Video(frames)).as_subclass(torch.Tensor)


def mix_clips(
    pixel_values: torch.Tensor, labels: torch.Tensor, num_classes: int, alpha: float, generator: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mixup of a batch with itself in reverse order, by one weight `~ Beta(alpha, alpha)` for the whole batch.

    Zhang et al. 2018, "mixup: Beyond Empirical Risk Minimization".

    Args:
        pixel_values: `(B, ...)`.
        labels: class numbers `(B,)`, which become one-hot, or floats `(B, num_classes)` or `(B,)`, mixed as they are.
        num_classes: classes of the model.
        alpha: of the Beta distribution; the smaller, the closer most clips stay to one of the two.
        generator: what the weight is drawn from.

    Returns:
        Clips `(B, ...)` and labels `(B, num_classes)`, or `(B,)` where they were floats of that shape.
    """
    weight = float(generator.beta(alpha, alpha))
    if not labels.is_floating_point():
        labels = torch.nn.functional.one_hot(labels, num_classes).float()
    mixed = weight * pixel_values + (1 - weight) * pixel_values.flip(0)
    return mixed, weight * labels + (1 - weight) * labels.flip(0)
