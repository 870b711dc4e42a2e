"""TimeSformer: a ViT whose blocks attend over space and time in one of five ways."""

import copy
import os
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, logging

from .blocks import TimeSformerAttention, TimeSformerEncoder, TimeSformerLayer
from .configuration_timesformer import TimeSformerConfig, pair
from .embeddings import TimeSformerEmbeddings, resize_positions, resize_times
from .loss import classification_loss
from .outputs import TimeSformerClassifierOutput, TimeSformerModelOutput
from .schemes import SCHEMES
from .upstream import (
    OutputRecorder,
    can_return_tuple,
    capture_outputs,
    is_watched,
    merge_with_config_defaults,
)
from .vit_weights import (
    VitSource,
    fold_colours,
    load_shared,
    load_vit,
    refuse_contradictions,
    start_steps,
)
from .way import choose_way, structure_of


logger = logging.get_logger(__name__)


RECORDED_STEPS = ("temporal", "local", "width")
ATTENTION_RECORDS = ("output_attentions", *(f"output_{step}_attentions" for step in RECORDED_STEPS))

# Config fields that embeddings can be resized to, and the arguments of `from_pretrained` that say
# where a config is.
RESIZABLE = ("num_frames", "image_size")
HUB_ARGUMENTS = (
    "cache_dir",
    "force_download",
    "local_files_only",
    "token",
    "revision",
    "subfolder",
)


class TimeSformerPreTrainedModel(PreTrainedModel):
    """Weights, attention implementations and what can be recorded, for both models."""

    config: TimeSformerConfig
    config_class = TimeSformerConfig
    base_model_prefix = "timesformer"
    main_input_name = "pixel_values"
    input_modalities = ("video",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["TimeSformerEmbeddings", "TimeSformerLayer"]
    _input_embed_layer = "patch_embeddings"
    # Where an ablation lacks them; elsewhere no such name is unexpected.
    _keys_to_ignore_on_load_unexpected = [r"embeddings\.(position|time)_embeddings$"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {
        "hidden_states": TimeSformerLayer,
        "attentions": OutputRecorder(TimeSformerAttention, index=1, layer_name="attention"),
        **{
            f"{step}_attentions": OutputRecorder(
                TimeSformerAttention, index=1, layer_name=f"{step}_attention"
            )
            for step in RECORDED_STEPS
        },
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """By type. The extra dense layers start at zero, so that a new network starts as the ViT
        it is made from."""
        super()._init_weights(module)
        if getattr(module, "starts_at_zero", False):
            init.zeros_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, (nn.Linear, nn.Conv2d)):
            init.trunc_normal_(module.weight, std=self.config.initializer_range)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, TimeSformerEmbeddings):
            for parameter in (module.cls_token, module.position_embeddings):
                if parameter is not None:
                    init.trunc_normal_(parameter, std=self.config.initializer_range)
            if module.time_embeddings is not None:
                init.zeros_(module.time_embeddings)

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay should spare: biases, norms, CLS and all
        position embeddings."""
        spared = ("cls_token", "position_embeddings", "time_embeddings")
        return {name for name, p in self.named_parameters() if p.ndim <= 1 or name.endswith(spared)}

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        state_dict: dict | None = None,
        **kwargs,
    ):
        """As in transformers; embeddings that an ablation lacks are written as zeros, for stock."""
        base = self.base_model
        prefix = "" if base is self else f"{self.base_model_prefix}."
        absent = {
            f"{prefix}embeddings.{name}": zeros
            for name, zeros in base.embeddings.absent_embeddings().items()
        }
        if absent:
            state_dict = {**absent, **(self.state_dict() if state_dict is None else state_dict)}
        return super().save_pretrained(save_directory, is_main_process, state_dict, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, config=None, **kwargs):
        """As in transformers; `num_frames=` and `image_size=` (pixels) of your own resize the
        embeddings.

        They are interpolated as `config.position_interpolation` says, so the resized model gives
        what the checkpoint's own would give for such clips; one line is logged.
        """
        if config is None:
            wanted = {name: kwargs.pop(name) for name in RESIZABLE if name in kwargs}
            loaded = super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        else:
            config, kwargs = cls._own_config(config, kwargs)
            wanted = {name: getattr(config, name) for name in RESIZABLE}
            for name, value in _stored_sizes(pretrained_model_name_or_path, config, kwargs).items():
                setattr(config, name, value)
            loaded = super().from_pretrained(
                pretrained_model_name_or_path, *model_args, config=config, **kwargs
            )
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if any(_differ(wanted[name], getattr(model.config, name)) for name in wanted):
            model.resize_embeddings(**wanted)
        return loaded

    @classmethod
    def _own_config(cls, config, kwargs: dict) -> tuple[TimeSformerConfig, dict]:
        """A copy of `config` as this class's own, and the arguments that are none of its fields.

        `config` is a folder or Hub id; stock's config; this package's; or that of this very file
        in another copy: transformers gives every file that `auto_map` names a folder of its own.
        """
        if not isinstance(config, PreTrainedConfig):
            hub = {key: kwargs[key] for key in HUB_ARGUMENTS if key in kwargs}
            config, kwargs = cls.config_class.from_pretrained(
                config, return_unused_kwargs=True, **kwargs
            )
            return config, kwargs | hub
        if isinstance(config, cls.config_class):
            return copy.deepcopy(config), kwargs
        own = cls.config_class.from_dict(config.to_dict())
        own._attn_implementation = config._attn_implementation
        return own, kwargs

    @torch.no_grad()
    def resize_embeddings(
        self, num_frames: int | None = None, image_size: int | list[int] | None = None
    ) -> None:
        """Make the embeddings for clips of another length or size, by interpolation, for good.

        Args:
            num_frames: frames of a clip; None keeps the time embeddings as they are.
            image_size: sides of the frames in pixels, one number or `[height, width]`; None keeps
                the position embeddings as they are.

        Raises:
            ValueError: for a size that no network has, and for embeddings that `device_map` has put
                aside.
        """
        config, embeddings = self.config, self.base_model.embeddings
        if any(parameter.is_meta for parameter in embeddings.parameters(recurse=False)):
            raise ValueError(
                "The embeddings cannot be resized where they are: device_map has put them aside, on disk or the CPU. "
                "Load the model without device_map, resize and save it, and load that with your device_map."
            )
        old = f"{config.num_frames} frames of {config.image_size}"
        old_grid, mode = config.grid_size, config.position_interpolation
        sizes: dict[str, Any] = {
            "num_frames": num_frames or config.num_frames,
            "image_size": image_size or config.image_size,
        }
        type(config)(**{**config.to_dict(), **sizes})  # raises for sizes that no network has
        config.num_frames, config.image_size = sizes["num_frames"], sizes["image_size"]
        resized = {}
        if embeddings.position_embeddings is not None:
            positions = resize_positions(
                embeddings.position_embeddings, old_grid, config.grid_size, mode
            )
            resized["position_embeddings"] = positions
        if embeddings.time_embeddings is not None:
            resized["time_embeddings"] = resize_times(
                embeddings.time_embeddings, config.num_frames, mode
            )
        for name, values in resized.items():
            setattr(
                embeddings,
                name,
                nn.Parameter(values.clone(), requires_grad=getattr(embeddings, name).requires_grad),
            )
        logger.warning(
            f"Position and time embeddings resized ({mode}) from {old} to {config.num_frames} frames of "
            f"{config.image_size} pixels."
        )

    @classmethod
    def from_vit(cls, vit: VitSource, **config_overrides):
        """A TimeSformer from a pretrained image ViT (the paper starts from ImageNet ViTs, section
        4).

        Args:
            vit: Hub id or folder of a transformers ViT, DeiT or DINOv2, such a model, or a
                `.safetensors` file with timm's names. LayerScale is folded into the projections.
            config_overrides: fields of [`TimeSformerConfig`]; what is left out follows the ViT.
                `image_size` resizes its position embeddings (bicubic); `num_channels=1` makes a
                network for grey clips, which gives what the ViT gives for the same clips in three
                equal colours.

        Each step before the last starts from the block's own attention and LayerNorm, with a zero
        extra layer, and the time embeddings from zero. So the new network's features are those of
        the ViT whose attention is confined to the groups of the last step: for `space_only` the
        mean of the frames' own, for `divided_space_time` the ViT's own where all frames are equal
        (frames share CLS), for the others what the ViT gives under such a mask.

        Raises:
            ValueError: for a source that is no plain ViT, or overrides that contradict its
                weights.
        """
        fields, state = load_vit(vit)
        fold_colours(fields, state, config_overrides.get("num_channels"))
        refuse_contradictions(fields, config_overrides)
        config = cls.config_class(**{**fields, **config_overrides})
        vit_grid = cls.config_class(**fields).grid_size
        state = start_steps(state, SCHEMES[config.attention_type][:-1])
        positions = state.pop("embeddings.position_embeddings")
        if config.position_embedding_type != "none":
            positions = resize_positions(positions, vit_grid, config.grid_size, "bicubic")
            state["embeddings.position_embeddings"] = positions
        model = cls(config)
        load_shared(model.base_model, state)
        return model


def _stored_sizes(name_or_path, config: TimeSformerConfig, kwargs: dict) -> dict:
    """The sizes that a checkpoint's own config names (stock's defaults where it names none); {}
    without a config.

    An Auto class has read that config already, and `config` remembers what it said.
    """
    hub = {key: kwargs[key] for key in HUB_ARGUMENTS if key in kwargs}
    if name_or_path is None:
        return {}
    if (
        config.stored_sizes
        and config.name_or_path == str(name_or_path)
        and not hub.keys() & {"revision", "subfolder"}
    ):
        return config.stored_sizes
    try:
        stored, _ = TimeSformerConfig.get_config_dict(name_or_path, **hub)
    except OSError:
        stored = {}
    if not stored:  # weights alone: the caller's config is all that is known about them
        return {}
    return {name: stored.get(name, getattr(TimeSformerConfig, name)) for name in RESIZABLE}


def _differ(one: int | list[int], other: int | list[int]) -> bool:
    return pair(one) != pair(other)


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
        outputs = self.timesformer(pixel_values, cls_only=cls_only, **kwargs)
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
