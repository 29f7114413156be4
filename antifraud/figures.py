"""The pictures of the project: one style, one palette, English labels, and each says in words what it shows."""

import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from data.files import DataError

FIGURE_SIZE = (7, 4)  # inches
DPI = 120
BLUE, ORANGE, GREY, GREEN, RED = "#2b6cb0", "#dd6b20", "#718096", "#2f855a", "#c53030"
PALETTE = (BLUE, ORANGE, GREEN, RED, GREY, "#90cdf4", "#ecc94b")
CHINESE = ("NotoSansCJK-Regular", "wqy-zenhei", "wqy-microhei", "msyh", "PingFang", "simhei")  # font files that have it


class Picture:
    """A figure with the words that stand for it; a notebook shows both, whatever its plotting backend is."""

    def __init__(self, alt: str, *, rows: int = 1, columns: int = 1, height: float = 1.0, **grid) -> None:
        """`rows` x `columns` of axes, in ``panels``; `height` is in units of the usual one."""
        from matplotlib.figure import Figure  # slow to import, and most commands draw nothing

        size = FIGURE_SIZE[0] * (0.4 + 0.6 * columns), FIGURE_SIZE[1] * height
        self.alt, self.figure = alt, Figure(figsize=size, layout="constrained")
        self.panels = self.figure.subplots(rows, columns, **grid)

    def __repr__(self) -> str:
        return self.alt

    def _repr_mimebundle_(self, include=None, exclude=None) -> tuple[dict, dict]:
        png = io.BytesIO()
        self.save(png)
        return {"image/png": png.getvalue(), "text/plain": self.alt}, {"image/png": {"alt": self.alt}}

    def save(self, path: str | Path | io.BytesIO) -> None:
        self.figure.savefig(path, format="png", dpi=DPI, metadata={"Software": None})

    def legend_below(self, axes, columns: int = 2) -> None:
        self.figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=columns, frameon=False)


def style(axes, title: str, xlabel: str = "", ylabel: str = "", **limits) -> None:
    """What all axes have in common: no frame above and on the right, a faint grid below what is drawn."""
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel, **limits)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)


def _levels(axes, lines: Mapping[str, float]) -> None:
    """Named horizontal lines, told apart by their dashes."""
    for (name, level), dashes in zip(lines.items(), ("--", ":", "-.")):
        axes.axhline(level, color=GREY, linestyle=dashes, linewidth=1, label=name)


# ------------------------------------------------------------------------------------------ training and its report


def loss_curve(log_history: Sequence[dict]) -> Picture:
    """Train and eval loss over steps, from ``trainer.state.log_history``; the best eval loss is marked."""
    train = [(entry["step"], entry["loss"]) for entry in log_history if "loss" in entry]
    evaluated = [(entry["step"], entry["eval_loss"]) for entry in log_history if "eval_loss" in entry]
    picture = Picture("Loss over the steps of fine-tuning, on train and on eval dialogues, on a logarithmic axis.")
    axes = picture.panels
    style(axes, "Loss during fine-tuning", "step", "cross-entropy per answer token (nats)")
    if train:
        axes.plot(*zip(*train), color=BLUE, label="train")
    if evaluated:
        best = min(evaluated, key=lambda point: point[1])
        picture.alt = f"{picture.alt[:-1]}; the best eval loss is {best[1]:.4f}, at step {best[0]}."
        axes.plot(*zip(*evaluated), color=ORANGE, marker="o", markersize=4,
                  label=f"eval, best {best[1]:.4f} at step {best[0]}")
    axes.set_yscale("log")
    if train or evaluated:
        axes.legend(frameon=False)
    return picture


def report_figure(report: dict) -> Picture:
    """F1 of the model beside the baselines, what each threshold gives, and calibration, from an evaluation report."""
    picture = Picture(f"F1 of the model and of the baselines on {report['n']} rows, precision and recall by threshold, "
                      "and the share of fraud by the probability given.", columns=3)
    left, middle, right = picture.panels
    _draw_f1(left, report)
    _draw_thresholds(middle, report)
    _draw_reliability(right, report)
    return picture


def _draw_f1(axes, report: dict) -> None:
    others = report["baselines"] or {}
    chosen = {name: row["at_threshold"] for name, row in others.items() if row.get("at_threshold")}
    rule = f"\nbaselines at {'thresholds from eval' if chosen else '0.5'}" if others else ""
    style(axes, f"F1 on {report['n']} rows of {report['provenance']['data']['name']}{rule}", "F1")
    f1 = report["f1"] or 0.0
    low, high = report["intervals"]["f1"] or (f1, f1)
    rows = [(name.replace("_", " ") + (" at 0.5" if chosen and name not in chosen else ""),
             chosen.get(name, row)["f1"] or 0.0, GREY) for name, row in others.items()]
    rows = sorted(rows, key=lambda row: row[1]) + [("this model", f1, BLUE)]
    names, values, colors = zip(*rows, strict=True)
    axes.barh(names, values, color=colors)
    axes.errorbar(f1, names[-1], xerr=[[max(0.0, f1 - low)], [max(0.0, high - f1)]], color="black", capsize=4)
    for name, value in zip(names, values, strict=True):
        axes.text(0.01, name, f"{value:.3f}", va="center", color="white" if value > 0.15 else "black")
    axes.set_xlim(0, 1)


def _draw_thresholds(axes, report: dict) -> None:
    style(axes, "Precision and recall by threshold", "probability from which on it is called fraud")
    for name, color in (("precision", BLUE), ("recall", ORANGE)):
        points = [(row["threshold"], row[name]) for row in report["thresholds"] if row[name] is not None]
        axes.plot(*zip(*points, strict=True), color=color, marker="o", markersize=3, label=name)
    if report["method"] == "score":  # generated answers know no threshold
        axes.axvline(report["threshold"], color=GREY, linestyle="--", linewidth=1, label="threshold in use")
    axes.set_ylim(0, 1.02)
    axes.legend(frameon=False, loc="lower left")


def _draw_reliability(axes, report: dict) -> None:
    """The share of fraud among dialogues of about the same probability; the diagonal is where it should lie."""
    style(axes, "Does the probability mean what it says?", "mean probability", "share of fraud")
    axes.plot((0, 1), (0, 1), color=GREY, linewidth=1)
    drawn = [("before", "as scored", ORANGE)]
    if report["temperature"] != 1.0 or report.get("bias"):
        drawn.append(("after", "calibrated", BLUE))
    for name, label, color in drawn:
        found = report["calibration"][name]
        points = [(row["mean_probability"], row["fraud_share"]) for row in found["bins"]]
        axes.plot(*zip(*points, strict=True), color=color, marker="o", markersize=4,
                  label=f"{label}, calibration error {found['ece']:.3f}")
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    axes.legend(frameon=False, loc="upper left")


# ------------------------------------------------------------------------------------------ pictures of the notebooks


def bars(values: Mapping[str, float], title: str, xlabel: str, *, intervals: Mapping[str, Sequence[float]] = {},
         marked: Sequence[str] = ()) -> Picture:
    """One horizontal bar a name, the first on top; black lines are `intervals`, orange bars those `marked`."""
    said = ", ".join(f"{name} {value:.3f}" for name, value in values.items())
    picture = Picture(f"{title}: {said}.", height=0.25 + 0.1 * len(values))
    axes, names = picture.panels, list(values)
    style(axes, title, xlabel)
    axes.barh([f"{name}  {value:.3f}" for name, value in values.items()], list(values.values()),
              color=[ORANGE if name in marked else BLUE for name in names])
    for name, ends in intervals.items():
        axes.plot(ends, [names.index(name)] * 2, color="black", linewidth=1.5, marker="|")
    axes.invert_yaxis()
    return picture


def grouped_bars(groups: Mapping[str, Mapping[str, float]], title: str, ylabel: str, *, form: str = ".2f",
                 line: tuple[str, float] | None = None) -> Picture:
    """For each group, a bar for each of its names, which all groups share; `line` is a named level."""
    names = list(next(iter(groups.values())))
    said = "; ".join(f"{group}: " + ", ".join(f"{name} {value:{form}}" for name, value in members.items())
                     for group, members in groups.items())
    picture = Picture(f"{title}. {said}.")
    axes, width = picture.panels, 0.8 / len(names)
    style(axes, title, ylabel=ylabel)
    for number, (name, color) in enumerate(zip(names, PALETTE)):
        drawn = axes.bar(np.arange(len(groups)) + width * (number - (len(names) - 1) / 2),
                         [members[name] for members in groups.values()], width * 0.95, color=color, label=name)
        axes.bar_label(drawn, fmt=f"{{:{form}}}", fontsize=8)
    if line:
        _levels(axes, dict([line]))
    axes.set_xticks(range(len(groups)), [group.replace(", ", ",\n") for group in groups])
    axes.margins(y=0.12)
    picture.legend_below(axes, 4)
    return picture


def histogram(values: Mapping[str, Sequence[float]], title: str, xlabel: str, *, bins=30, log: bool = False,
              mark: tuple[str, float] | None = None, ylabel: str = "dialogues") -> Picture:
    """How often values occur, for each name in its own colour; `mark` is a named place on the axis."""
    said = ", ".join(f"{name}: {len(of_name)} values, median {np.median(of_name):.3g}"
                     for name, of_name in values.items() if len(of_name))
    picture = Picture(f"{title}. {said}.")
    axes = picture.panels
    style(axes, title, xlabel, ylabel, **({"yscale": "log"} if log else {}))
    axes.hist(list(values.values()), bins=bins, color=[BLUE, ORANGE, *PALETTE[2:]][:len(values)], label=list(values))
    if log:
        axes.set_ylim(bottom=0.5)
    if mark:
        axes.axvline(mark[1], color=GREY, linestyle="--", label=mark[0])
    picture.legend_below(axes, 3)
    return picture


def curves(series: Mapping[str, tuple[Sequence[float], Sequence[float]]], title: str, xlabel: str, ylabel: str, *,
           points: Mapping[str, tuple[Sequence[float], Sequence[float]]] = {}, step: bool = False,
           lines: Mapping[str, float] = {}, **limits) -> Picture:
    """A line for each of `series`, as (x, y); `points` of the same name have its colour; `lines` are named levels.

    The first are the thickest, and show where a later one runs over them. Below 1 a logarithmic axis is linear where a
    value is 0, which has no logarithm.
    """
    if limits.get("yscale") == "log" and min(np.min(y) for _, y in series.values()) <= 0:
        limits["yscale"] = "symlog"
    picture = Picture(f"{title}: {ylabel} over {xlabel}, for {', '.join([*series, *lines])}.")
    axes = picture.panels
    style(axes, title, xlabel, ylabel, **limits)
    for place, ((name, (x, y)), color) in enumerate(zip(series.items(), PALETTE)):
        axes.plot(x, y, "-" if len(x) > 1 else "o", color=color, label=name, linewidth=_width(place, series),
                  drawstyle="steps-post" if step else "default")
        if name in points:
            axes.plot(*points[name], "o", color=color, markersize=3 + 2 * _width(place, series))
    _levels(axes, lines)
    picture.legend_below(axes)
    return picture


def _width(place: int, drawn: Sequence | Mapping) -> float:
    return 1.5 + 0.7 * (len(drawn) - 1 - place)


def intervals(rows: Mapping[str, tuple[float, Sequence[float] | None]], title: str, xlabel: str, *,
              line: tuple[str, float] | None = None, hollow: Sequence[str] = ()) -> Picture:
    """One value with its interval a row, the first on top; `hollow` ones cannot differ; `line` is a named place."""
    said = ", ".join(f"{name} {value:.3f}" for name, (value, _) in rows.items())
    picture = Picture(f"{title}, with 95 % intervals: {said}.", height=0.3 + 0.08 * len(rows))
    axes = picture.panels
    style(axes, title, xlabel)
    for place, (name, (value, ends)) in enumerate(rows.items()):
        axes.plot(ends or (value, value), (place, place), color=BLUE, linewidth=2)
        axes.plot(value, place, "o", color=BLUE, markerfacecolor="white" if name in hollow else BLUE)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set_ylim(len(rows) - 0.5, -0.5)  # the first on top, no dot on the frame
    if line:
        axes.axvline(line[1], color=GREY, linestyle="--", linewidth=1, label=line[0])
        picture.legend_below(axes)
    return picture


def stacks(parts: Mapping[str, Mapping[str, float]], title: str, xlabel: str, *,
           measured: Mapping[str, float] = {}) -> Picture:
    """One horizontal bar a name, made of its parts; a black mark where a total was `measured`."""
    said = "; ".join(f"{name}: {sum(of_name.values()):.1f}" for name, of_name in parts.items())
    picture = Picture(f"{title}, in {xlabel}. {said}.", height=0.35 + 0.15 * len(parts))
    axes, left = picture.panels, np.zeros(len(parts))
    style(axes, title, xlabel)
    for part, color in zip(next(iter(parts.values())), PALETTE):
        sizes = np.array([of_name[part] for of_name in parts.values()])
        axes.barh(list(parts), sizes, left=left, color=color, label=part, height=0.6)
        left += sizes
    for number, (name, value) in enumerate(measured.items()):
        at = list(parts).index(name)
        axes.plot((value, value), (at - 0.4, at + 0.4), color="black", label="" if number else "measured")
    axes.invert_yaxis()
    picture.legend_below(axes, 4)
    return picture


def quantization_levels(normalised, levels: Mapping[str, Sequence[float]]) -> Picture:
    """The histogram of weights divided by their block's largest, and for each format where its 16 levels lie."""
    picture = Picture("Histogram of the weights, each divided by the largest of its block, with the levels of "
                      f"{' and '.join(levels)}.", rows=len(levels), height=0.4 + 0.4 * len(levels), sharex=True,
                      squeeze=False)
    for axes, (name, places), color in zip(picture.panels[:, 0], levels.items(), PALETTE):
        style(axes, name, ylabel="density", yticks=[])
        height, *_ = axes.hist(np.asarray(normalised), bins=101, color="#cbd5e0", density=True)
        axes.vlines(np.asarray(places), 0, 1.05 * height.max(), color=color, linewidth=1.2)
    axes.set_xlabel("weight, divided by the largest of its block")
    return picture


def growing_dialogue(calls: Mapping[str, Sequence[float]], title: str, *, shaded: Mapping[str, Sequence[int]] = {},
                     lines: Mapping[str, float] = {}) -> Picture:
    """The probability of fraud after each line of calls; `shaded` are numbers of lines (from 1) of a call of that name.

    `lines` are named levels, such as thresholds.
    """
    ends = ", ".join(f"{name} ends at {of_call[-1]:.2f}" for name, of_call in calls.items())
    picture = Picture(f"{title}: the probability of fraud after each line; {ends}.")
    axes = picture.panels
    style(axes, title, "lines spoken", "probability of fraud", ylim=(-0.03, 1.03))
    for place, ((name, of_call), color) in enumerate(zip(calls.items(), (RED, BLUE, GREEN))):
        width = _width(place, calls)  # what lies below another is seen around it
        axes.plot(range(1, len(of_call) + 1), of_call, color=color, marker="o", markersize=2 + 2 * width, label=name,
                  linewidth=width)
        for number in shaded.get(name, ()):
            axes.axvspan(number - 0.5, number + 0.5, color=color, alpha=0.12, linewidth=0)
    axes.xaxis.get_major_locator().set_params(integer=True)
    _levels(axes, lines)
    picture.legend_below(axes, 3)
    return picture


def chinese_font():
    """A font that has Chinese, as matplotlib takes it; the first of `CHINESE` that is installed.

    Raises:
        DataError: none of them is.
    """
    from matplotlib import font_manager

    installed = sorted(font_manager.findSystemFonts())
    for name in CHINESE:
        for path in installed:
            if Path(path).stem.lower().startswith(name.lower()):
                return font_manager.FontProperties(fname=path)
    raise DataError(f"no font with Chinese: none of {', '.join(CHINESE)} is installed; on Debian, that is the package "
                    "fonts-noto-cjk")


def dialogue_with_gloss(lines: Sequence[tuple[str, str, bool]], probabilities: Sequence[float], title: str, *,
                        threshold: float | None = None) -> Picture:
    """A Chinese dialogue line by line, its English beside, and the probability of fraud after each line.

    Args:
        lines: (Chinese with the speaker, English, whether the line is labelled fraud).

    Raises:
        DataError: no font here has Chinese.
    """
    picture = Picture(f"{title}. " + " ".join(f"{english} ({probability:.2f})" for (_, english, _), probability
                                              in zip(lines, probabilities)),
                      columns=2, height=0.22 + 0.13 * len(lines), sharey=True, width_ratios=(1.5, 1))
    picture.figure.set_figwidth(8.6)  # no wider than the words need: README scales it down
    (words, axes), font = picture.panels, chinese_font()
    for place, (chinese, english, is_fraud) in enumerate(lines):
        color = RED if is_fraud else "black"
        words.text(0, place - 0.14, chinese, font=font, fontsize=12, va="center", color=color)
        words.text(0, place + 0.22, english, fontsize=10, va="center", color=GREY)
    words.set(xlim=(0, 1))
    words.set_title(title, loc="left")
    words.axis("off")
    style(axes, "", "probability of fraud after this line", xlim=(-0.02, 1.12), ylim=(len(lines) - 0.5, -0.5))
    axes.plot(probabilities, range(len(lines)), color=RED, marker="o")
    for place, probability in enumerate(probabilities):
        axes.annotate(f"{probability:.2f}", (probability, place), (8, 0), textcoords="offset points", va="center",
                      fontsize=9, bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5})
    if threshold is not None:
        axes.axvline(threshold, color=GREY, linestyle="--", linewidth=1)
        axes.text(threshold, -0.45, "alarm ", ha="right", va="top", color=GREY, fontsize=9)
    axes.set_yticks([])
    return picture


class Table:
    """Rows as a notebook shows them: numbers to the right with as many digits as asked for, texts whole."""

    def __init__(self, rows: Sequence[Sequence], columns: Sequence[str], form: str = ".3f") -> None:
        self.columns, self.form = columns, form
        self.rows = [list(row) for row in rows]

    def _text(self, value) -> str:
        if value is None:
            return "-"
        return f"{value:{self.form}}" if isinstance(value, float) else str(value)

    def __repr__(self) -> str:
        return "\n".join("\t".join(map(self._text, row)) for row in [self.columns, *self.rows])

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{html.escape(name)}</th>" for name in self.columns)
        body = "".join("<tr>" + "".join(
            f'<td style="text-align: {"right" if isinstance(value, (int, float)) else "left"}">'
            f"{html.escape(self._text(value))}</td>" for value in row) + "</tr>\n" for row in self.rows)
        return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table>"


def table(rows: Sequence[Sequence] | Mapping[str, Mapping], columns: Sequence[str] = (), *, form: str = ".3f") -> Table:
    """A table of rows under `columns`, or of a mapping of rows by their names."""
    if isinstance(rows, Mapping):
        columns = columns or ["", *next(iter(rows.values()))]
        rows = [[name, *row.values()] for name, row in rows.items()]
    return Table(rows, columns, form)
