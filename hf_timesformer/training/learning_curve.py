"""The learning curve of a run as a picture."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path


logger = logging.getLogger(__name__)


def draw_curve(log_history: Sequence[Mapping[str, float]], path: Path) -> bool:
    """Draw the loss and what an evaluation measures over epochs as a PNG.

    Returns False, with one line in the log, where matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        logger.warning("no learning curve is drawn: pip install matplotlib (extra `viz`)")
        return False
    curves = {
        "loss": {"loss": "training", "eval_loss": "validation"},
        "validation": {
            "eval_top1_accuracy": "top-1 accuracy",
            "eval_top5_accuracy": "top-5 accuracy",
            "eval_mean_average_precision": "mean average precision",
            "eval_mean_absolute_error": "mean absolute error",
        },
    }
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, (title, lines) in zip(figure.subplots(1, 2), curves.items()):
        for key, label in lines.items():
            points = [(entry["epoch"], entry[key]) for entry in log_history if key in entry]
            if points:
                axes.plot(*zip(*points), marker=".", label=label)
        axes.set(title=title, xlabel="epoch")
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    figure.savefig(path, dpi=120)
    return True
