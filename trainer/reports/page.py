"""`report.html`: how good a run's best model is, and its tables for a terminal."""

import functools
import os
import pathlib
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from poster_tfds.pages import rendering
from trainer import config as config_lib
from trainer.decisions import decision as decision_lib
from trainer.reports import (
    analysis,
    answers,
    curves,
    evaluated as evaluated_lib,
    intervals,
    scores as scores_lib,
)
from trainer.run import directory

_WIDTH = 100  # Columns of a terminal.
_NUM_WORST, _NUM_BEST = 24, 12
_NUM_COMMON_GENRES, _NUM_FALSE_POSITIVES = 4, 6


class Section(NamedTuple):
    """A table of the report with what there is to say of it."""

    heading: str
    paragraphs: Sequence[str]
    table: pd.DataFrame


def write_report(
    run_dir: str | os.PathLike, should_stop: Callable[[], bool] = lambda: False
) -> None:
    """Evaluates a run's best model and writes the report, unless it is told to stop.

    Raises:
        config.UsageError: the report cannot be written.
    """
    if evaluated := evaluated_lib.evaluate_run(run_dir, should_stop=should_stop):
        write(evaluated)


def write(evaluated: evaluated_lib.Evaluated) -> pathlib.Path:
    """Writes the report, its answers and the thresholds into the run directory; returns its path.

    Raises:
        config.UsageError: one cannot be written; what was there before still is.
    """
    answers.write(
        evaluated.run,
        evaluated.answers,
        evaluated.poster_ids,
        split=evaluated.split.name,
        step=evaluated.step,
        tta=evaluated.tta,
    )
    if evaluated.decision:
        decision_lib.write(
            evaluated.run.thresholds, evaluated.decision, evaluated.step, evaluated.tta
        )
    directory.write_atomically(evaluated.run.report, render(evaluated))
    return evaluated.run.report


def describe(evaluated: evaluated_lib.Evaluated) -> str:
    """Returns the report's tables as text."""
    blocks = ["\n".join(f"{name}: {value}" for name, value in _facts(evaluated).items())]
    for section in _sections(evaluated):
        table = section.table.to_string(float_format="{:.4f}".format, na_rep="-")
        paragraphs = [textwrap.fill(paragraph, _WIDTH) for paragraph in section.paragraphs]
        blocks += [section.heading.upper(), *paragraphs, table]
    return "\n\n".join(blocks)


def render(evaluated: evaluated_lib.Evaluated) -> str:
    """Returns the report: one HTML file with everything in it."""
    scores = _score_genres(evaluated)
    height = max(3.0, 0.28 * int((scores["num_evaluated"] > 0).sum()))
    genre_plot = rendering.plot(functools.partial(_draw_genres, scores), (9, height), "svg")
    return rendering.render(
        "report.html",
        package="trainer.reports",
        title=f"{evaluated.run.path.name} on {evaluated.split}",
        facts=_facts(evaluated),
        sections=_sections(evaluated),
        genre_plot=genre_plot,
        curves=curves.draw_learning_curves(evaluated.run.read_history()),
        galleries=_galleries(evaluated),
    )


def _facts(evaluated: evaluated_lib.Evaluated) -> dict[str, str]:
    config, facts = evaluated.config, evaluated.facts
    defaults = config_lib.Config()
    # What is in lines of its own is left out.
    named = {"dataset", "data_dir", "train_split", "model"}
    settings = [
        f"--{name}={value}"
        for name, value in config.to_json().items()
        if name not in named and value != getattr(defaults, name)
    ]
    epoch = evaluated.step / -(-facts["num_train"] // config.examples_per_step)
    why = "the newest"
    if evaluated.step == evaluated.run.best_step():
        why = f"the best by macro AP on {facts['validation_split']}"
    return {
        "Dataset": evaluated.split.builder.info.full_name,
        "Trained on": f"{facts['num_train']} posters of {config.train_split}",
        "Evaluated on": f"{len(evaluated.labels)} posters of {evaluated.split}, in float32",
        "Answers": config_lib.describe_tta(evaluated.tta),
        "Model": f"{config.model}, {facts['parameters']:,} parameters",
        "Settings that are not the defaults": " ".join(settings) or "none",
        "Checkpoint": f"step {evaluated.step}, epoch {epoch:.4g}, {why}",
    }


def _sections(evaluated: evaluated_lib.Evaluated) -> list[Section]:
    return [
        _describe_scores(evaluated),
        _describe_intervals(evaluated),
        _describe_genres(evaluated),
    ]


def _describe_scores(evaluated: evaluated_lib.Evaluated) -> Section:
    everything, unseen = analysis.score_with_and_without(
        evaluated.labels,
        evaluated.logits,
        evaluated.leaked,
        evaluated.base_rates,
    )
    num_leaked = int(evaluated.leaked.sum())
    train, split = evaluated.config.train_split, evaluated.split.name
    paragraphs = [
        "The constant predictor gives every poster the genres' shares of the train split."
    ]
    rows = [(f"all of {split}", everything)]
    if unseen is None:
        paragraphs.append(
            f"Every poster of {split} is in {train} too, byte for byte: these scores tell how "
            "well the model remembers, not what it does with new posters."
        )
    elif num_leaked:
        paragraphs.append(
            f"Posters that are in {train} too, byte for byte: {num_leaked}. The model may "
            "remember them; below are the scores with and without."
        )
        rows.append((f"without those in {train}", unseen))
    else:
        paragraphs.append(f"None of the posters is in {train} too, byte for byte.")
    if split == evaluated.facts["validation_split"]:
        paragraphs.append(
            f"The checkpoint is the one with the best macro AP on {split}, so that its score there "
            "is a little too good."
        )
    table = {
        name: {"posters": scores.num_posters, **values}
        for title, scores in rows
        for name, values in ((title, scores.model), (f"constant, {title}", scores.constant))
    }
    frame = pd.DataFrame.from_dict(table, "index").astype({"posters": int})
    return Section("Scores", paragraphs, frame.rename(columns=scores_lib.HEADINGS))


def _describe_intervals(evaluated: evaluated_lib.Evaluated) -> Section:
    split, target = evaluated.split.name, evaluated.target_precision
    goal = f"a precision of at least {target:g}" if target else "its best F1"
    if decision := evaluated.decision:
        decided = decision.calibrate(evaluated.logits), decision.predict(evaluated.logits)
        chosen = decision.how
    else:
        decided = decision_lib.cross_fit(*evaluated.answers, target)
        chosen = (
            f"Here each genre has the threshold with {goal}, chosen for each fifth of {split} on "
            "the other four, and so are the numbers that calibrate its scores."
        )
        if not evaluated.facts["validation_split"]:
            chosen += " There is no validation split to choose them on."
    scores = analysis.score_with_intervals(evaluated.answers, decided, evaluated.base_rates, target)
    paragraphs = [
        f"Of {intervals.NUM_RESAMPLES} resamples of the posters, {intervals.LEVEL:.0%} score "
        "between the two ends: so much may a score change with other posters of the same kind.",
        f"F1 and subset accuracy need thresholds. {chosen} The constant predictor sees a genre in "
        "every poster or in none, whichever is better.",
    ]
    scores.index = scores.index.map(scores_lib.HEADINGS | scores_lib.MORE_HEADINGS)
    headings = ["score", "lower end", "upper end", "constant's"]
    return Section("How sure they are", paragraphs, scores.set_axis(headings, axis="columns"))


def _score_genres(evaluated: evaluated_lib.Evaluated) -> pd.DataFrame:
    return analysis.score_genres(
        evaluated.facts["genres"], evaluated.labels, evaluated.logits, evaluated.train_counts
    )


def _describe_genres(evaluated: evaluated_lib.Evaluated) -> Section:
    train, split = evaluated.config.train_split, evaluated.split
    scores = _score_genres(evaluated)
    enough = scores[scores["remark"] == ""]
    paragraphs = [
        f"A genre with fewer than {analysis.MIN_TO_LEARN} posters in {train} is marked as having "
        f"too few to learn, one with fewer than {analysis.MIN_TO_MEASURE} in {split} too few to "
        "measure: each of them counts for more than a tenth of its average precision (AP). A "
        "constant's AP is the genre's share of the posters."
    ]
    if 0 < len(enough) < len(scores):
        precision, constant = enough[["average_precision", "constant"]].mean()
        paragraphs.append(
            f"Macro AP over the {len(enough)} genres that are not marked: {precision:.4f}; the "
            f"constant's: {constant:.4f}."
        )
    headings = [f"in {train}", f"in {split}", "AP", "constant's AP", "remark"]
    return Section("Genres", paragraphs, scores.set_axis(headings, axis="columns"))


def _draw_genres(scores: pd.DataFrame, axes) -> None:
    scores = scores[scores["num_evaluated"] > 0].sort_values("average_precision", ascending=False)
    places = np.arange(len(scores))
    is_marked = scores["remark"] != ""
    for chosen, color, label in (
        (~is_marked, "tab:blue", "the model"),
        (is_marked, "lightsteelblue", "the model; too few posters"),
    ):
        if chosen.any():
            values = scores.loc[chosen, "average_precision"]
            axes.barh(places[chosen], values, color=color, label=label)
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


def _galleries(evaluated: evaluated_lib.Evaluated) -> dict[str, list[dict[str, Any]]]:
    """Returns posters by headings: the worst, the best, what a genre is wrongly seen in."""
    labels, logits = evaluated.labels, evaluated.logits
    losses = scores_lib.poster_losses(labels, logits)
    by_loss = np.argsort(-losses, kind="stable")
    chosen = {
        "Largest losses": by_loss[:_NUM_WORST],
        "Smallest losses": by_loss[::-1][:_NUM_BEST],
    }
    for genre in np.argsort(-labels.sum(axis=0), kind="stable")[:_NUM_COMMON_GENRES]:
        name = evaluated.facts["genres"][genre]
        chosen[f"Most probably {name}, and labelled otherwise"] = analysis.false_positives(
            labels, logits, genre, _NUM_FALSE_POSITIVES
        )
    jpegs = evaluated.read_posters(np.concatenate(list(chosen.values())))
    return {
        heading: [{"jpeg": jpegs[int(i)], **_describe_poster(evaluated, losses, i)} for i in which]
        for heading, which in chosen.items()
    }


def _describe_poster(
    evaluated: evaluated_lib.Evaluated, losses: np.ndarray, i: int
) -> dict[str, Any]:
    genres = evaluated.facts["genres"]
    its_own = [genres[g] for g in np.flatnonzero(evaluated.labels[i])]
    return {
        "id": evaluated.poster_ids[i],
        "loss": losses[i],
        "is_leaked": evaluated.leaked[i],
        "genres": ", ".join(its_own) or "no genre",
        "answers": [
            {"genre": genres[g], "score": score, "is_right": bool(evaluated.labels[i, g])}
            for g, score in analysis.top_genres(evaluated.logits[i])
        ],
    }
