"""Compares runs: a Markdown table, best macro AP first, and a plot of quality against time.

    python -m trainer.compare runs/a runs/b runs/c --split=test --plot=comparison.png

Runs that differ in their seed alone are one row: mean ± sample standard deviation (n - 1)
over the seeds. A run's scores on --split are those of its best checkpoint by macro AP on the
validation split, where it has one, else those of its last epoch. Minutes are those of the
whole run, evaluation included; the time of the run that it began with (--init_from) is
counted too, if its directory is there. The last row is the constant predictor's. Of runs that
have a report of the split, the mean macro AP has its 95% interval over resamples of the
posters, and a second table has the differences from the first row, with theirs.
"""

import pathlib
import sys

from absl import flags

from trainer import command_line

_SPLIT = flags.DEFINE_string("split", "test", "Split on which the runs were evaluated.")
_PLOT = flags.DEFINE_string("plot", "", "PNG to write: macro AP against minutes of training.")
_PAGE = flags.DEFINE_string("page", "", "HTML file to write: table, differences and plot.")


def main(arguments: list[str]) -> None:
    if not arguments:
        sys.exit("Name the run directories to compare: python -m trainer.compare RUN RUN ...")
    command_line.import_stock_tensorflow()  # TFDS imports it, and would let it talk.
    from trainer.reports import comparison
    from trainer.run import directory

    runs = [comparison.read_run(path, _SPLIT.value) for path in arguments]
    groups = comparison.group(runs)
    tables, plot = comparison.make_tables(groups), comparison.draw(groups)
    if _PLOT.value:
        directory.write_atomically(pathlib.Path(_PLOT.value), plot)
    if _PAGE.value:
        page = comparison.render(tables, plot, _SPLIT.value)
        directory.write_atomically(pathlib.Path(_PAGE.value), page)
    print(comparison.format_markdown(tables))
    for path in dict.fromkeys(run.configs[-1].init_from for run in runs):
        if path:
            print(f"\n{path}, with which a run began, is not there: its time is not counted.")
    for written in filter(None, (_PLOT.value, _PAGE.value)):
        print(f"\nWrote {written}")


if __name__ == "__main__":
    command_line.run(main, takes_arguments=True)
