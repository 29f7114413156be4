"""The pictures of the project: one size, one palette, English labels."""

from collections.abc import Sequence
from pathlib import Path

FIGURE_SIZE = (7, 4)  # inches
BLUE, ORANGE, GREY, GREEN, RED = "#2b6cb0", "#dd6b20", "#718096", "#2f855a", "#c53030"


def _figure(*, columns: int = 1):
    from matplotlib.figure import Figure  # slow to import, and most commands draw nothing

    figure = Figure(figsize=(FIGURE_SIZE[0] * (0.4 + 0.6 * columns), FIGURE_SIZE[1]), layout="constrained")
    return figure, figure.subplots(1, columns)


def _style(axes, title: str, xlabel: str, ylabel: str) -> None:
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)


def _save(figure, path: str | Path) -> Path:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, metadata={"Software": None})
    return Path(path)


def loss_curve(log_history: Sequence[dict]):
    """Train and eval loss over steps, from ``trainer.state.log_history``; the best eval loss is marked."""
    train = [(entry["step"], entry["loss"]) for entry in log_history if "loss" in entry]
    evaluated = [(entry["step"], entry["eval_loss"]) for entry in log_history if "eval_loss" in entry]
    figure, axes = _figure()
    _style(axes, "Loss during fine-tuning", "step", "cross-entropy per answer token (nats)")
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


def report_figure(report: dict):
    """F1 of the model beside the baselines, what each threshold gives, and calibration, from an evaluation report."""
    figure, (left, middle, right) = _figure(columns=3)
    _draw_f1(left, report)
    _draw_thresholds(middle, report)
    _draw_reliability(right, report)
    return figure


def _draw_f1(axes, report: dict) -> None:
    _style(axes, f"F1 on {report['n']} rows of {report['provenance']['data']['name']}", "F1", "")
    f1 = report["f1"] or 0.0
    low, high = report["intervals"]["f1"] or (f1, f1)
    rows = [(name.replace("_", " "), row["f1"] or 0.0, GREY) for name, row in (report["baselines"] or {}).items()]
    rows = sorted(rows, key=lambda row: row[1]) + [("this model", f1, BLUE)]
    names, values, colors = zip(*rows, strict=True)
    axes.barh(names, values, color=colors)
    axes.errorbar(f1, names[-1], xerr=[[max(0.0, f1 - low)], [max(0.0, high - f1)]], color="black", capsize=4)
    for name, value in zip(names, values, strict=True):
        axes.text(0.01, name, f"{value:.3f}", va="center", color="white" if value > 0.15 else "black")
    axes.set_xlim(0, 1)


def _draw_thresholds(axes, report: dict) -> None:
    _style(axes, "Precision and recall by threshold", "probability from which on it is called fraud", "")
    for name, color in (("precision", BLUE), ("recall", ORANGE)):
        points = [(row["threshold"], row[name]) for row in report["thresholds"] if row[name] is not None]
        axes.plot(*zip(*points, strict=True), color=color, marker="o", markersize=3, label=name)
    axes.axvline(report["threshold"], color=GREY, linestyle="--", linewidth=1, label="threshold in use")
    axes.set_ylim(0, 1.02)
    axes.legend(frameon=False, loc="lower left")


def _draw_reliability(axes, report: dict) -> None:
    """The share of fraud among dialogues of about the same probability; the diagonal is where it should lie."""
    _style(axes, "Does the probability mean what it says?", "mean probability", "share of fraud")
    axes.plot((0, 1), (0, 1), color=GREY, linewidth=1)
    drawn = {"before": ("temperature 1", ORANGE), "after": (f"temperature {report['temperature']:.2f}", BLUE)}
    for name, (label, color) in list(drawn.items())[report["temperature"] == 1.0:]:
        found = report["calibration"][name]
        points = [(row["mean_probability"], row["fraud_share"]) for row in found["bins"]]
        axes.plot(*zip(*points, strict=True), color=color, marker="o", markersize=4,
                  label=f"{label}, calibration error {found['ece']:.3f}")
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    axes.legend(frameon=False, loc="upper left")


def save_report_figure(report: dict, path: str | Path) -> Path:
    return _save(report_figure(report), path)
