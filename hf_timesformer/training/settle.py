"""What a start and its data leave of the arguments: each thing left out or chosen is said in the
log.
"""

import copy
import logging

from transformers.trainer_utils import IntervalStrategy

from ..data.found_videos import FoundVideos
from ..data.targets import REGRESSION, SINGLE_LABEL
from .arguments import ModelArguments, VideoTrainingArguments
from .objective import BEST_METRICS


logger = logging.getLogger(__name__)

# Fewer clips than this: that share of the blocks is frozen.
FREEZE_DEPTHS = ((1_000, 0.67), (10_000, 0.33))


def settle_arguments(model: ModelArguments, args: VideoTrainingArguments) -> VideoTrainingArguments:
    """A copy of `args` without what makes no sense for that start; each thing left out is said in
    the log.

    Freezing needs pretrained weights. Fitting the classifier first needs a new classifier on a
    pretrained network. A learning rate of its own for temporal attention is for one that no
    checkpoint has trained yet.
    """
    args = copy.copy(args)
    is_pretrained = bool(model.model or model.from_vit)
    has_new_head = bool(model.from_vit or model.new_head)
    if args.freeze_depth != 0 and not is_pretrained:
        logger.info("nothing is pretrained, so nothing is frozen")
        args.freeze_depth = 0.0
    if args.probe_passes and not has_new_head:
        logger.info(
            "the classifier is not a new one on a pretrained network: it is not fitted before the training"
        )
        args.probe_passes, args.refit_classifier = 0, False
    if args.temporal_learning_rate and not model.from_vit:
        logger.info(
            "not from an image ViT: temporal attention and time embeddings learn at --learning_rate, too"
        )
        args.temporal_learning_rate = None
    if model.temporal_start != "attention" and not model.from_vit:
        logger.info(
            "not from an image ViT: temporal attention starts as it is, without --temporal_start %s",
            model.temporal_start,
        )
    return args


def settle_evaluation(
    args: VideoTrainingArguments, problem_type: str, *, has_validation: bool
) -> VideoTrainingArguments:
    """A copy of `args` without evaluations where there are no clips for them, and with a metric
    that there is.

    Raises:
        ValueError: early stopping without clips to evaluate on.
    """
    args = copy.copy(args)
    if not has_validation:
        args.eval_strategy, args.load_best_model_at_end = IntervalStrategy.NO, False
    if args.early_stopping_patience is not None:
        if str(args.eval_strategy) == str(IntervalStrategy.NO):
            raise ValueError(
                "--early_stopping_patience needs clips to evaluate on, and an --eval_strategy"
            )
        # how long it has been without a better one
        args.restore_callback_states_from_checkpoint = True
    if problem_type != SINGLE_LABEL and args.metric_for_best_model == BEST_METRICS[SINGLE_LABEL]:
        args.metric_for_best_model = BEST_METRICS[problem_type]
        args.greater_is_better = problem_type != REGRESSION
    return args


def settle_depth(args: VideoTrainingArguments, found: FoundVideos) -> VideoTrainingArguments:
    """A copy of `args` with a `freeze_depth`, chosen by the number of clips where it is None."""
    args = copy.copy(args)
    if args.freeze_depth is None:
        count = sum(found.shard_sizes or []) if found.shards is not None else len(found.videos)
        args.freeze_depth = depth_for(count)
        logger.info(
            "freeze_depth %g: that share of the blocks does not learn from %s clips",
            args.freeze_depth,
            count or "uncounted",
        )
    return args


def depth_for(num_clips: int) -> float:
    """How much of the network is frozen while it learns from so many clips; 0: nobody has counted.

    Two thirds below a thousand clips, one third below ten thousand, else nothing: what an image
    ViT knows is worth more than what few clips can teach its early blocks.
    """
    for limit, depth in FREEZE_DEPTHS:
        if 0 < num_clips < limit:
            return depth
    return 0.0
