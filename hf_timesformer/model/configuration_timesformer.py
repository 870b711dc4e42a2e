"""The configuration of a TimeSformer: stock's fields and a few of our own."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub.dataclasses import strict
from transformers.activations import ACT2FN
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils import IMAGE_PROCESSOR_NAME, VIDEO_PROCESSOR_NAME

from .remote_code import AUTO_MAP, complete_auto_map, copy_code
from .schemes import SCHEMES


# The schemes that plain `transformers` can run too.
STOCK_SCHEMES = ("space_only", "joint_space_time", "divided_space_time")

# What the saved `attention_type` of a model that plain `transformers` cannot run ends with. Plain
# `transformers` puts the value into its error, so the person who opens such a folder without this
# package reads what to install.
REFUSAL = (
    " [needs `pip install hf-timesformer` and `import hf_timesformer`, or trust_remote_code=True"
)

POSITION_INTERPOLATIONS = ("nearest", "bicubic")
# What a processor saved alone names in its file: the file, its key, the class.
# `video/processor_type.py` holds the same table; the two folders do not import each other, and a
# test holds the tables equal.
PROCESSOR_TYPES = {
    IMAGE_PROCESSOR_NAME: ("image_processor_type", "TimeSformerImageProcessor"),
    VIDEO_PROCESSOR_NAME: ("video_processor_type", "TimesformerVideoProcessor"),
}
POSITION_EMBEDDING_TYPES = ("space_time", "space", "none")


def pair(size: int | Sequence[int]) -> tuple[int, int]:
    """`(height, width)` of a size given as one number or as two."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


@strict
class TimeSformerConfig(PreTrainedConfig):
    r"""Configuration of [`TimeSformerModel`]; the defaults give TimeSformer-base, divided
    attention, 8 frames of 224x224.

    Args:
        image_size (`int` or `[height, width]`): frame size in pixels that the position embeddings
            are made for.
        patch_size (`int` or `[height, width]`): patch size in pixels; must divide `image_size`.
        num_channels (`int`): colour channels.
        num_frames (`int`): clip length that the time embeddings are made for. Other lengths and
            sizes run as well.
        hidden_size, num_hidden_layers, num_attention_heads, intermediate_size, hidden_act: the
            transformer.
        hidden_dropout_prob, attention_probs_dropout_prob (`float`): dropout.
        initializer_range (`float`): standard deviation of the truncated normal initialisation.
        layer_norm_eps (`float`): epsilon of every LayerNorm.
        qkv_bias (`bool`): whether query, key and value have biases.
        attention_type (`str`): one of the paper's five schemes (section 3, Figure 2):
            `"space_only"` (S), `"joint_space_time"` (ST), `"divided_space_time"` (T+S),
            `"sparse_local_global"` (L+G), `"axial"` (T+W+H).
        drop_path_rate (`float`): stochastic depth of the last block; it grows linearly from 0 in
            the first.
        position_interpolation (`"nearest"` or `"bicubic"`): how embeddings are resized for another
            grid or length (the official code: nearest). With `"bicubic"` time is resized linearly.
        position_embedding_type (`"space_time"`, `"space"` or `"none"`): the paper's ablation (Table
            4).
        classifier_hidden_size (`int`, *optional*): width of the paper's one-hidden-layer
            classifier; a linear one (as in all released weights) where it is `None`.

    Raises:
        ValueError: at construction, naming the value, for a value that no network can be built
            from.
    """

    model_type = "timesformer"

    image_size: int | list[int] | tuple[int, int] = 224
    patch_size: int | list[int] | tuple[int, int] = 16
    num_channels: int = 3
    num_frames: int = 8
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-6
    qkv_bias: bool = True
    attention_type: str = "divided_space_time"
    drop_path_rate: float | int = 0
    position_interpolation: str = "nearest"
    position_embedding_type: str = "space_time"
    classifier_hidden_size: int | None = None

    def __post_init__(self, **kwargs):
        self.attention_type = self.attention_type.split(" [", 1)[0]
        self.drop_path_rate = kwargs.pop("stochastic_depth_rate", self.drop_path_rate)
        super().__post_init__(**kwargs)
        # here too: `strict` turns the ValueError into an error of its own kind
        self.validate_architecture()

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs):
        """As in transformers; the sizes that `config_dict` names are remembered in `stored_sizes`,
        whatever `kwargs` make of them: weights that lie beside it have those sizes."""
        sizes = {
            name: config_dict.get(name, getattr(cls, name)) for name in ("num_frames", "image_size")
        }
        made = super().from_dict(config_dict, **kwargs)
        config = made[0] if isinstance(made, tuple) else made
        config.__dict__["_stored_sizes"] = sizes
        return made

    @property
    def stored_sizes(self) -> dict[str, int | list[int]]:
        """`num_frames` and `image_size` as the file said that this was read from; {} where there
        was none."""
        return self.__dict__.get("_stored_sizes", {})

    def to_dict(self) -> dict:
        """As in transformers, without `stored_sizes`."""
        values = super().to_dict()
        values.pop("_stored_sizes", None)
        return values

    @property
    def grid_size(self) -> tuple[int, int]:
        """`(rows, columns)` of patches in a frame of `image_size`."""
        (height, width), (patch_height, patch_width) = pair(self.image_size), pair(self.patch_size)
        return height // patch_height, width // patch_width

    def validate_architecture(self):
        """Part of `@strict`-powered validation: every value that a network can't be built from,
        named."""
        self._check_choices()
        self._check_numbers()
        self._check_sizes()

    def _check_choices(self):
        for name, choices in (
            ("attention_type", list(SCHEMES)),
            ("position_interpolation", list(POSITION_INTERPOLATIONS)),
            ("position_embedding_type", list(POSITION_EMBEDDING_TYPES)),
            ("hidden_act", sorted(ACT2FN)),
        ):
            self._require(name, getattr(self, name) in choices, f"one of {choices}")

    def _check_numbers(self):
        for name in (
            "num_channels",
            "num_frames",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
        ):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        hidden = self.classifier_hidden_size
        self._require("classifier_hidden_size", hidden is None or hidden >= 1, "None or at least 1")
        for name in ("drop_path_rate", "hidden_dropout_prob", "attention_probs_dropout_prob"):
            self._require(name, 0 <= getattr(self, name) < 1, "in [0, 1)")
        self._require("layer_norm_eps", self.layer_norm_eps > 0, "above 0")
        self._require("initializer_range", self.initializer_range >= 0, "at least 0")

    def _check_sizes(self):
        for name in ("image_size", "patch_size"):
            value = getattr(self, name)
            is_size = isinstance(value, int) or len(value) == 2
            self._require(
                name, is_size and min(pair(value)) > 0, "a positive int or [height, width]"
            )
        sizes = zip(("height", "width"), pair(self.image_size), pair(self.patch_size))
        for side, pixels, patch in sizes:
            self._require(
                "image_size", pixels % patch == 0, f"a multiple of the patch {side} {patch}"
            )
        heads = self.num_attention_heads
        self._require(
            "hidden_size",
            self.hidden_size % heads == 0,
            f"a multiple of num_attention_heads={heads}",
        )

    def _require(self, name: str, holds: bool, wanted: str) -> None:
        """Raise ValueError with the value of that field, unless `holds`."""
        if not holds:
            raise ValueError(f"TimeSformerConfig: {name}={getattr(self, name)!r} must be {wanted}.")

    def save_pretrained(
        self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs
    ):
        """As in transformers; once a class is registered for an Auto class, with the code and an
        entry for each class.

        So is a config that names this code already: what it promises then lies beside it.
        """
        auto_map = getattr(self, "auto_map", None) or {}
        if self._auto_class is not None or any(
            entry in AUTO_MAP.values() for entry in auto_map.values()
        ):
            self.auto_map = complete_auto_map(auto_map)
            os.makedirs(save_directory, exist_ok=True)
            copy_code(save_directory)
        for file_name, (key, name) in PROCESSOR_TYPES.items():
            _forget_class(Path(save_directory, file_name), key, name)
        super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    def to_json_file(self, json_file_path: str | os.PathLike, use_diff: bool = True):
        """Write the configuration so that plain `transformers` opens what it can run and refuses
        what it cannot."""
        stored = json.loads(self.to_json_string(use_diff=use_diff))
        if self.attention_type not in STOCK_SCHEMES:
            stored["attention_type"] = self.attention_type + REFUSAL + "]"
        elif self.classifier_hidden_size is not None:
            stored["attention_type"] = (
                f"{self.attention_type}{REFUSAL}: the classifier has a hidden layer]"
            )
        if self.drop_path_rate:  # stock types it as int; it matters in training only
            stored["stochastic_depth_rate"] = self.drop_path_rate
        stored["drop_path_rate"] = 0
        with open(json_file_path, "w", encoding="utf-8") as writer:
            writer.write(json.dumps(stored, indent=2, sort_keys=True) + "\n")


def _forget_class(file: Path, key: str, name: str) -> None:
    """Take the class' name out of a processor's file, if it is there: from now on the config
    beside it decides."""
    settings = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if settings.get(key) == name:
        del settings[key]
        file.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


__all__ = ["TimeSformerConfig"]
