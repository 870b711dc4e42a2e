"""The arguments of a training run: what to start from, which clips, and how to train."""

import logging
from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from ..data.arguments import DatasetArguments
from .optimization import FREEZE_CHOICES
from .temporal_start import START_CHOICES


logger = logging.getLogger(__name__)


@dataclass
class ModelArguments:
    """What to start from, and the clips that it takes."""

    model: str | None = field(
        default=None, metadata={"help": "TimeSformer to fine-tune: a folder or Hub id."}
    )
    from_vit: str | None = field(
        default=None,
        metadata={
            "help": "Image ViT to start from: a folder or Hub id, or .safetensors with timm's names."
        },
    )
    new_head: bool = field(
        default=False,
        metadata={
            "help": "Train a new classifier where the labels of --model are not those of the data.",
            "aliases": ["--ignore_mismatched_sizes"],
        },
    )
    config_overrides: str | None = field(
        default=None, metadata={"help": "Config fields, such as hidden_size=96,drop_path_rate=0.1."}
    )
    attention_type: str | None = field(
        default=None, metadata={"help": "Attention scheme (see TimeSformerConfig)."}
    )
    temporal_start: str = field(
        default="attention",
        metadata={
            "help": "Temporal attention with --from_vit: `attention`, the ViT's own, which adds nothing at first and "
            "is blind to order; for few clips `parts`, each head looks at a part of the clip, `changes`, which shows "
            "what changes, or `comparisons`, which tells which parts are alike (both cost some of what pictures tell; "
            "comparisons learn at a tenth of --temporal_learning_rate); `auto` takes the best by untrained features.",
            "choices": START_CHOICES,
        },
    )
    drop_path_rate: float | None = field(
        default=None,
        metadata={"help": "Stochastic depth of the last block, less in those before it."},
    )
    attn_implementation: str | None = field(
        default=None, metadata={"help": "eager, sdpa, flash_attention_2, ..."}
    )
    num_frames: int | None = field(
        default=None, metadata={"help": "Frames a clip, if not the checkpoint's."}
    )
    image_size: list[int] | None = field(
        default=None,
        metadata={"help": "Size of the crops in pixels: one number, or height and width."},
    )
    sampling: str | None = field(
        default=None, metadata={"help": "clip (a window) or segments (the whole video)."}
    )
    sampling_rate: int | None = field(
        default=None, metadata={"help": "Source frames from one frame of a clip to the next."}
    )
    target_fps: float | None = field(
        default=None, metadata={"help": "Frame rate that sampling_rate is meant for."}
    )
    image_mean: list[float] | None = field(
        default=None, metadata={"help": "Mean of each channel, 0 to 1."}
    )
    image_std: list[float] | None = field(
        default=None, metadata={"help": "Standard deviation of each channel."}
    )
    lora_r: int | None = field(
        default=None,
        metadata={
            "help": "Rank of LoRA adapters, which learn with the classifier while the rest is frozen."
        },
    )
    lora_alpha: float | None = field(
        default=None, metadata={"help": "Scale of the adapters: 2 * --lora_r."}
    )
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout in the adapters."})
    lora_targets: list[str] = field(
        default_factory=lambda: ["qkv"], metadata={"help": "Names of the layers that get adapters."}
    )
    lora_merge: bool = field(
        default=False,
        metadata={"help": "Save a whole model at the end, with the adapters merged into it."},
    )


@dataclass
class DataArguments(DatasetArguments):
    """Where the clips are, and what is done to them in training."""

    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    validation_split: str | None = field(
        default=None, metadata={"help": "Split to evaluate on: validation where there is one."}
    )
    validation_fraction: float = field(
        default=0.1,
        metadata={
            "help": "Share of the training clips held out where there is no validation split; 0: none."
        },
    )
    balanced_sampling: bool = field(
        default=False,
        metadata={
            "help": "Draw clips of every class equally often: those of rare classes several times an epoch."
        },
    )
    group_by: str | None = field(
        default=None,
        metadata={
            "help": "What tells clips that belong together, so that none of them is held out without the others: a "
            "column of a table, or a regular expression that is searched in their names. `none`: nothing does."
        },
    )
    short_side: list[int] | None = field(
        default=None,
        metadata={"help": "Range of the short-side jitter in pixels: 1 to 9/7 of --image_size."},
    )
    inverse_short_side: bool = field(
        default=False,
        metadata={
            "help": "Draw the inverse of the short side uniformly: small ones come more often."
        },
    )
    random_resized_crop: list[float] | None = field(
        default=None,
        metadata={
            "help": "Range of the share of a frame that a crop covers, such as 0.3 1, in place of the jitter."
        },
    )
    flip: bool = field(
        default=True, metadata={"help": "Mirror half of the clips; ssv2 is never mirrored."}
    )
    shuffle_buffer: int = field(
        default=256,
        metadata={"help": "Clips of tar shards that each worker shuffles at a time, in memory."},
    )
    stream_processes: int | None = field(
        default=None,
        metadata={
            "help": "Processes that the order of clips from tar shards is laid out for, if not as many as there are: "
            "with the same total batch the same clips then make up each step on fewer processes."
        },
    )
    missing_file: str | None = field(
        default=None,
        metadata={"help": "Where to list clips that the annotations name and the disk lacks."},
    )
    color_jitter: float = field(
        default=0.0, metadata={"help": "Strength of brightness, contrast, saturation jitter."}
    )
    rand_augment: list[int] | None = field(
        default=None,
        metadata={
            "help": "Operations of RandAugment and their strength from 0 to 30, such as 2 9."
        },
    )
    random_erasing: float = field(
        default=0.0,
        metadata={"help": "Share of the clips in which a rectangle is replaced by noise."},
    )
    mixup: float = field(default=0.0, metadata={"help": "alpha of mixup; 0: none."})
    cutmix: float = field(
        default=0.0,
        metadata={
            "help": "alpha of CutMix; 0: none. With --mixup each batch is mixed in one of both ways."
        },
    )
    repeated_augmentation: int = field(
        default=1,
        metadata={
            "help": "Augmented views of each clip that is decoded, in the same batch: with 2, half the decoding for a "
            "step, and twice the steps for an epoch."
        },
    )
    max_train_samples: int | None = field(
        default=None,
        metadata={"help": "Train on so many clips only, drawn with the seed, class by class."},
    )
    preview: int = field(
        default=0,
        metadata={
            "help": "Write contact sheets of so many augmented training clips to --output_dir first."
        },
    )
    recipe: str | None = field(
        default="small-set",
        metadata={"help": "Name or file of a recipe (`timesformer recipes` lists them), or none."},
    )


@dataclass
class VideoTrainingArguments(TrainingArguments):
    """transformers' `TrainingArguments` with what fine-tuning on clips needs beyond them, and
    defaults that suit it.
    """

    freeze: str = field(
        default="none",
        metadata={
            "help": "What does not learn: `backbone` (all but the classifier), `spatial` (all that came from the "
            "image ViT: time embeddings, temporal attention and classifier learn) or `none`.",
            "choices": FREEZE_CHOICES,
        },
    )
    freeze_depth: float | None = field(
        default=0.0,
        metadata={
            "help": "Share of the blocks, from the first on, that does not learn, nor do the embeddings. A recipe may "
            "leave it open (null): then the number of clips decides."
        },
    )
    head_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the classifier, if not --learning_rate."}
    )
    temporal_learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "Learning rate of what an image ViT does not have (time embeddings, temporal attention), if not "
            "--learning_rate: new parameters have further to go."
        },
    )
    probe_passes: int = field(
        default=0,
        metadata={
            "help": "Augmented passes over the training clips that a new classifier is first fitted to, with the "
            "network frozen."
        },
    )
    refit_classifier: bool = field(
        default=False,
        metadata={
            "help": "Whether the classifier is fitted anew to the network that training ends with, to such passes and "
            "to what an evaluation sees of the clips. Needs --probe_passes."
        },
    )
    decay_all: bool = field(
        default=False,
        metadata={
            "help": "Weight decay on all parameters, as in the official code: on biases, norms, CLS, position and "
            "time embeddings too."
        },
    )
    class_weights: str = field(
        default="none",
        metadata={
            "help": "`balanced`: rare classes weigh more in the loss, so that all classes weigh the same; or `none`.",
            "choices": ("none", "balanced"),
        },
    )
    layer_decay: float = field(
        default=1.0,
        metadata={"help": "Factor on the learning rate from each block to the one below it."},
    )
    reference_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Total batch that the learning rates are meant for: with another one (devices x batch x "
            "accumulation) they are scaled in proportion, and the log says so."
        },
    )
    ema_decay: float | None = field(
        default=None,
        metadata={
            "help": "Evaluate and save an exponential moving average of the weights, such as 0.999."
        },
    )
    early_stopping_patience: int | None = field(
        default=None,
        metadata={
            "help": "Stop once so many evaluations in a row have not been better than the best one before."
        },
    )
    lr_milestones: list[float] | None = field(
        default=None,
        metadata={
            "help": "Epochs at which the learning rates are multiplied by --lr_factor, in place of a scheduler."
        },
    )
    lr_factor: float = field(default=0.1, metadata={"help": "See --lr_milestones."})
    max_bad_fraction: float = field(
        default=0.1,
        metadata={
            "help": "Stop with a list once more than this share of the training clips, and at least 5 of them, turned "
            "out to be unreadable. Fewer are replaced, counted and reported."
        },
    )
    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={
            "help": "Go on from this checkpoint folder; without a value, from the last whole one in --output_dir; "
            "with auto, from the last whole one if there is one, else start.",
            "nargs": "?",
            "const": "last",
        },
    )
    per_device_eval_batch_size: int = field(
        default=8, metadata={"help": "Clips a device evaluates at once."}
    )
    eval_strategy: str = field(
        default="epoch", metadata={"help": "When to evaluate: `no`, `steps` or `epoch`."}
    )
    save_strategy: str = field(
        default="epoch", metadata={"help": "When to save: `no`, `steps`, `epoch` or `best`."}
    )
    save_total_limit: int | None = field(
        default=2, metadata={"help": "Checkpoints to keep; the best and the last always stay."}
    )
    load_best_model_at_end: bool | None = field(
        default=None,
        metadata={
            "help": "Whether the model that is saved at the end is the best one evaluated: if not said, wherever each "
            "evaluation has its checkpoint."
        },
    )
    on_non_finite: str = field(
        default="stop",
        metadata={
            "help": "What to do where an evaluation gives logits that are NaN or infinite: `stop` once a checkpoint "
            "is saved, or `go_on`. They count as wrong in either case.",
            "choices": ("stop", "go_on"),
        },
    )
    logging_nan_inf_filter: bool = field(
        default=False,
        metadata={"help": "Whether losses that are NaN or infinite are left out of the log."},
    )
    metric_for_best_model: str | None = field(
        default="top1_accuracy", metadata={"help": "Metric that says which model is the best."}
    )
    logging_steps: float = field(
        default=10, metadata={"help": "Log every so many steps, or every such share of all."}
    )
    dataloader_num_workers: int = field(
        default=2, metadata={"help": "Processes that decode, for each device."}
    )
    remove_unused_columns: bool = field(
        default=False,
        metadata={
            "help": "Whether columns of a plain data set that the model does not take are removed."
        },
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False,
        metadata={
            "help": "Whether DDP looks in each step for parameters without a gradient. This network has none."
        },
    )

    def __post_init__(self):
        if self.load_best_model_at_end is None:
            self.load_best_model_at_end = self._evaluations_have_checkpoints()
        # else --bf16 is refused where there are CPUs only
        self.use_cpu |= not torch.accelerator.is_available()
        super().__post_init__()
        self.dataloader_pin_memory &= torch.accelerator.is_available()

    def _evaluations_have_checkpoints(self) -> bool:
        """Whether each evaluation comes with a checkpoint, so that the best model can be loaded at
        the end.
        """
        evaluations = IntervalStrategy(self.eval_strategy).value
        saves = SaveStrategy(self.save_strategy).value
        if "no" in (evaluations, saves):
            return False
        if saves == "best":
            return True
        if evaluations != saves:
            logger.warning(
                "the model saved at the end is the last one, not the best: evaluations come by %s, checkpoints by %s",
                evaluations,
                saves,
            )
            return False
        # Evaluations without a value of their own come every --logging_steps.
        every = self.eval_steps or self.logging_steps
        if evaluations == "steps" and self.save_steps % every:
            logger.warning(
                "the model saved at the end is the last one, not the best: --save_steps %g is no multiple of the %g "
                "steps from one evaluation to the next",
                self.save_steps,
                every,
            )
            return False
        return True

    def learning_rate_factor(self, batch_size: int) -> float:
        """What the learning rates are multiplied by where each device takes `batch_size` clips at a
        time.
        """
        if self.reference_batch_size is None:
            return 1.0
        return (
            batch_size
            * self.gradient_accumulation_steps
            * self.world_size
            / self.reference_batch_size
        )
