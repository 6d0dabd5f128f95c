"""The plots of a report, as SVG."""

import functools

import numpy as np
from sklearn import metrics

from poster_tfds.pages import rendering
from trainer.reports import analysis
from trainer.reports.report import Report

_MOST_GENRES = 30  # That plots of a panel, or of a row and a column, for each genre have.
_COLUMNS = 5
_BINS = 15


def draw_all(report: Report) -> dict[str, tuple[bytes, str]]:
    """Returns the plots by their headings, each an SVG with a sentence on what it shows."""
    genres = report.evaluated.facts["genres"]
    occurring = report.genres.index[report.genres["num_evaluated"] > 0]
    chosen = [genres.index(name) for name in occurring[:_MOST_GENRES]]
    more = ""
    if len(occurring) > len(chosen):
        more = f" The {len(chosen)} genres with most posters of {len(occurring)}."
    side = 1.5 + 0.28 * len(chosen)
    rows = -(-len(chosen) // _COLUMNS)
    return {
        "Average precision of each genre": (
            rendering.plot(
                functools.partial(_draw_precisions, report),
                (9, max(3.0, 0.28 * len(occurring))),
                "svg",
            ),
            "The lines are the intervals of the table above.",
        ),
        "Precision against recall": (
            rendering.plot(
                functools.partial(_draw_curves, report, chosen),
                (11, 2.1 * rows),
                "svg",
                (rows, _COLUMNS),
            ),
            "From the highest score on the left to all posters on the right, where precision is "
            f"the genre's share, the dashed line. The dot is what is predicted.{more}",
        ),
        "Calibration": (
            rendering.plot(functools.partial(_draw_calibration, report), (8, 4.5), "svg", (1, 2)),
            "Of all pairs of a poster and a genre with about one score, the share that are right. "
            "On the diagonal a score is what it says. The bars are how many pairs there are.",
        ),
        "Which genre is seen in the place of which": (
            rendering.plot(
                functools.partial(_draw_mistakes, report, chosen), (side + 1, side), "svg"
            ),
            "Of the posters with the genre of a row and without that of a column, the share in "
            f"which that of the column is predicted.{more}",
        ),
        "Which genres go together": (
            rendering.plot(
                functools.partial(_draw_together, report, chosen), (2 * side, side), "svg", (1, 2)
            ),
            "Of the posters with the genre of a row, the share that have that of a column too: by "
            f"their annotations, and by the calibrated scores.{more}",
        ),
    }


def _draw_precisions(report: Report, axes) -> None:
    scores = report.genres[report.genres["num_evaluated"] > 0]
    scores = scores.sort_values("average_precision", ascending=False)
    places = np.arange(len(scores))
    is_marked = scores["remark"] != ""
    for chosen, color, label in (
        (~is_marked, "tab:blue", "the model"),
        (is_marked, "lightsteelblue", "the model; too few posters"),
    ):
        if chosen.any():
            values = scores.loc[chosen, "average_precision"]
            axes.barh(places[chosen], values, color=color, label=label)
    axes.hlines(places, scores["low"], scores["high"], color="black", linewidth=0.8)
    axes.plot(
        scores["constant"],
        places,
        "|",
        color="black",
        markersize=12,
        markeredgewidth=2,
        label="constant predictor",
    )
    axes.set_yticks(places, scores.index)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("average precision")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(loc="lower right")


def _draw_curves(report: Report, chosen: list[int], panels) -> None:
    evaluated = report.evaluated
    for panel, genre in zip(panels.flat, chosen, strict=False):
        name = evaluated.facts["genres"][genre]
        precision, recall, _ = metrics.precision_recall_curve(
            evaluated.labels[:, genre], evaluated.logits[:, genre]
        )
        row = report.genres.loc[name]
        # From the highest score down; scikit-learn's first point is of no posters.
        panel.step(recall[-2::-1], precision[-2::-1], where="pre", linewidth=1)
        panel.axhline(row["constant"], color="black", linestyle="--", linewidth=0.8)
        panel.plot(row["recall"], row["precision"], "o", color="tab:orange", markersize=5)
        panel.set_title(name, fontsize=9)
        panel.set(xlim=(0, 1), ylim=(0, 1.02))
        panel.tick_params(labelsize=7)
        panel.grid(alpha=0.3)
    for panel in panels.flat[len(chosen) :]:
        panel.axis("off")


def _draw_calibration(report: Report, panels) -> None:
    evaluated = report.evaluated
    scores = 1 / (1 + np.exp(-evaluated.logits.astype(np.float64)))
    for panel, title, found in zip(
        panels,
        ("scores as they are", "calibrated"),
        (scores, report.calibrated),
        strict=True,
    ):
        means, shares, counts = analysis.calibration_bins(evaluated.labels, found, _BINS)
        panel.bar(
            (np.arange(_BINS) + 0.5) / _BINS, counts / counts.max(), 0.9 / _BINS, color="0.85"
        )
        panel.plot([0, 1], [0, 1], color="black", linestyle="--", linewidth=0.8)
        panel.plot(means, shares, marker="o", markersize=4)
        panel.set(title=title, xlabel="score", ylabel="share that is right")
        panel.set(xlim=(0, 1), ylim=(0, 1.02))
        panel.grid(alpha=0.3)


def _draw_mistakes(report: Report, chosen: list[int], axes) -> None:
    labels = report.evaluated.labels[:, chosen] > 0.5
    shares = analysis.mistaken_shares(labels, report.predicted[:, chosen])
    _draw_matrix(axes, shares, [report.evaluated.facts["genres"][g] for g in chosen])
    axes.set(xlabel="predicted, and not annotated", ylabel="annotated")


def _draw_together(report: Report, chosen: list[int], panels) -> None:
    names = [report.evaluated.facts["genres"][g] for g in chosen]
    for panel, title, values in zip(
        panels,
        ("annotations", "calibrated scores"),
        (report.evaluated.labels, report.calibrated),
        strict=True,
    ):
        _draw_matrix(panel, analysis.joint_shares(values[:, chosen]), names)
        panel.set(title=title, xlabel="have this too", ylabel="of those with this genre")


def _draw_matrix(axes, values: np.ndarray, names: list[str]) -> None:
    picture = axes.imshow(values, cmap="viridis", vmin=0, vmax=1)
    places = np.arange(len(names))
    axes.set_xticks(places, names, rotation=90, fontsize=8)
    axes.set_yticks(places, names, fontsize=8)
    axes.figure.colorbar(picture, ax=axes, shrink=0.6)
