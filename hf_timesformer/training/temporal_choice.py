"""`--temporal_start auto`: the start of the temporal half that tells the classes of these clips best.

Before anything is learned, each start gives features of its own, and a classifier fitted to some of
the training clips (`classifier_fit`) is right or wrong about the others. Where the classes differ in
what is seen, the quieter start, `parts`, is better; where only movement tells them apart, `changes`
or `comparisons` may be. The blocks that do not learn run once for all starts, and there are no
gradients, so it costs less than one pass over the clips.
"""

import copy
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..model.modeling_timesformer import TimeSformerForVideoClassification
from .classifier_fit import best_shrinkage, held_out_logits, soft_targets
from .temporal_start import STARTS, has_temporal_half_that_learns, start_blocks


logger = logging.getLogger(__name__)

USUAL = STARTS[0]
# Standard errors by which another start must be better than the usual one: a wrong one costs much. But
# where the usual one is right no more often than who always names the most frequent class, by that
# margin, nothing is lost, and the best one is taken.
MARGIN = 2.0
SHARE_OF_CLIPS = 2 / 3  # are looked at, within these limits
FEWEST_CLIPS, MOST_CLIPS = 40, 200
FILE = "temporal_start.json"  # in a checkpoint, for the run that goes on from it


@dataclass(frozen=True)
class TemporalStart:
    """The start of a run.

    Attributes:
        name: `attention`, or one of `STARTS`.
        clips: how many were looked at; 0 where the start was given, or could not be chosen.
        percent_right: of these clips, with each start.
        standard_errors: of the difference to the usual start.
    """

    name: str
    clips: int = 0
    percent_right: dict[str, float] = field(default_factory=dict)
    standard_errors: dict[str, float] = field(default_factory=dict)

    def describe(self) -> str:
        """What was looked at and what was chosen, in a line for the log."""
        if not self.clips:
            return (
                f"--temporal_start auto takes {self.name}: the clips are of too few groups to tell"
            )
        found = [f"{self.percent_right[USUAL]:.1f} % with {USUAL}"]
        for name, error in self.standard_errors.items():
            more = self.percent_right[name] - self.percent_right[USUAL]
            found.append(
                f"{self.percent_right[name]:.1f} % with {name} ({more:+.1f} ± {error:.1f})"
            )
        return (
            f"--temporal_start auto takes {self.name}: of {self.clips} training clips, a classifier of "
            f"the others is right about {', '.join(found)}"
        )

    def save(self, folder: Path) -> None:
        """Write it down for `saved_start`."""
        (folder / FILE).write_text(json.dumps(asdict(self)), encoding="utf-8")


def saved_start(checkpoint: str | Path | None) -> TemporalStart | None:
    """The start of the run that wrote the checkpoint; None where there is none, or it does not say."""
    path = None if checkpoint is None else Path(checkpoint) / FILE
    if path is None or not path.is_file():
        return None
    return TemporalStart(**json.loads(path.read_text(encoding="utf-8")))


def clips_to_look_at(count: int) -> int:
    """How many of `count` clips the choice looks at; 0: too few to tell."""
    if count < FEWEST_CLIPS:
        return 0
    return min(MOST_CLIPS, max(FEWEST_CLIPS, round(SHARE_OF_CLIPS * count)))


@torch.no_grad()
def choose_start(
    network: TimeSformerForVideoClassification,
    batches: Iterable[Mapping[str, Any]],
    groups: Sequence[int],
    *,
    clips: torch.Tensor,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> TemporalStart:
    """The start that tells the clips best, by cross-validation over groups.

    The network is left as it was. All that is random has generators of its own.

    Args:
        network: from an image ViT, with its time embeddings (`start_time_embeddings`), and settled
            which parameters learn.
        batches: of clips `pixel_values` `(B, T, C, H, W)`, and `labels` `(B,)`.
        groups: of each clip, in the order of the batches, a number that clips which must not be
            parted share.
        clips: some of them, `(n, t, c, h, w)`, for the starts that must see some.
        device: to run on.
        dtype: of autocast; None runs without.
    """
    runs = _runs_of_starts(
        network, partial(start_blocks, clips=clips, device=device, dtype=dtype), device
    )
    autocast = nullcontext() if dtype is None else torch.autocast(torch.device(device).type, dtype)
    found: dict[str, list[torch.Tensor]] = {start: [] for start in STARTS}
    targets = []
    with autocast:
        for batch in batches:
            for start, features in runs(batch["pixel_values"].to(device)).items():
                found[start].append(features.float().cpu())
            targets.append(soft_targets(batch["labels"], network.num_labels))
    return compare_starts(
        {start: torch.cat(parts) for start, parts in found.items()},
        torch.cat(targets),
        torch.as_tensor(groups),
    )


def _runs_of_starts(
    network: Any, start_with: Callable[[Any, str], int], device: torch.device | str
) -> Any:
    """A function from pixels `(b, t, c, h, w)` to the features `(b, d)` of each start, which
    `start_with` gives the network."""
    base = network.timesformer
    layers = list(base.encoder.layer)
    first = next(i for i, layer in enumerate(layers) if has_temporal_half_that_learns(layer))
    before = copy.deepcopy(base.encoder.state_dict())
    tops = {}
    for start in STARTS:
        start_with(network, start)
        tops[start] = nn.ModuleList(copy.deepcopy(layers[first:])).to(device).eval()
        base.encoder.load_state_dict(before)
    embeddings = copy.deepcopy(base.embeddings).to(device).eval()
    layernorm = copy.deepcopy(base.layernorm).to(device)
    shared = copy.deepcopy(layers[:first])
    for layer in shared:
        layer.earlier_steps = []  # as they come from the ViT, they add nothing
    below = nn.ModuleList(shared).to(device).eval()

    def run(pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        tokens, grid = embeddings(pixels)
        for layer in below:
            tokens = layer(tokens, grid)
        found = {}
        for start, blocks in tops.items():
            after = tokens
            for layer in blocks:
                after = layer(after, grid)
            found[start] = layernorm(after[:, 0])
        return found

    return run


def compare_starts(
    features: dict[str, torch.Tensor], targets: torch.Tensor, groups: torch.Tensor
) -> TemporalStart:
    """The start whose features `(n, d)` tell the classes `targets (n, classes)` best. The usual one,
    unless another is better by more than `MARGIN` standard errors, or the usual one tells nothing.
    """
    counts = targets.sum(dim=1) > 0  # the others could not be read
    targets, groups = targets[counts].double(), groups[counts]
    labels = targets.argmax(dim=1)
    right, told = {}, torch.zeros(len(targets), dtype=torch.bool)
    for start, found in features.items():
        found = found[counts].double()
        shrinkage = best_shrinkage(found, targets)
        logits, told = held_out_logits(found, targets, groups, [shrinkage])
        right[start] = (logits[0].argmax(dim=1) == labels).double()
    if len(groups[told].unique()) < 2:
        return TemporalStart(USUAL)
    percent = {start: 100 * each[told].mean().item() for start, each in right.items()}
    errors = {
        start: 100 * _standard_error((each - right[USUAL])[told], groups[told])
        for start, each in right.items()
        if start != USUAL
    }
    guessed = 100 * labels[told].bincount().max().item() / int(told.sum())
    error = 100 * _standard_error(right[USUAL][told], groups[told])
    margin = MARGIN if percent[USUAL] - guessed > MARGIN * error else 0.0
    better = [s for s in errors if percent[s] - percent[USUAL] > margin * errors[s]]
    best = max(better, key=lambda start: percent[start], default=USUAL)
    return TemporalStart(best, int(told.sum()), percent, errors)


def _standard_error(values: torch.Tensor, groups: torch.Tensor) -> float:
    """Of the mean of `values (n,)`, of which those of one group, of two or more, may be alike."""
    names, rows = groups.unique(return_inverse=True)
    sums = torch.zeros(len(names), dtype=values.dtype).index_add(0, rows, values - values.mean())
    correction = len(names) / (len(names) - 1)
    return (correction * sums.square().sum()).sqrt().item() / len(values)
