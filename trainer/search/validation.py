"""What a search judges by: posters that no trial trains on, and that are not kept for the end."""

from trainer import config as config_lib, run_data
from trainer.data import splits

_ADVICE = (
    "Keep a part of train to judge by: --train_split='train[:85%]' "
    "--validation_split='train[85%:]'."
)


def choose_split(config: config_lib.Config) -> str:
    """Returns the split to judge by.

    Raises:
        config.UsageError: there is none, or it shares posters with train or test.
    """
    train = splits.open_split(config.dataset, config.data_dir, config.train_split)
    validation = run_data.choose_validation(config, train)
    if not validation:
        raise config_lib.UsageError(
            f"--dataset={config.dataset} has no validation split, and a search must not choose by "
            f"the test split. {_ADVICE}"
        )
    judge = splits.Split(train.builder, validation)
    for_test = {config.test_split} | ({"test"} & train.builder.info.splits.keys())
    for name in (config.train_split, *sorted(for_test - {""})):
        if judge.overlaps(splits.Split(train.builder, name)):
            raise config_lib.UsageError(
                f"--validation_split={validation} shares posters with {name}: a search would "
                f"choose by what it trains on, or by the test split. {_ADVICE}"
            )
    return validation
