"""The pictures of the project: one size, one palette, English labels."""

from pathlib import Path
from typing import Sequence

FIGURE_SIZE = (7, 4)  # inches
BLUE, ORANGE, GREY, GREEN, RED = "#2b6cb0", "#dd6b20", "#718096", "#2f855a", "#c53030"


def _axes(title: str, xlabel: str, ylabel: str):
    from matplotlib.figure import Figure  # slow to import, and most commands draw nothing

    figure = Figure(figsize=FIGURE_SIZE, layout="constrained")
    axes = figure.add_subplot(title=title, xlabel=xlabel, ylabel=ylabel)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return figure, axes


def _save(figure, path: str | Path) -> Path:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, metadata={"Software": None})
    return Path(path)


def loss_curve(log_history: Sequence[dict]):
    """Train and eval loss over steps, from ``trainer.state.log_history``; the best eval loss is marked."""
    train = [(entry["step"], entry["loss"]) for entry in log_history if "loss" in entry]
    evaluated = [(entry["step"], entry["eval_loss"]) for entry in log_history if "eval_loss" in entry]
    figure, axes = _axes("Loss during fine-tuning", "step", "cross-entropy per answer token (nats)")
    if train:
        axes.plot(*zip(*train), color=BLUE, label="train")
    if evaluated:
        best = min(evaluated, key=lambda point: point[1])
        axes.plot(*zip(*evaluated), color=ORANGE, marker="o", markersize=4, label="eval")
        axes.annotate(f"best eval {best[1]:.4f}\nat step {best[0]}", best, xytext=(0, 25), ha="center",
                      textcoords="offset points", arrowprops={"arrowstyle": "-", "color": GREY}, color=GREY)
    axes.set_yscale("log")
    if train or evaluated:
        axes.legend(frameon=False)
    return figure


def save_loss_curve(log_history: Sequence[dict], path: str | Path) -> Path:
    return _save(loss_curve(log_history), path)
