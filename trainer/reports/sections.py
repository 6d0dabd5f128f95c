"""The words and tables of a report, for its page and for a terminal."""

import shlex
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from trainer import config as config_lib, presets
from trainer.decisions import decision
from trainer.reports import analysis, evaluated as evaluated_lib, intervals, scores as scores_lib
from trainer.reports.report import Report

_NUM_NAMED = 3  # Genres that the summary names.
_MUCH_WAITING = 0.1  # Of the time; what a faster pipeline could gain.


class Section(NamedTuple):
    """A table of the report with what there is to say of it."""

    heading: str
    paragraphs: Sequence[str]
    table: pd.DataFrame
    is_sortable: bool = False


def summarize(report: Report) -> list[str]:
    """Returns sentences: how good the model is, at what, at what it is not, and what is missing."""
    evaluated = report.evaluated
    posters = np.arange(len(evaluated.labels))
    is_right = evaluated.labels[posters, evaluated.logits.argmax(axis=1)] > 0
    commonest = int(evaluated.base_rates.argmax())
    score = report.scores.loc["macro_ap"]
    sentences = [
        f"For {is_right.mean():.0%} of {len(posters)} posters of {evaluated.split} the genre with "
        f"the highest score is right (always saying {evaluated.facts['genres'][commonest]}: "
        f"{evaluated.labels[:, commonest].mean():.0%}); macro AP is {score['score']:.3f}, between "
        f"{score['low']:.3f} and {score['high']:.3f} with other posters of the kind (a constant: "
        f"{score['constant']:.3f})."
    ]
    genres = report.genres
    measured = genres[genres["num_evaluated"] >= analysis.MIN_TO_MEASURE]
    if measured.empty:
        few = f"fewer than {analysis.MIN_TO_MEASURE} posters of {evaluated.split}"
        sentences.append(f"What it is good at cannot be told: each genre has {few}.")
        return [*sentences, *_recommend(evaluated)]
    best = measured.sort_values("average_precision", ascending=False)[:_NUM_NAMED]
    named = [f"{name} (AP {row.average_precision:.2f})" for name, row in best.iterrows()]
    sentences.append(f"It knows best: {', '.join(named)}.")
    unknown = measured[measured["low"] <= measured["constant"]]
    few = genres[(genres["num_evaluated"] < analysis.MIN_TO_MEASURE) & (genres["num_train"] > 0)]
    faults = []
    if len(unknown):
        faults.append(f"it may know no more than a constant of {', '.join(unknown.index)}")
    else:
        worst = measured["average_precision"].idxmin()
        faults.append(
            f"it knows least of {worst} (AP {measured.loc[worst, 'average_precision']:.2f})"
        )
    if len(few):
        faults.append(f"too few posters tell of {', '.join(few.index)}")
    sentence = "; ".join(faults)
    sentences.append(f"{sentence[0].upper()}{sentence[1:]}.")
    return [*sentences, *_recommend(evaluated)]


def _recommend(evaluated: evaluated_lib.Evaluated) -> list[str]:
    """Returns, in a sentence, what a run without a validation split has not."""
    if evaluated.facts["validation_split"]:
        return []
    return [
        "Without a validation split neither a checkpoint nor thresholds are chosen. "
        f"{decision.RECOMMENDATION}"
    ]


def describe_facts(report: Report) -> dict[str, str]:
    """Returns what was trained and evaluated, by headings."""
    evaluated = report.evaluated
    config, facts = evaluated.config, evaluated.facts
    preset, changes = presets.nearest(config)
    command = ["python", "-m", "trainer", f"--preset={preset}", *changes, "--run_dir=RUN"]
    epoch = evaluated.step / (facts["num_train"] // config.examples_per_step)
    why = "the newest"
    if evaluated.step == evaluated.run.best_step():
        why = f"the best by macro AP on {facts['validation_split']}"
    return {
        "Dataset": evaluated.split.builder.info.full_name,
        "Trained on": f"{facts['num_train']} posters of {config.train_split}",
        "Evaluated on": f"{len(evaluated.labels)} posters of {evaluated.split}, in float32",
        "Answers": config_lib.describe_tta(evaluated.tta),
        "Model": f"{config.model}, {facts['parameters']:,} parameters",
        "Checkpoint": f"step {evaluated.step}, epoch {epoch:.4g}, {why}",
        "Speed": _describe_speed(evaluated.run.read_metrics(), config.train_split),
        "Trained by": shlex.join(command),
    }


def _describe_speed(records: pd.DataFrame, train_split: str) -> str:
    """Returns how fast most epochs were, and what limited that, in words."""
    of_training = records[records["split"] == train_split]
    speed, waited = of_training[["images_per_second", "share_waited"]].median()
    if np.isnan(waited):  # Deterministic runs cannot measure it.
        return "not known" if np.isnan(speed) else f"{speed:.0f} posters/s in training"
    limit = "the computing limits it"
    if waited > _MUCH_WAITING:
        limit = "reading and decoding limit it: `python -m trainer.benchmark` says which stage"
    return f"{speed:.0f} posters/s in training, {waited:.0%} of the time waiting for them; {limit}"


def describe_sections(report: Report) -> list[Section]:
    """Returns the report's tables."""
    parts = (_describe_scores, _describe_intervals, _describe_genres, _describe_slices)
    return [describe_part(report) for describe_part in parts]


def _describe_scores(report: Report) -> Section:
    evaluated = report.evaluated
    everything, unseen = analysis.score_with_and_without(
        evaluated.labels, evaluated.logits, evaluated.leaked, evaluated.base_rates
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


def _describe_intervals(report: Report) -> Section:
    paragraphs = [
        f"Of {report.num_resamples} resamples of the posters, {intervals.LEVEL:.0%} score "
        "between the two ends: so much may a score change with other posters of the same kind.",
        f"F1 and subset accuracy need thresholds. {report.evaluated.decision.how} The constant "
        "predictor sees a genre in every poster or in none, whichever is better.",
    ]
    headings = {"score": "score", "low": "lower end", "high": "upper end", "constant": "constant's"}
    table = report.scores.rename(
        scores_lib.HEADINGS | scores_lib.MORE_HEADINGS, axis="index"
    ).rename(columns=headings)
    return Section("How sure they are", paragraphs, table)


def _describe_genres(report: Report) -> Section:
    train, split = report.evaluated.config.train_split, report.evaluated.split
    scores = report.genres
    enough = scores[scores["remark"] == ""]
    paragraphs = [
        f"A genre with fewer than {analysis.MIN_TO_LEARN} posters in {train} is marked as having "
        f"too few to learn, one with fewer than {analysis.MIN_TO_MEASURE} in {split} too few to "
        "measure: each of them counts for more than a tenth of its average precision (AP). A "
        "constant's AP is the genre's share of the posters. Precision, recall and F1 are of the "
        "genres that are predicted, as above; genres of fewer than "
        f"{decision.MIN_TO_CHOOSE} posters where thresholds are chosen share one."
    ]
    if 0 < len(enough) < len(scores):
        precision, constant = enough[["average_precision", "constant"]].mean()
        paragraphs.append(
            f"Macro AP over the {len(enough)} genres that are not marked: {precision:.4f}; the "
            f"constant's: {constant:.4f}."
        )
    headings = {
        "num_train": f"in {train}",
        "num_evaluated": f"in {split}",
        "constant": "constant's AP",
        "average_precision": "AP",
        "low": "lower end",
        "high": "upper end",
        "roc_auc": "ROC-AUC",
        "f1": "F1",
    }
    table = scores.rename(columns=headings).dropna(axis="columns", how="all")
    return Section("Genres", paragraphs, table, is_sortable=True)


def _describe_slices(report: Report) -> Section:
    paragraphs = [
        "The same scores for parts of the posters. Parts have different shares of the genres, so "
        "compare each with the constant's."
    ]
    return Section("Parts of the posters", paragraphs, report.slices, is_sortable=True)
