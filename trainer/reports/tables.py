"""What a run prints: a line an epoch, and a table of its best scores."""

from collections.abc import Mapping, Sequence

import pandas as pd

from trainer.reports import scores

_EPOCH = "{:>8} {:>7} {:>6} {:>7}"
_SPLIT = "  {:>9} {:>8}"
_LONGEST_NAME = 18  # Of a split, over its columns.


def format_header(splits: Sequence[str]) -> str:
    """Returns the two lines above the epochs: what each column is."""
    names = "".join(f"  {split[-_LONGEST_NAME:]:>{_LONGEST_NAME}}" for split in splits)
    columns = _EPOCH.format("epoch", "step", "img/s", "loss")
    columns += "".join(_SPLIT.format("macro AP", "micro AP") for _ in splits)
    return f"{'train':>31}{names}\n{columns}"


def format_constant(loss: float, constants: Sequence[Mapping[str, float]]) -> str:
    """Returns the constant predictor's line.

    Args:
        loss: its loss on the train split.
        constants: its scores, a split each.
    """
    return _EPOCH.format("constant", "", "", f"{loss:.4f}") + _format_scores(constants)


def format_epoch(
    record: Mapping[str, float],
    epochs: int,
    evaluated: Sequence[Mapping[str, float]],
    is_best: bool,
) -> str:
    """Returns the line of an epoch, of at most 100 columns unless steps were skipped.

    Args:
        record: of the train split.
        epochs: of the whole run.
        evaluated: records of the evaluated splits.
        is_best: whether the epoch is the best so far.
    """
    speed = record["images_per_second"]
    line = _EPOCH.format(
        f"{record['epoch']}/{epochs}",
        record["step"],
        f"{speed:.0f}" if speed else "",
        f"{record['loss']:.4f}",
    )
    line += _format_scores(evaluated) + ("  best" if is_best else "")
    if skipped := record.get("skipped_steps"):
        line += f"  {skipped} steps skipped, loss scale {record['loss_scale']:g}"
    return line


def make_summary(records: pd.DataFrame) -> pd.DataFrame:
    """Returns the scores of one step, each split's above the constant predictor's.

    Args:
        records: of `metrics.jsonl`, a split each.
    """
    metrics = list(scores.METRICS)
    rows = {}
    for _, record in records.iterrows():
        rows[record["split"]] = record[metrics].tolist()
        rows[f"{record['split']}, constant"] = [record[f"constant.{name}"] for name in metrics]
    return pd.DataFrame.from_dict(rows, "index", columns=list(scores.HEADINGS.values()))


def _format_scores(of_splits: Sequence[Mapping[str, float]]) -> str:
    return "".join(
        _SPLIT.format(*(f"{v[name]:.4f}" if name in v else "" for name in ("macro_ap", "micro_ap")))
        for v in of_splits
    )
