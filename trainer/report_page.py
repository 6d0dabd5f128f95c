"""Command line of the report: writes `report.html` into a run directory.

    python -m trainer.report_page --run_dir=runs/imdb

The run's best model, in float32, goes once through a split of its dataset. The page has the
scores with and without the posters that were trained on too, how sure they are, each genre's
average precision, and the posters that the model is most wrong about; the tables are printed
as well. The answers are left beside it, in `answers.npz`.
"""

from absl import flags

from trainer import command_line, config as config_lib

_RUN_DIR = flags.DEFINE_string("run_dir", None, "Directory of the run to look at.", required=True)
_SPLIT = flags.DEFINE_string(
    "split", "", "Split, or part of one, to evaluate on; empty: the test split, if there is one."
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir", "", "Where the dataset is built; empty: where the run has read it."
)
_TTA = config_lib.define_tta_flag()
_TARGET_PRECISION = config_lib.define_target_precision_flag()
_COLUMNS = flags.DEFINE_string(
    "columns",
    "",
    "CSV with `Id` and more columns of the posters, as year, to score parts of the posters by.",
)


def main(arguments: list[str]) -> None:
    del arguments
    command_line.import_tensorflow()
    from trainer.reports import evaluated, page, report

    answers = evaluated.evaluate_run(
        _RUN_DIR.value, _SPLIT.value, _DATA_DIR.value, _TTA.value, _TARGET_PRECISION.value
    )
    described = report.Report(answers, _COLUMNS.value)
    path = page.write(described)
    print(f"{page.describe(described)}\n\nWrote {path}")


if __name__ == "__main__":
    command_line.run(main)
