"""The part of `VideoTrainer` that fits the classifier to the frozen network, before and after the
training.
"""

import copy
import logging
import math
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn
from tqdm.auto import tqdm

from ..data.clips import EvaluationClips
from ..data.targets import SINGLE_LABEL
from .classifier_fit import find_classifier, fit_new_classifier
from .upstream import read_part, write_part


logger = logging.getLogger(__name__)

# Of each clip: the one in the middle costs a pass, the three of the paper's protocol cost three.
EVALUATION_CROPS = 1


class ClassifierFitMixin:
    """For `VideoTrainer`: `fit_classifier` with the trainer's own clips."""

    def can_fit_classifier(self) -> bool:
        """Whether `fit_classifier` can do its work; where it cannot, a warning says why."""
        classifier = find_classifier(self.model)
        obstacle = None
        if not isinstance(classifier, nn.Linear):
            obstacle = f"it is a {type(classifier).__name__}, and only a linear one can be"
        elif self.is_deepspeed_enabled:
            obstacle = "DeepSpeed keeps the weights to itself; under --fsdp it would be"
        elif self.problem_type != SINGLE_LABEL:
            obstacle = f"it is fitted to one class a clip, and the problem is {self.problem_type}"
        elif not self.has_clips:
            obstacle = "the training data are no TrainingClips"
        if obstacle is not None:
            logger.warning(
                "the classifier is not fitted to the frozen network (probe_passes=%d): %s",
                self.args.probe_passes,
                obstacle,
            )
        return obstacle is None

    def fit_classifier(self, *, with_views: bool) -> None:
        """Fit the model's classifier to `probe_passes` augmented passes over the clips and, where
        `with_views`, to what an evaluation would see of them.

        All processes must call it; each ends with the same classifier.
        """
        sampler = self._sampler
        try:
            with self.accelerator.autocast():
                fit_new_classifier(
                    self.model,
                    self.fitting_batches(self.args.probe_passes, with_views=with_views),
                    gather=self.accelerator.gather,
                    label_smoothing=self.args.label_smoothing_factor,
                )
        finally:
            self._sampler = sampler  # of the clips that are trained on, whose epochs follow

    def fitting_batches(self, passes: int, *, with_views: bool = True) -> Iterator[dict[str, Any]]:
        """Batches to fit a classifier to: clips as in training, of epochs that training does not see.

        Where the trainer has a processor, the views are the crop of every clip that an evaluation
        would cut from its middle: objects look smaller there than in random crops of enlarged frames
        (Touvron et al. 2019, "Fixing the train-test resolution discrepancy"), and a classifier
        fitted to the latter alone is off for the former.

        Args:
            passes: how many epochs, counted from the first one after training.
            with_views: add the evaluation views of the clips at the end.

        Returns:
            Batches as they are trained on, and the `round` of each: its epoch.
        """
        first = math.ceil(self.args.num_train_epochs)
        clips, processor = self.train_dataset, self.processing_class
        datasets: list[tuple[Any, Sequence[int]]] = [(clips, range(first, first + passes))]
        if with_views and processor is not None:
            processor = copy.copy(processor)
            processor.num_crops = EVALUATION_CROPS
            views = EvaluationClips(clips.source, processor, label_ids=clips.label_ids)
            datasets.append((views, [first + passes]))
        hidden = self.args.disable_tqdm or not self.accelerator.is_main_process
        with tqdm(desc="features", total=0, disable=hidden) as bar:
            for dataset, epochs in datasets:
                loader = self.make_train_dataloader(dataset)
                bar.total += len(epochs) * len(loader)
                for epoch in epochs:
                    loader.set_epoch(epoch)  # accelerate's own count, which it tells the sampler
                    self.set_data_epoch(epoch)
                    for batch in loader:
                        self.leave_if_stopped()
                        self.train_faults.add(batch["faults"])
                        yield {**batch, "round": epoch}
                        bar.update()

    def refit_classifier(self) -> None:
        """Fit the classifier to the network that training ends with, unless it evaluates worse than
        the best one.
        """
        classifier = find_classifier(self.model)
        before = read_part(self.model, classifier)
        self.fit_classifier(with_views=True)
        best = self.state.best_metric
        if not self.args.load_best_model_at_end or best is None:
            return
        name = self.args.metric_for_best_model
        value = self.evaluate()[name if name.startswith("eval_") else f"eval_{name}"]
        is_worse = value < best if self.args.greater_is_better else value > best
        logger.info(
            "with the classifier fitted anew %s is %.4f, the best one before %.4f: the %s is kept",
            name,
            value,
            best,
            "one before" if is_worse else "new one",
        )
        if is_worse:
            write_part(self.model, classifier, before)
        else:
            self.state.best_metric = value
