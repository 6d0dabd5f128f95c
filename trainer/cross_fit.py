"""Chooses thresholds and calibration for a run that has no validation split to choose them on.

    python -m trainer.cross_fit --run_dir=runs/imdb

The posters that the run was trained on are divided into --folds parts. For each a model is trained
with the run's settings on all the rest, in RUN_DIR/folds, and answers for the part. So each poster
has an answer of a model that has not seen it, and by these answers the thresholds are chosen. They
are left in the run's `thresholds.json`, which `python -m export` and the report take. With 5 folds
it takes about four times as long as the run. The same command goes on where it was stopped.
"""

import dataclasses

from absl import flags

from trainer import command_line, config as config_lib

_RUN_DIR = flags.DEFINE_string("run_dir", None, "Directory of the run.", required=True)
_FOLDS = flags.DEFINE_integer(
    "folds", 5, "Parts of the train split, each answered by a model of its own.", lower_bound=2
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir", "", "Where the dataset is built; empty: where the run has read it."
)
_TTA = config_lib.define_tta_flag()
_TARGET_PRECISION = config_lib.define_target_precision_flag()


def main(arguments: list[str]) -> None:
    """Trains the folds and writes the thresholds; a user's mistake ends in one message."""
    del arguments
    command_line.import_tensorflow()
    import keras
    import numpy as np
    import tensorflow as tf

    from trainer import steps, train
    from trainer.data import splits, test_time
    from trainer.decisions import decision
    from trainer.reports import evaluated
    from trainer.run import checkpoints, directory

    run = directory.RunDirectory(_RUN_DIR.value)
    config, facts = run.read_config()
    config = dataclasses.replace(config, data_dir=_DATA_DIR.value or config.data_dir)
    if facts["validation_split"]:
        raise config_lib.UsageError(
            f"--run_dir={run.path} has a validation split, {facts['validation_split']}: "
            f"`python -m trainer.report_page --run_dir={run.path}` chooses thresholds on it."
        )
    if config.init_from:
        raise config_lib.UsageError(
            f"--run_dir={run.path} began with the weights of {config.init_from}, which may have "
            "seen every poster. Train it as one run, or see --thresholds_from of "
            "`python -m trainer.report_page`."
        )
    _, checkpoint = checkpoints.restore_model(run.path)
    whole = splits.open_split(config.dataset, config.data_dir, config.train_split)
    run.check_same_data(whole.genres, whole.num_examples)
    answers = []
    for number, (rest, part) in enumerate(whole.folds(_FOLDS.value), start=1):
        fold = run.fold(number, _FOLDS.value)
        print(f"\nFold {number} of {_FOLDS.value}, in {fold.path}: {rest}, to answer for {part}.")
        settings = dataclasses.replace(config, train_split=rest, validation_split="", test_split="")
        keras.utils.clear_session()  # Layers of the same names come again.
        if not train.train_and_evaluate(settings, fold.path, report=False):
            return
        model, _ = checkpoints.restore_model(fold.path)
        model = test_time.averaged(model, _TTA.value)
        eval_step = steps.make_eval_step(model, tf.distribute.get_strategy())
        unseen = splits.Split(whole.builder, part)
        answers.append(evaluated.answer(eval_step, config, unseen, f"answers for {part}"))
    chosen = decision.choose(
        facts["genres"],
        *map(np.concatenate, zip(*answers, strict=True)),
        _TARGET_PRECISION.value,
        config.train_split,
    )
    how = (
        f"{chosen.how} Each poster was answered for by one of {_FOLDS.value} models with the run's "
        "settings, which was trained on the others."
    )
    decision.write(run.thresholds, chosen._replace(how=how), checkpoint["step"], _TTA.value)
    table = chosen.table.to_string(float_format="{:.4f}".format)
    print(f"\n{how}\n\n{table}\n\nWrote {run.thresholds}")


if __name__ == "__main__":
    command_line.run(main)
