"""What the models give."""

from dataclasses import dataclass

import torch
from transformers.modeling_outputs import BaseModelOutput, ImageClassifierOutput


@dataclass
class TimeSformerModelOutput(BaseModelOutput):
    """
    Args:
        last_hidden_state (`(batch, 1 + h*w*t, hidden)`): after the final LayerNorm; CLS first,
            then patches with time fastest. `space_only`: `(batch, 1 + h*w, hidden)`, the mean over
            frames.
        hidden_states (tuple of `1 + num_hidden_layers` tensors of that shape): input of the first
            block and output of each. `space_only`: `(batch*t, 1 + h*w, hidden)`, each frame by
            itself.
        attentions (tuple of `num_hidden_layers`): weights of the last step, CLS being token 0:
            `(batch*g, heads, 1 + l, 1 + l)` for `g` groups of `l` patches in `(h, w, t)` order.
            Space `(batch*t, heads, 1 + h*w, 1 + h*w)`, joint `(batch, heads, 1 + h*w*t, 1 +
            h*w*t)`, height `(batch*w*t, heads, 1 + h, 1 + h)`, global: up to 8 groups, by `(h % 2,
            w % 2, t % 2)`, on the `ceil(h/2) x ceil(w/2) x ceil(t/2)` grid of the largest; columns
            that smaller groups lack are zero (and their rows without meaning).
        temporal_attentions (tuple): `(batch*h*w, heads, t, t)`, of `divided_space_time` and
            `axial`.
        local_attentions (tuple): `(batch, heads, h*w*t, h*w*t)`, zero outside the windows, of
            `sparse_local_global`.
        width_attentions (tuple): `(batch*h*t, heads, w, w)`, of `axial`.
    """

    temporal_attentions: tuple[torch.Tensor, ...] | None = None
    local_attentions: tuple[torch.Tensor, ...] | None = None
    width_attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class TimeSformerClassifierOutput(ImageClassifierOutput):
    """
    Args:
        loss (scalar, where labels were given): cross-entropy (or what `config.problem_type` says)
            of the logits.
        logits (`(batch, num_labels)`): before the softmax; with several views their mean.
        hidden_states, attentions, temporal_attentions, local_attentions, width_attentions: as in
            [`TimeSformerModelOutput`]; with several views the batch is `batch*views`.
    """

    temporal_attentions: tuple[torch.Tensor, ...] | None = None
    local_attentions: tuple[torch.Tensor, ...] | None = None
    width_attentions: tuple[torch.Tensor, ...] | None = None
