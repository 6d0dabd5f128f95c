"""`report.html`, and its tables for a terminal."""

import html
import math
import os
import pathlib
from collections.abc import Callable, Iterable

import numpy as np

from poster_tfds import page
from trainer import config as config_lib
from trainer.reports import analysis, curves, evaluated as evaluated_lib, scores as scores_lib
from trainer.run import directory

_NUM_WORST, _NUM_BEST = 24, 12
_NUM_COMMON_GENRES, _NUM_FALSE_POSITIVES = 4, 6


def describe(evaluated: evaluated_lib.Evaluated) -> str:
    """Returns the report's tables as text."""
    blocks = ["\n".join(f"{name}: {value}" for name, value in _describe_run(evaluated))]
    for heading, paragraphs, table in _tables(evaluated):
        blocks += [heading.upper(), *paragraphs, page.text_table(table)]
    return "\n\n".join(blocks)


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
    """Writes the report into the run directory and returns its path.

    Raises:
        config.UsageError: it cannot be written; what stood there before still does.
    """
    directory.write_atomically(evaluated.run.report, render(evaluated))
    return evaluated.run.report


def render(evaluated: evaluated_lib.Evaluated) -> str:
    """Returns the report: one HTML file with everything in it."""
    parts = [
        f"<p>{html.escape(name)}: {html.escape(value)}</p>"
        for name, value in _describe_run(evaluated)
    ]
    for heading, paragraphs, table in _tables(evaluated):
        parts.append(f"<h2>{html.escape(heading)}</h2>")
        parts += [f"<p>{html.escape(paragraph)}</p>" for paragraph in paragraphs]
        parts.append(page.html_table(table))
    parts.append(
        page.picture("Average precision of each genre", _draw_genres(_genre_scores(evaluated)))
    )
    records = evaluated.run.read_metrics()
    if not records.empty:
        parts.append(page.picture("Learning curves", curves.draw_learning_curves(records)))
    parts += _galleries(evaluated)
    return page.document(f"{evaluated.run.path.name} on {evaluated.split}", parts)


def _tables(
    evaluated: evaluated_lib.Evaluated,
) -> list[tuple[str, list[str], list[list[str]]]]:
    """Returns heading, paragraphs and rows of each table; the first row names the columns."""
    return [
        ("Scores", *_score_table(evaluated)),
        ("Genres", *_genre_table(evaluated)),
    ]


def _describe_run(evaluated: evaluated_lib.Evaluated) -> list[tuple[str, str]]:
    config, facts = evaluated.config, evaluated.facts
    defaults = config_lib.Config()
    # What stands in lines of its own is left out.
    named = {"dataset", "data_dir", "train_split", "model"}
    settings = [
        f"--{name}={value}"
        for name, value in config.to_json().items()
        if name not in named and value != getattr(defaults, name)
    ]
    step = evaluated.step
    steps_per_epoch = math.ceil(facts["num_train"] / config.batch_size)
    why = "the newest"
    if step == evaluated.run.best_step():
        why = f"the best by macro AP on {facts['validation_split']}"
    return [
        ("Dataset", evaluated.split.builder.info.full_name),
        ("Trained on", f"{facts['num_train']} posters of {config.train_split}"),
        ("Evaluated on", f"{len(evaluated.labels)} posters of {evaluated.split}, in float32"),
        ("Model", f"{config.model}, {facts['parameters']:,} parameters"),
        ("Settings that are not the defaults", " ".join(settings) or "none"),
        ("Checkpoint", f"step {step}, epoch {step / steps_per_epoch:.4g}, {why}"),
    ]


def _score_table(
    evaluated: evaluated_lib.Evaluated,
) -> tuple[list[str], list[list[str]]]:
    everything, unseen = analysis.score_with_and_without(
        evaluated.labels,
        evaluated.logits,
        evaluated.leaked,
        evaluated.train_counts / evaluated.facts["num_train"],
    )
    num_leaked = int(evaluated.leaked.sum())
    train, split = evaluated.config.train_split, evaluated.split
    paragraphs = [
        "The constant predictor gives every poster the genres' shares of the train split."
    ]
    rows = [(f"all of {split}", everything)]
    if unseen is None:
        paragraphs.append(
            f"Every poster of {split} stands in {train} too, byte for byte: these scores tell how "
            "well the model remembers, not what it does with new posters."
        )
    elif num_leaked:
        paragraphs.append(
            f"Posters that stand in {train} too, byte for byte: {num_leaked}. The model may "
            "remember them; below are the scores with and without."
        )
        rows.append((f"without those in {train}", unseen))
    else:
        paragraphs.append(f"None of the posters stands in {train} too, byte for byte.")
    if split.name == evaluated.facts["validation_split"]:
        paragraphs.append(
            f"The checkpoint is the one with the best macro AP on {split}, so that its score there "
            "is a little too good."
        )
    table = [["", "posters", *(scores_lib.HEADINGS[name] for name in scores_lib.METRICS)]]
    for title, scores in rows:
        for name, values in ((title, scores.model), ("  constant predictor", scores.constant)):
            cells = [_number(values[metric]) for metric in scores_lib.METRICS]
            table.append([name, str(scores.num_posters), *cells])
    return paragraphs, table


def _genre_scores(evaluated: evaluated_lib.Evaluated) -> list[analysis.GenreScore]:
    return analysis.score_genres(
        evaluated.facts["genres"], evaluated.labels, evaluated.logits, evaluated.train_counts
    )


def _genre_table(
    evaluated: evaluated_lib.Evaluated,
) -> tuple[list[str], list[list[str]]]:
    train, split = evaluated.config.train_split, evaluated.split
    scores = _genre_scores(evaluated)
    enough = [score for score in scores if not score.remark]
    paragraphs = [
        f"A genre with fewer than {analysis.MIN_TO_LEARN} posters in {train} is marked as having "
        f"too few to learn, one with fewer than {analysis.MIN_TO_MEASURE} in {split} too few to "
        "measure: each of them counts for more than a tenth of its average precision (AP). A "
        "constant's AP is the genre's share of the posters."
    ]
    if enough and len(enough) < len(scores):
        precision, constant = (
            np.mean([getattr(score, name) for score in enough])
            for name in ("average_precision", "constant")
        )
        paragraphs.append(
            f"Macro AP over the {len(enough)} genres that are not marked: {precision:.4f}; the "
            f"constant's: {constant:.4f}."
        )
    table = [["genre", f"in {train}", f"in {split}", "AP", "constant's AP", "remark"]]
    for score in scores:
        table.append(
            [
                score.genre,
                str(score.num_train),
                str(score.num_evaluated),
                _number(score.average_precision),
                _number(score.constant),
                score.remark,
            ]
        )
    return paragraphs, table


def _draw_genres(scores: list[analysis.GenreScore]) -> bytes:
    scores = [score for score in scores if score.num_evaluated]
    scores.sort(key=lambda score: -score.average_precision)
    places = np.arange(len(scores))

    def draw(axes):
        for marked, color, label in (
            (False, "tab:blue", "the model"),
            (True, "lightsteelblue", "the model; too few posters"),
        ):
            chosen = np.array([bool(score.remark) == marked for score in scores])
            if chosen.any():
                values = np.array([score.average_precision for score in scores])[chosen]
                axes.barh(places[chosen], values, color=color, label=label)
        axes.plot(
            [score.constant for score in scores],
            places,
            "|",
            color="black",
            markersize=12,
            markeredgewidth=2,
            label="constant predictor",
        )
        axes.set_yticks(places, [score.genre for score in scores])
        axes.invert_yaxis()
        axes.set_xlim(0, 1)
        axes.set_xlabel("average precision")
        axes.grid(axis="x", alpha=0.3)
        axes.legend(loc="lower right")

    return page.plot(draw, (9, max(3.0, 0.28 * len(scores))))


def _galleries(evaluated: evaluated_lib.Evaluated) -> list[str]:
    """Returns headings and posters: the worst, the best, what a genre is wrongly seen in."""
    labels, logits = evaluated.labels, evaluated.logits
    losses = analysis.poster_losses(labels, logits)
    by_loss = np.argsort(-losses, kind="stable")
    note = (
        "A poster's loss, in italics its genres, then the three most probable; in bold those that "
        "are right."
    )
    chosen = [
        ("Largest losses", note, by_loss[:_NUM_WORST]),
        ("Smallest losses", "", by_loss[::-1][:_NUM_BEST]),
    ]
    for genre in np.argsort(-labels.sum(axis=0), kind="stable")[:_NUM_COMMON_GENRES]:
        name = evaluated.facts["genres"][genre]
        mistaken = analysis.false_positives(labels, logits, genre, _NUM_FALSE_POSITIVES)
        chosen.append((f"Most probably {name}, and labelled otherwise", "", mistaken))
    jpegs = evaluated.read_posters(np.concatenate([which for *_, which in chosen]))
    parts = []
    for heading, paragraph, which in chosen:
        parts.append(f"<h2>{html.escape(heading)}</h2>")
        parts += [f"<p>{paragraph}</p>"] if paragraph else []
        captions = _captions(evaluated, losses, which)
        parts.append(page.gallery(zip((jpegs[int(i)] for i in which), captions, strict=True)))
    return parts


def _captions(
    evaluated: evaluated_lib.Evaluated, losses: np.ndarray, which: Iterable[int]
) -> Iterable[str]:
    genres = evaluated.facts["genres"]
    for i in which:
        its_own = [genres[g] for g in np.flatnonzero(evaluated.labels[i])]
        lines = [f"{html.escape(evaluated.poster_ids[i])}, loss {losses[i]:.3f}"]
        if evaluated.leaked[i]:
            lines.append("stands in the train split too")
        lines.append(f"<i>{html.escape(', '.join(its_own) or 'no genre')}</i>")
        for genre, score in analysis.top_genres(evaluated.logits[i]):
            line = f"{html.escape(genres[genre])} {score:.2f}"
            lines.append(f"<b>{line}</b>" if evaluated.labels[i, genre] else line)
        yield "<br>".join(lines)


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"
