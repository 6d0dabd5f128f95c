"""Run directories side by side: which recipe scores best, and in what time."""

import json
import os
import pathlib
import textwrap
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from poster_tfds.pages import rendering
from trainer import config as config_lib, presets
from trainer.reports import answers as answers_lib, paired, scores
from trainer.run import directory as directory_lib

_SCORES = {
    name: scores.HEADINGS[name]
    for name in ("macro_ap", "micro_ap", "loss", "lrap", "label_accuracy")
}
DIFFERENCES = (
    "By how much the first row is above the others, on the same posters; in brackets what 95% of "
    "their resamples are between, and * where that is on one side of 0: more than chance."
)
# Of a time axis: past this ratio of the longest run to the first epoch it is logarithmic.
_LOG_RATIO = 20


class Run(NamedTuple):
    """A run as its directory tells."""

    configs: list[config_lib.Config]  # Its own, then those of the runs that it began with.
    parameters: int
    score: pd.Series  # The record of `metrics.jsonl` that counts.
    curve: np.ndarray  # float64 [E, 2], minutes and macro AP of each evaluated epoch.
    minutes: float  # With those of the runs that it began with.
    images_per_second: float  # In training, the median over the epochs; NaN if not known.
    answers: answers_lib.Answers | None  # Those that the scores are of, if a report kept them.


def read_run(path: str | os.PathLike, split: str) -> Run:
    """Reads a run directory.

    Raises:
        config.UsageError: it is none, or the run was not evaluated on the split.
    """
    directory = directory_lib.RunDirectory(path)
    config, facts = directory.read_config()
    records = directory.read_metrics()
    scored = records[records["label_accuracy"].notna()]  # The train split has its loss alone.
    of_split = scored[scored["split"] == split]
    if of_split.empty:
        evaluated = ", ".join(scored["split"].unique()) or "nothing yet"
        raise config_lib.UsageError(
            f"{path}: no scores of --split={split}; the run was evaluated on {evaluated}."
        )
    best = of_split[of_split["step"] == directory.best_step()]
    speeds = records.loc[records["split"] == config.train_split, "images_per_second"]
    configs, before = [config], directory.seconds_of_head() / 60
    while (begun_with := configs[-1].init_from) and pathlib.Path(begun_with).is_dir():
        earlier = directory_lib.RunDirectory(begun_with)
        configs.append(earlier.read_config()[0])
        seconds = earlier.read_metrics()["seconds"].iloc[-1] + earlier.seconds_of_head()
        before += seconds / 60
    curve = of_split[["seconds", "macro_ap"]].to_numpy() * [1 / 60, 1] + [before, 0]
    score = (of_split if best.empty else best).iloc[-1]
    return Run(
        configs,
        facts["parameters"],
        score,
        curve,
        before + records["seconds"].iloc[-1] / 60,
        speeds.median(),
        answers_lib.read(directory, split=split, step=score["step"], tta=config_lib.NO_TTA),
    )


def group(runs: Iterable[Run]) -> list[list[Run]]:
    """Joins runs that differ in their seed alone; the best mean macro AP comes first.

    Runs that began with others are alike if those are.

    Raises:
        config.UsageError: they are of different datasets.
    """
    runs = list(runs)
    datasets = {run.configs[0].dataset for run in runs}
    if len(datasets) > 1:
        raise config_lib.UsageError(
            f"The runs are of several datasets ({', '.join(sorted(datasets))}), whose scores "
            "cannot be compared. Name runs of one."
        )
    frame = pd.DataFrame(
        {
            "run": pd.Series(runs, dtype=object),
            "recipe": [_recipe(run) for run in runs],
            "macro_ap": [run.score["macro_ap"] for run in runs],
        }
    )
    of_recipes = frame.groupby("recipe", sort=False)
    best_first = of_recipes["macro_ap"].mean().sort_values(ascending=False, kind="stable")
    return [of_recipes.get_group(recipe)["run"].tolist() for recipe in best_first.index]


def make_table(groups: Sequence[Sequence[Run]]) -> pd.DataFrame:
    """Returns the comparison, a row a group: mean ± sample standard deviation over its seeds."""
    shared = shared_flags(groups)
    runs = pd.DataFrame(
        [
            {
                "run": f"`{describe(members[0], without=shared)}`",
                "seeds": str(run.configs[0].seed),
                "parameters": run.parameters,
                **run.score[list(_SCORES)],
                "minutes": run.minutes,
                "speed": run.images_per_second,
            }
            for members in groups
            for run in members
        ]
    )
    of_groups = runs.groupby("run", sort=False)
    table = of_groups.agg({"seeds": ", ".join, "parameters": "first"})
    table["parameters"] = table["parameters"].map("{:,}".format)
    forms = {**dict.fromkeys(_SCORES, ".4f"), "minutes": ".1f", "speed": ".0f"}
    for name, form in forms.items():
        table[name] = of_groups[name].agg(_format_mean, form)
    if any(run.answers for members in groups for run in members):
        after = table.columns.get_loc("macro_ap") + 1
        table.insert(after, "95% of posters", [_format_interval(members) for members in groups])
    constant = groups[0][0].score
    table.loc["constant predictor"] = ""
    table.loc["constant predictor", list(_SCORES)] = [
        f"{constant[f'constant.{name}']:.4f}" for name in _SCORES
    ]
    headings = {**_SCORES, "minutes": "minutes to train", "speed": "img/s in training"}
    return table.rename(columns=headings)


def _format_mean(values: pd.Series, form: str) -> str:
    """Returns mean ± sample standard deviation; NaN where a seed has no score."""
    mean, deviation = values.mean(skipna=False), values.std(skipna=False)
    return f"{mean:{form}}" if np.isnan(deviation) else f"{mean:{form}} ± {deviation:{form}}"


def _format_interval(members: Sequence[Run]) -> str:
    """Returns how far the mean macro AP of runs may be from that on other posters of the kind."""
    answers = [run.answers for run in members]
    if not paired.are_comparable(answers):
        return ""
    low, high = paired.macro_ap_interval(answers)
    return f"{low:.3f} to {high:.3f}"


def make_differences(groups: Sequence[Sequence[Run]]) -> pd.DataFrame:
    """Returns by how much the first row differs from each other one, on the same posters.

    It has a row for each other group whose answers are there, a column for each of
    `paired.METRICS`: the difference with its interval, and `*` where that is on one side of 0.
    """
    shared, first = shared_flags(groups), [run.answers for run in groups[0]]
    rows = {}
    for members in groups[1:]:
        others = [run.answers for run in members]
        if paired.are_comparable([*first, *others]):
            of_metrics = zip(paired.METRICS, *paired.difference(first, others), strict=True)
            rows[f"`{describe(members[0], without=shared)}`"] = {
                _SCORES[name]: f"{difference:+.4f} ({low:+.4f} to {high:+.4f})"
                + ("*" if low * high > 0 else "")
                for name, difference, low, high in of_metrics
            }
    return pd.DataFrame.from_dict(rows, "index").rename_axis("first row minus")


class Tables(NamedTuple):
    """What is said of groups of runs."""

    shared: str  # Flags that all rows have beside their presets.
    scores: pd.DataFrame  # Of `make_table`.
    differences: pd.DataFrame  # Of `make_differences`; may be empty.


def make_tables(groups: Sequence[Sequence[Run]]) -> Tables:
    """Returns the tables of a comparison; its intervals take seconds, a few for each run."""
    return Tables(" ".join(shared_flags(groups)), make_table(groups), make_differences(groups))


def format_markdown(tables: Tables) -> str:
    """Returns the tables as Markdown, under the flags that all rows share."""
    parts = [tables.scores.to_markdown(disable_numparse=True)]
    if tables.shared:
        parts.insert(0, f"All with `{tables.shared}`.")
    if len(tables.differences):
        parts += [DIFFERENCES, tables.differences.to_markdown(disable_numparse=True)]
    return "\n\n".join(parts)


def render(tables: Tables, plot: bytes, split: str) -> str:
    """Returns the comparison as a page: one HTML file with everything in it."""
    return rendering.render(
        "comparison.html",
        package="trainer.reports",
        title=f"Runs on {split}",
        shared=tables.shared,
        table=_without_backticks(tables.scores),
        differences=_without_backticks(tables.differences),
        words=DIFFERENCES,
        plot=plot,
    )


def _without_backticks(table: pd.DataFrame) -> pd.DataFrame:
    return table.rename(lambda name: name.strip("`"))


def describe(run: Run, without: Sequence[str] = ()) -> str:
    """Returns the flags that give a run's recipe: a preset, and what differs from it."""
    recipes = []
    for i, config in enumerate(run.configs):
        preset, changes = _preset_and_changes(config, run.configs[i + 1 :])
        kept = [change for change in changes if change not in without]
        recipes.append(" ".join([f"--preset={preset}", *kept]))
    return " after ".join(recipes)


def shared_flags(groups: Sequence[Sequence[Run]]) -> list[str]:
    """Returns the flags that all rows have beside their presets, if there are several rows."""
    if len(groups) == 1:
        return []
    rows = [
        _preset_and_changes(run.configs[0], begun_with=run.configs[1:])[1] for run, *_ in groups
    ]
    return [flag for flag in rows[0] if all(flag in row for row in rows)]


def draw(groups: Sequence[Sequence[Run]]) -> bytes:
    """Returns a PNG: macro AP against minutes, a curve for each run, a colour for each row."""
    shared = shared_flags(groups)
    times = np.concatenate([run.curve[:, 0] for members in groups for run in members])
    constant = groups[0][0].score["constant.macro_ap"]

    def on_axes(axes):
        ends = []
        for i, members in enumerate(groups):
            for run in members:
                axes.plot(*run.curve.T, color=f"C{i % 10}", marker=".", markersize=4, linewidth=1.2)
            end = max((run.curve[-1] for run in members), key=lambda point: point[0])
            ends.append((end, describe(members[0], without=shared), f"C{i % 10}"))
        axes.axhline(constant, color="black", linestyle="--", linewidth=1)
        axes.set_xlabel("minutes of training")
        axes.set_ylabel("macro AP")
        axes.grid(alpha=0.3)
        if times.max() > _LOG_RATIO * times.min():
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:g}")
        ends.append(((axes.get_xlim()[1], constant), "constant predictor", "black"))
        _label(axes, ends)

    return rendering.plot(on_axes, (12, 6), "png")


def _label(axes, ends: list[tuple[Sequence[float], str, str]]) -> None:
    """Writes what the curves are beside the axes, as high as they end, without overlap."""
    low, high = axes.get_ylim()
    line_height = (high - low) / 36
    top = -np.inf
    for (x, y), text, color in sorted(ends, key=lambda end: end[0][1]):
        lines = textwrap.wrap(text, 48, break_on_hyphens=False)
        half = (len(lines) / 2 + 0.25) * line_height
        height = max(y, top + half)
        top = height + half
        axes.annotate(
            "\n".join(lines),
            xy=(x, y),
            xytext=(1.02, height),
            textcoords=("axes fraction", "data"),
            color=color,
            va="center",
            fontsize=8,
            arrowprops={"arrowstyle": "-", "color": color, "linestyle": ":", "linewidth": 0.8},
        )


def _recipe(run: Run) -> str:
    """Returns what runs must have in common to be one row."""
    recipes = []
    for i, config in enumerate(run.configs):
        recipe = {**config.to_json(), "seed": None}
        if run.configs[i + 1 :]:
            recipe["init_from"] = None
        recipes.append(recipe)
    return json.dumps(recipes)


def _preset_and_changes(
    config: config_lib.Config, begun_with: Sequence[config_lib.Config]
) -> tuple[str, list[str]]:
    """Returns the nearest preset and the flags that make these settings of it, but the seed."""
    return presets.nearest(config, without=("seed", "init_from") if begun_with else ("seed",))
