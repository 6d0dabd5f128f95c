"""`report.html`: how good a run's best model is, and its tables for a terminal."""

import os
import pathlib
import textwrap
from collections.abc import Callable

from poster_tfds.pages import rendering
from trainer.decisions import decision
from trainer.reports import (
    answers,
    curves,
    evaluated as evaluated_lib,
    explained,
    galleries,
    plots,
    report as report_lib,
    sections,
)
from trainer.run import directory

_WIDTH = 100  # Columns of a terminal.


def write_report(
    run_dir: str | os.PathLike, should_stop: Callable[[], bool] = lambda: False
) -> None:
    """Evaluates a run's best model and writes the report, unless it is told to stop.

    Raises:
        config.UsageError: the report cannot be written.
    """
    if evaluated := evaluated_lib.evaluate_run(run_dir, should_stop=should_stop):
        write(report_lib.Report(evaluated))


def write(report: report_lib.Report) -> pathlib.Path:
    """Writes the report, its answers and the thresholds into the run directory; returns its path.

    Raises:
        config.UsageError: one cannot be written; what was there before still is.
    """
    evaluated = report.evaluated
    content = render(report)
    answers.write(
        evaluated.run,
        evaluated.answers,
        evaluated.poster_ids,
        split=evaluated.split.name,
        step=evaluated.step,
        tta=evaluated.tta,
    )
    if evaluated.decision.split:
        decision.write(evaluated.run.thresholds, evaluated.decision, evaluated.step, evaluated.tta)
    directory.write_atomically(evaluated.run.report, content)
    return evaluated.run.report


def describe(report: report_lib.Report) -> str:
    """Returns the report's tables as text."""
    facts = sections.describe_facts(report)
    blocks = [textwrap.fill(" ".join(sections.summarize(report)), _WIDTH)]
    blocks.append("\n".join(f"{name}: {value}" for name, value in facts.items()))
    for section in sections.describe_sections(report):
        table = section.table.to_string(float_format="{:.4f}".format, na_rep="-")
        paragraphs = [textwrap.fill(paragraph, _WIDTH) for paragraph in section.paragraphs]
        blocks += [section.heading.upper(), *paragraphs, table]
    return "\n\n".join(blocks)


def render(report: report_lib.Report) -> str:
    """Returns the report: one HTML file with everything in it."""
    evaluated = report.evaluated
    return rendering.render(
        "report.html",
        package="trainer.reports",
        title=f"{evaluated.run.path.name} on {evaluated.split}",
        summary=sections.summarize(report),
        facts=sections.describe_facts(report),
        sections=sections.describe_sections(report),
        plots=plots.draw_all(report),
        curves=curves.draw_learning_curves(evaluated.run.read_history()),
        galleries=galleries.choose(report),
        explained=explained.explain(evaluated),
    )
