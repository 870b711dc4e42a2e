"""What both models share: their first weights, what can be recorded, loading, saving, resizing."""

import copy
import os
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import logging

from .blocks import TimeSformerAttention, TimeSformerLayer
from .configuration_timesformer import TimeSformerConfig, pair
from .embeddings import TimeSformerEmbeddings, resize_positions, resize_times
from .schemes import SCHEMES
from .upstream import OutputRecorder
from .vit_weights import (
    VitSource,
    fold_colours,
    load_shared,
    load_vit,
    refuse_contradictions,
    start_steps,
)


logger = logging.get_logger(__name__)


RECORDED_STEPS = ("temporal", "local", "width")

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
        position embeddings.

        Names and modules decide, never shapes: FSDP1 shows every parameter as a flat shard.
        """
        spared = ("bias", "cls_token", "position_embeddings", "time_embeddings")
        names = set()
        for prefix, module in self.named_modules():
            is_norm = "norm" in type(module).__name__.lower()
            for name, _ in module.named_parameters(prefix, recurse=False):
                if is_norm or name.endswith(spared):
                    names.add(name)
        return names

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
