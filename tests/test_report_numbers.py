"""Each number in a report is recomputed by scikit-learn from the answers that it keeps.

Those of the plots are read from their SVG.
"""

import base64
import html
import io
import json
import re
import shutil
from xml.etree import ElementTree

import matplotlib
import numpy as np
import PIL.Image
import pytest
from sklearn import metrics

from poster_tfds import synthetic
from trainer.data import splits
from trainer.decisions import decision
from trainer.reports import evaluated, page, report as report_lib

GENRES = synthetic.GENRES


@pytest.fixture(scope="module")
def written(run_dir, decided_run, data_dir, tmp_path_factory):
    """A run with its report, at thresholds that were chosen on posters of train."""
    run_copy = tmp_path_factory.mktemp("numbers") / "run"
    shutil.copytree(run_dir, run_copy)
    answered = evaluated.evaluate_run(run_copy, "test", str(data_dir))
    decided = decision.read(decided_run / "thresholds.json", step=answered.step, tta=answered.tta)
    page.write(report_lib.Report(answered._replace(decision=decided)))
    return run_copy


@pytest.fixture(scope="module")
def tables(written):
    """The tables of the page, by their captions or the text before: {row: {column: cell}}."""
    text = (written / "report.html").read_text()
    found = {}
    for title, table in re.findall(
        r"<h2>([^<]*)</h2>(?:(?!<h2>).)*?(<table.*?</table>)", text, re.S
    ):
        rows = [
            [html.unescape(re.sub("<[^>]*>", "", cell)).strip() for cell in cells]
            for row in re.findall(r"<tr.*?</tr>", table, re.S)
            if (cells := re.findall(r"<t[hd].*?</t[hd]>", row, re.S))
        ]
        columns, *rows = rows
        found[title] = {row[0]: dict(zip(columns[1:], row[1:], strict=True)) for row in rows}
    return found


@pytest.fixture(scope="module")
def answers(written):
    """Labels, scores, calibrated scores and predicted genres, each [N, G]."""
    with np.load(written / "answers.npz") as saved:
        labels, logits = saved["labels"], np.float64(saved["logits"])
    decided = read_thresholds(written)
    slope, intercept, threshold = (
        np.array([decided[genre][name] for genre in GENRES])
        for name in ("slope", "intercept", "threshold")
    )
    calibrated = 1 / (1 + np.exp(-(slope * logits + intercept)))
    return labels, 1 / (1 + np.exp(-logits)), calibrated, calibrated >= threshold


def read_thresholds(run_dir):
    """Returns what `thresholds.json` has of each genre."""
    decided = json.loads((run_dir / "thresholds.json").read_text())["genres"]
    return {each["genre"]: each for each in decided}


def calibration_error(labels, scores):
    """Of 15 bins of equal width, the mean distance of scores and labels, by posters."""
    bins = np.minimum((scores * 15).astype(int), 14).ravel()
    labels, scores = labels.ravel(), scores.ravel()
    parts = [bins == i for i in range(15) if (bins == i).any()]
    return sum(abs(labels[i].mean() - scores[i].mean()) * i.mean() for i in parts)


def r_precision(labels, scores):
    """Of a poster with R genres, how many of its R highest scores are right; of those with any."""
    shares = []
    for label, score in zip(labels, scores, strict=True):
        if count := int(label.sum()):
            shares.append(label[np.argsort(-score, kind="stable")[:count]].mean())
    return np.mean(shares)


def score_all(labels, scores, calibrated, predicted):
    """Returns all scores of a report, by their headings."""
    return {
        "loss": metrics.log_loss(labels.ravel(), scores.ravel()),
        "label accuracy": ((scores > 0.5) == labels).mean(),
        "macro AP": metrics.average_precision_score(labels, scores),
        "micro AP": metrics.average_precision_score(labels, scores, average="micro"),
        "LRAP": metrics.label_ranking_average_precision_score(labels, scores),
        "ROC-AUC": metrics.roc_auc_score(labels, scores),
        "R-precision": r_precision(labels, scores),
        "calibration error": calibration_error(labels, scores),
        "the same, calibrated": calibration_error(labels, calibrated),
        "macro F1": metrics.f1_score(labels, predicted, average="macro", zero_division=0),
        "micro F1": metrics.f1_score(labels, predicted, average="micro", zero_division=0),
        "sample F1": metrics.f1_score(labels, predicted, average="samples", zero_division=0),
        "subset accuracy": metrics.accuracy_score(labels > 0, predicted),
    }


def test_scores_are_scikit_learns(tables, answers):
    expected = score_all(*answers)
    found = {name: float(row["score"]) for name, row in tables["How sure they are"].items()}
    assert found == pytest.approx(expected, abs=6e-5)
    of_all = tables["Scores"]["all of test"]
    assert int(of_all.pop("posters")) == len(answers[0])
    for name, cell in of_all.items():
        assert float(cell) == pytest.approx(expected[name], abs=6e-5), name


def interval(score, answers, num_resamples=500):
    """Returns both ends of the intervals of scores: percentiles of resamples, moved onto them."""
    rng = np.random.default_rng(0)
    size = len(answers[0])
    drawn = [rng.integers(size, size=size) for _ in range(num_resamples)]
    resampled = np.array([score(*(array[rows] for array in answers)) for rows in drawn])
    moved = np.array(score(*answers)) - resampled.mean(axis=0)
    return np.percentile(resampled, [2.5, 97.5], axis=0) + moved


def test_intervals_are_those_of_scikit_learns_scores(tables, answers):
    """Of a score of each kind: of logits, of their order, of what is predicted."""

    def score(labels, scores, _, predicted):
        return [
            metrics.log_loss(labels.ravel(), scores.ravel()),
            metrics.average_precision_score(labels, scores),
            metrics.accuracy_score(labels > 0, predicted),
        ]

    rows = tables["How sure they are"]
    names = ("loss", "macro AP", "subset accuracy")
    for name, low, high in zip(names, *interval(score, answers), strict=True):
        found = [float(rows[name][column]) for column in ("lower end", "upper end")]
        assert found == pytest.approx([max(low, 0), high], abs=6e-5), name


def test_intervals_of_genres_are_those_of_scikit_learns_scores(tables, answers):
    labels, scores, *_ = answers

    def score(labels, scores):
        return metrics.average_precision_score(labels, scores, average=None)

    for name, low, high in zip(GENRES, *interval(score, (labels, scores)), strict=True):
        row = tables["Genres"][name]
        found = [float(row[column]) for column in ("lower end", "upper end")]
        assert found == pytest.approx([max(low, 0), high], abs=6e-5), name


def test_the_constants_scores_are_scikit_learns(tables, answers, data_dir):
    labels = answers[0]
    train = splits.open_split("poster_tfds/synthetic", str(data_dir), "train")
    constant = np.broadcast_to(train.read_labels().mean(axis=0), labels.shape)
    found = tables["Scores"]["constant, all of test"]
    expected = {
        "loss": metrics.log_loss(labels.ravel(), constant.ravel()),
        "macro AP": metrics.average_precision_score(labels, constant),
        "micro AP": metrics.average_precision_score(labels, constant, average="micro"),
        "LRAP": metrics.label_ranking_average_precision_score(labels, constant),
        "label accuracy": ((constant > 0.5) == labels).mean(),
    }
    for name, value in expected.items():
        assert float(found[name]) == pytest.approx(value, abs=6e-5), name
        in_interval = tables["How sure they are"][name]["constant's"]
        assert float(in_interval) == pytest.approx(value, abs=6e-5), name


def test_each_genres_numbers_are_scikit_learns(tables, answers, written):
    labels, scores, _, predicted = answers
    decided = read_thresholds(written)
    rows = tables["Genres"]
    assert set(rows) == set(GENRES)
    for genre, name in enumerate(GENRES):
        label, score, is_on = labels[:, genre], scores[:, genre], predicted[:, genre]
        expected = {
            "in test": label.sum(),
            "constant's AP": label.mean(),
            "AP": metrics.average_precision_score(label, score),
            "ROC-AUC": metrics.roc_auc_score(label, score),
            "threshold": decided[name]["threshold"],
            "recall": metrics.recall_score(label, is_on),
            "F1": metrics.f1_score(label, is_on),
        }
        if is_on.any():
            expected["precision"] = metrics.precision_score(label, is_on)
        found = {column: float(rows[name][column]) for column in expected}
        assert found == pytest.approx(expected, abs=6e-5), name


def test_parts_are_scored_by_scikit_learn_too(tables, answers):
    labels, scores, _, _ = answers
    counts = labels.sum(axis=1)
    rows = tables["Parts of the posters"]
    checked = 0
    for part, is_in in (
        ("genres: none", counts == 0),
        ("genres: 1", counts == 1),
        ("genres: 2", counts == 2),
        ("genres: 3 or more", counts > 2),
    ):
        if part not in rows:
            continue
        checked += 1
        of_part, its = labels[is_in], scores[is_in]
        occurring = of_part.any(axis=0)
        assert int(rows[part]["posters"]) == is_in.sum()
        expected = {
            "macro AP": metrics.average_precision_score(of_part[:, occurring], its[:, occurring]),
            "micro AP": metrics.average_precision_score(of_part, its, average="micro"),
        }
        for name, value in expected.items():
            assert float(rows[part][name]) == pytest.approx(value, abs=6e-5), (part, name)
    assert checked >= 2


@pytest.fixture(scope="module")
def plots(written):
    """The axes of each plot, by its heading."""
    text = (written / "report.html").read_text()
    pattern = r"<h2>([^<]*)</h2>\s*<p>[^<]*</p>\s*<figure[^>]*><img[^>]*svg\+xml;base64,([^\"]*)"
    return {
        heading: [Axes(group) for group in groups(ElementTree.fromstring(base64.b64decode(svg)))]
        for heading, svg in re.findall(pattern, text)
    }


def groups(root):
    """Returns those of the axes on which something is drawn."""
    found = [e for e in root.iter(f"{SVG}g") if e.get("id", "").startswith("axes_")]
    return [e for e in found if any(part.get("id", "").startswith("patch") for part in e)]


SVG = "{http://www.w3.org/2000/svg}"
HREF = "{http://www.w3.org/1999/xlink}href"


class Axes:
    """What matplotlib has drawn on axes that go from 0 to 1 and, if need be, a little further."""

    def __init__(self, group, y_end=1.02):
        self.group, self.y_end = group, y_end
        (left, bottom), (right, _), (_, top), *_ = self._vertices(self._parts("patch")[0])
        self.frame = left, bottom, right, top

    def _parts(self, kind):
        return [e for e in self.group if e.get("id", "").startswith(kind)]

    def _vertices(self, part):
        return self._points(part.find(f"{SVG}path"))

    def _points(self, path):
        return [(float(x), float(y)) for x, y in re.findall(r"[ML] (\S+) (\S+)", path.get("d"))]

    def _to_data(self, points):
        left, bottom, right, top = self.frame
        x, y = np.array(points, float).reshape(-1, 2).T
        return np.stack(
            [(x - left) / (right - left), (y - bottom) / (top - bottom) * self.y_end], 1
        )

    def lines(self):
        """Vertices of the lines that are drawn, each [N, 2]."""
        drawn = [part for part in self._parts("line2d") if part.find(f"{SVG}path") is not None]
        return [self._to_data(self._vertices(part)) for part in drawn]

    def markers(self):
        """Places of the markers, [N, 2]."""
        uses = [u for part in self._parts("line2d") for u in part.iter(f"{SVG}use")]
        return self._to_data([(u.get("x"), u.get("y")) for u in uses])

    def heights(self):
        """Of the bars."""
        bars = [p for p in self._parts("patch")[1:] if len(self._vertices(p)) == 4]
        return np.array([self._to_data(self._vertices(bar))[2, 1] for bar in bars])

    def widths(self):
        """Of the bars that lie."""
        bars = [p for p in self._parts("patch")[1:] if len(self._vertices(p)) == 4]
        return np.array([self._to_data(self._vertices(bar))[:, 0].max() for bar in bars])

    def spans(self):
        """Where lines of a collection begin and end, [N, 2], in their order."""
        (collection,) = self._parts("LineCollection")
        paths = collection.iter(f"{SVG}path")
        return np.array([self._to_data(self._points(path))[:, 0] for path in paths])

    def cells(self, count):
        """The colours of an image of so many rows and columns, uint8 [G, G, 3]."""
        data = self.group.find(f".//{SVG}image").get(HREF).split(",")[1]
        image = PIL.Image.open(io.BytesIO(base64.b64decode(data))).convert("RGBA")
        image = image.transpose(PIL.Image.Transpose.FLIP_TOP_BOTTOM)
        middles = (np.arange(count) + 0.5) / count
        pixels = np.asarray(image)
        rows, columns = (np.int64(middles * size) for size in pixels.shape[:2])
        return pixels[np.ix_(rows, columns)]


def test_the_bars_of_average_precision_are_scikit_learns(plots, tables, answers):
    labels, scores, *_ = answers
    (axes,) = plots["Average precision of each genre"]
    found = metrics.average_precision_score(labels, scores, average=None)
    order = np.argsort(-found, kind="stable")
    np.testing.assert_allclose(np.sort(axes.widths())[::-1], found[order], atol=1e-3)
    # Marks of the constant predictor's, and lines from one end of the interval to the other.
    np.testing.assert_allclose(axes.markers()[:, 0], labels.mean(axis=0)[order], atol=1e-3)
    expected = [
        [float(tables["Genres"][GENRES[genre]][end]) for end in ("lower end", "upper end")]
        for genre in order
    ]
    np.testing.assert_allclose(axes.spans(), expected, atol=1e-3)


def distance(point, line):
    """From a point to a line of straight parts."""
    start, along = line[:-1], np.diff(line, axis=0)
    length = np.maximum((along**2).sum(axis=1), 1e-18)
    share = np.clip(((point - start) * along).sum(axis=1) / length, 0, 1)
    return np.sqrt(((start + share[:, None] * along - point) ** 2).sum(axis=1)).min()


def test_curves_of_precision_are_scikit_learns(plots, tables, answers):
    labels, scores, _, predicted = answers
    panels = plots["Precision against recall"]
    for name, panel in zip(tables["Genres"], panels, strict=False):
        genre = GENRES.index(name)
        label, is_on = labels[:, genre], predicted[:, genre]
        precision, recall, _ = metrics.precision_recall_curve(label, scores[:, genre])
        curve, constant, *_ = panel.lines()
        reached = recall > 0  # The point that scikit-learn adds at the end has none.
        for point in zip(recall[reached], precision[reached], strict=True):
            assert distance(point, curve) < 3e-3, (name, point)
        highest = precision[:-1][recall[:-1] > 0].max()
        assert curve[:, 1].max() == pytest.approx(highest, abs=3e-3)
        np.testing.assert_allclose(constant[:, 1], label.mean(), atol=1e-3)
        if is_on.any():
            expected = metrics.recall_score(label, is_on), metrics.precision_score(label, is_on)
            np.testing.assert_allclose(panel.markers(), [expected], atol=1e-3)


def test_the_plot_of_calibration_has_the_shares_that_are_right(plots, answers):
    labels, scores, calibrated, _ = answers
    for panel, values in zip(plots["Calibration"], (scores, calibrated), strict=True):
        bins = np.minimum((values * 15).astype(int), 14).ravel()
        counts = np.bincount(bins, minlength=15)
        expected = [
            [values.ravel()[bins == i].mean(), labels.ravel()[bins == i].mean()]
            for i in np.flatnonzero(counts)
        ]
        np.testing.assert_allclose(panel.markers(), expected, atol=1e-3)
        np.testing.assert_allclose(panel.heights(), counts / counts.max(), atol=1e-3)


def test_the_matrices_show_what_goes_together(plots, tables, answers):
    order = [GENRES.index(name) for name in tables["Genres"]]
    labels, _, calibrated, predicted = (array[:, order] for array in answers)
    (mistakes, *_), (annotated, scored, *_) = (
        plots[heading]
        for heading in ("Which genre is seen in the place of which", "Which genres go together")
    )
    genres = range(len(GENRES))
    seen = [
        [
            np.nan if a == b else predicted[(labels[:, a] > 0) & (labels[:, b] == 0), b].mean()
            for b in genres
        ]
        for a in genres
    ]
    for panel, values in (
        (mistakes, seen),
        (annotated, np.array([labels[labels[:, a] > 0].mean(axis=0) for a in genres])),
        (scored, calibrated.T @ calibrated / calibrated.sum(axis=0)[:, None]),
    ):
        colors = matplotlib.colormaps["viridis"](np.array(values), bytes=True)[..., :3]
        found = panel.cells(len(GENRES))
        for a in genres:
            for b in genres:
                if a != b:
                    np.testing.assert_allclose(
                        np.int64(found[a, b, :3]), np.int64(colors[a, b]), atol=4
                    )
