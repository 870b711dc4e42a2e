"""TimeSformer: a ViT whose blocks attend over space and time in one of five ways."""

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, logging

from .blocks import TimeSformerEncoder
from .configuration_timesformer import TimeSformerConfig
from .embeddings import TimeSformerEmbeddings
from .loss import classification_loss
from .outputs import TimeSformerClassifierOutput, TimeSformerModelOutput
from .pretrained import RECORDED_STEPS, TimeSformerPreTrainedModel
from .schemes import SCHEMES
from .upstream import can_return_tuple, capture_outputs, is_watched, merge_with_config_defaults
from .way import choose_way, structure_of


logger = logging.get_logger(__name__)

ATTENTION_RECORDS = ("output_attentions", *(f"output_{step}_attentions" for step in RECORDED_STEPS))


class TimeSformerModel(TimeSformerPreTrainedModel):
    """Clips to tokens: embeddings, blocks, final LayerNorm. With the three schemes that stock has,
    parameters and tokens are named and ordered as stock's.

    `config` decides the scheme and the sizes at the start. A pass takes `pixel_values` float
    `(batch, frames, channels, height, width)`, whose frames, height and width may differ from the
    config's, and gives `last_hidden_state` `(batch, 1 + h*w*t, hidden)`.
    """

    def __init__(self, config: TimeSformerConfig):
        super().__init__(config)
        self.embeddings = TimeSformerEmbeddings(config)
        self.encoder = TimeSformerEncoder(config)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.built_of = structure_of(self)
        self.post_init()

    def forward(
        self,
        pixel_values: torch.Tensor,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        cls_only: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> TimeSformerModelOutput | tuple:
        """Run the network.

        Args:
            pixel_values: float `(batch, frames, channels, height, width)`, normalised. Any number
                of frames; height and width any multiples of the patch size.
            output_attentions: empty but with `attn_implementation="eager"`, and a warning says so.
            output_hidden_states: what the blocks take and give.
            return_dict: False for a tuple, which begins as stock's does.
            cls_only: give CLS alone, `last_hidden_state (batch, 1, hidden)`, and leave out of the
                last block what only the other tokens need.
            kwargs: whatever else transformers' models take.

        Raises:
            ValueError: for sizes that do not fit.
        """
        kwargs |= _given(output_attentions, output_hidden_states, return_dict)
        if _wanted(self.config, kwargs, "output_attentions"):
            self._warn_unless_eager()
            kwargs |= {
                f"output_{step}_attentions": True for step in RECORDED_STEPS if step in self._steps
            }
        return self._run(pixel_values, cls_only, **kwargs)

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def _run(self, pixel_values: torch.Tensor, cls_only: bool, **kwargs) -> TimeSformerModelOutput:
        """`(b, t, channels, height, width) -> (b, 1 + n, d)`, where `cls_only` `(b, 1, d)`; `n` is
        `h*w*t`, with `space_only` `h*w`."""
        frames = pixel_values.shape[1]
        space_only = self.config.attention_type == "space_only"
        if space_only and pixel_values.ndim == 5:
            pixel_values = pixel_values.flatten(0, 1)[:, None]  # every frame a clip of its own
        tokens, grid = self.embeddings(pixel_values)  # (b, 1 + n, d)
        with_weights = any(_wanted(self.config, kwargs, name) for name in ATTENTION_RECORDS)
        way = choose_way(
            self, tokens, with_weights or _wanted(self.config, kwargs, "output_hidden_states")
        )
        tokens = self.encoder(tokens, grid, way, cls_only, with_weights)
        if space_only:
            # (b*t, 1 + h*w, d) -> (b, 1 + h*w, d)
            tokens = tokens.unflatten(0, (-1, frames)).mean(dim=1)
        tokens = self.layernorm(tokens)
        return TimeSformerModelOutput(last_hidden_state=tokens[:, :1] if cls_only else tokens)

    @property
    def _steps(self) -> tuple[str, ...]:
        return SCHEMES[self.config.attention_type]

    def _warn_unless_eager(self) -> None:
        name = self.config._attn_implementation
        if name not in ("eager", None):
            logger.warning_once(
                f"output_attentions needs the eager attention, and this model runs {name!r}, which has no weights to "
                'give: all attentions will be empty. Call model.set_attn_implementation("eager") or load the model '
                'with attn_implementation="eager".'
            )


def _given(
    output_attentions: bool | None, output_hidden_states: bool | None, return_dict: bool | None
) -> dict:
    """The arguments that are not None, by name, as transformers' decorators read them."""
    names = {
        "output_attentions": output_attentions,
        "output_hidden_states": output_hidden_states,
        "return_dict": return_dict,
    }
    return {name: value for name, value in names.items() if value is not None}


def _wanted(config: TimeSformerConfig, kwargs: dict, name: str) -> bool:
    return bool(kwargs[name] if kwargs.get(name) is not None else getattr(config, name, False))


class TimeSformerForVideoClassification(TimeSformerPreTrainedModel):
    """TimeSformer with a classifier on CLS: linear as in all released weights, or with the paper's
    hidden layer (`classifier_hidden_size`).

    `config` as for `TimeSformerModel`. A pass takes `pixel_values` float `(batch, frames, channels,
    height, width)`, or with views `(batch, views, frames, channels, height, width)`, over which the
    logits `(batch, labels)` are averaged, and `labels` for the loss that `problem_type` says.
    """

    def __init__(self, config: TimeSformerConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.timesformer = TimeSformerModel(config)
        self.classifier = make_classifier(config)
        # transformers goes by the class' name, which subclasses change
        self.loss_type = "ForVideoClassification"
        self.loss_function = classification_loss
        self.post_init()

    @classmethod
    def register_for_auto_class(
        cls, auto_class: str | type = "AutoModelForVideoClassification"
    ) -> None:
        """As in transformers, with the Auto class that this is for as the default."""
        super().register_for_auto_class(auto_class)

    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> TimeSformerClassifierOutput | tuple:
        """Classify clips.

        Args:
            pixel_values: float `(batch, frames, channels, height, width)`, or `(batch, views,
                frames, channels, height, width)`: then logits are the mean over views (the paper's
                evaluation with three crops, section 4).
            labels: `(batch,)` class indices, or floats for regression and multi-label problems.
            output_attentions: empty but with `attn_implementation="eager"`, and a warning says so.
            output_hidden_states: what the blocks take and give.
            return_dict: False for a tuple, which begins as stock's does.
            kwargs: whatever else transformers' models take, and `num_items_in_batch` for the loss.

        Raises:
            ValueError: for sizes that do not fit.
        """
        kwargs |= _given(output_attentions, output_hidden_states, return_dict)
        return self._classify(pixel_values, labels, **kwargs)

    @can_return_tuple
    def _classify(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None, **kwargs
    ) -> TimeSformerClassifierOutput:
        """`(b, [views,] t, channels, height, width)` -> logits `(b, labels)`, and the loss where
        `labels`, `(b,)` or `(b, labels)`, are given."""
        views = pixel_values.shape[1] if pixel_values.ndim == 6 else None
        if views is not None:
            pixel_values = pixel_values.flatten(0, 1)
        records = any(
            _wanted(self.config, kwargs, name)
            for name in ("output_hidden_states", "output_attentions")
        )
        cls_only = not (records or is_watched(self.timesformer))  # a hook there is for all tokens
        # a tuple, if one is wanted, is made of what this model gives
        outputs = self.timesformer(pixel_values, cls_only=cls_only, return_dict=True, **kwargs)
        logits = self.classifier(outputs.last_hidden_state[:, 0])
        if views is not None:
            logits = logits.unflatten(0, (-1, views)).mean(dim=1)  # (b*v, labels) -> (b, labels)
        loss = None
        if labels is not None:
            loss = self.loss_function(labels, logits, self.config, **kwargs)
        recorded = {name: value for name, value in outputs.items() if name != "last_hidden_state"}
        return TimeSformerClassifierOutput(loss=loss, logits=logits, **recorded)


def make_classifier(config: TimeSformerConfig) -> nn.Module:
    """Linear, or with the one hidden layer that the paper describes (section 4)."""
    if config.num_labels == 0:
        return nn.Identity()
    if config.classifier_hidden_size is None:
        return nn.Linear(config.hidden_size, config.num_labels)
    return nn.Sequential(
        nn.Linear(config.hidden_size, config.classifier_hidden_size),
        ACT2FN[config.hidden_act],
        nn.Linear(config.classifier_hidden_size, config.num_labels),
    )


__all__ = ["TimeSformerForVideoClassification", "TimeSformerModel", "TimeSformerPreTrainedModel"]
