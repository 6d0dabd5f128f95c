"""Which column of a table is what, after a look at every cell."""

import collections
import dataclasses

from poster_tfds import faults, image_files
from poster_tfds.annotations import cells, names, survey, tables

# What may separate genres, but is in the names of some.
_DOUBTFUL_SEPARATORS = ("|", ";", ",", "/", "&", "+", " ")


@dataclasses.dataclass(frozen=True)
class Understanding:
    """Which columns say what.

    Attributes:
        id_column: position of the column that names the posters.
        genre_column: position of the column that lists genres; None if there is none.
        genre_columns: positions of the 0/1 columns, in the order of `genres`; none if the list
            is all that there is.
        blank_is_absent: of each 0/1 column, whether an empty cell is a 0.
        genres: names, in the order of the 0/1 columns, else sorted.
        separator: what separates genres in cells that are no lists; None if nothing does.
        single: whether every cell names one genre at most, so that a poster may have several rows.
        group_column: position of the column that names groups; None if there is none.
        left_out: positions of the columns that say nothing of this.
    """

    id_column: int
    genre_column: int | None
    genre_columns: tuple[int, ...]
    blank_is_absent: tuple[bool, ...]
    genres: tuple[str, ...]
    separator: str | None
    single: bool
    group_column: int | None
    left_out: tuple[int, ...]


def understand(table: tables.Table, config, images: image_files.ImageFiles) -> Understanding:
    """Goes through a table and says which column is what.

    Raises:
        faults.UserError: more than one reading is possible, or none; the message has the setting
            that settles it.
    """
    return _Reading(table, config, images).understanding()


class _Reading:
    """A table that is being understood."""

    def __init__(self, table: tables.Table, config, images: image_files.ImageFiles):
        self._table, self._config, self._images = table, config, images
        self._columns = survey.survey(table, config)

    def understanding(self) -> Understanding:
        id_column = self._id_column()
        others = [column for column in self._columns if column is not id_column]
        listing = self._listing_column(others)
        separator = self._genre_separator(listing) if listing else None
        listed = self._listed_genres(listing, separator) if listing else []
        group = self._group_column()
        labels = self._label_columns([c for c in others if c not in (listing, group)], listed)
        if labels:
            genres = self._names_of(labels, listed)
        elif listed:
            genres = sorted(listed)
            self._check_doubtful(listing, genres, separator)
        else:
            raise self._no_genres(id_column)
        for problem in _problems_of(genres):
            raise faults.UserError(f"{self._table.path}: {problem}")
        taken = [id_column, listing, *labels, group]
        if group and taken.count(group) > 1:
            raise self._no_group(group)
        return Understanding(
            id_column=id_column.position,
            genre_column=listing.position if listing else None,
            genre_columns=tuple(column.position for column in labels),
            blank_is_absent=tuple(column.blank_is_absent for column in labels),
            genres=tuple(genres),
            separator=separator,
            single=bool(listing) and not labels and _is_single(listing, separator),
            group_column=group.position if group else None,
            left_out=tuple(
                c.position for c in self._columns if c not in taken and (c.name or not c.is_blank)
            ),
        )

    def _id_column(self) -> survey.Column:
        if self._config.id_column:
            return self._named("id_column", self._config.id_column)
        candidates = [column for column in self._columns if names.is_id_name(column.name)]
        candidates.sort(key=lambda column: names.id_rank(column.name))
        if not candidates:
            candidates = [c for c in self._columns if self._num_fitting(c) and not c.is_index]
            if len(candidates) != 1:
                raise self._no_id()
        if len(candidates) > 1:
            candidates = self._choose_id(candidates)
        self._check_single_name(candidates[0])
        return candidates[0]

    def _choose_id(self, candidates: list[survey.Column]) -> list[survey.Column]:
        """Of several columns called as Ids are, returns those whose cells name images."""
        fitting = [c for c in candidates if 2 * self._num_fitting(c) >= len(c.sample)]
        answers = {tuple(map(str, map(self._images.find, c.sample))) for c in fitting}
        if len(answers) > 1:
            raise self._doubt(
                f"more than one column names images: {_quoted(fitting)}",
                f'"id_column": "{fitting[0].name}"',
            )
        return fitting or candidates

    def _num_fitting(self, column: survey.Column) -> int:
        return sum(len(self._images.find(text)) == 1 for text in column.sample)

    def _listing_column(self, others: list[survey.Column]) -> survey.Column | None:
        config = self._config
        if config.genre_column:
            return self._named("genre_column", config.genre_column)
        if config.genre_columns:
            return None
        candidates = [c for c in others if names.is_genre_name(c.name) and not c.is_blank]
        lists = [column for column in candidates if not column.is_label]
        if len(lists) > 1:
            raise self._doubt(
                f"more than one column may list the genres: {_quoted(lists)}",
                f'"genre_column": "{lists[0].name}"',
            )
        if lists:
            self._check_single_name(lists[0])
        elif candidates:
            raise self._doubt(
                f"`{candidates[0].name}` has 0 and 1, not names of genres",
                f'"genre_columns": ["{candidates[0].name}", ...]` or `"genre_column": "..."',
            )
        return lists[0] if lists else None

    def _genre_separator(self, listing: survey.Column) -> str | None:
        if len(listing.texts) > survey.MAX_TEXTS:
            raise self._doubt(
                f"`{listing.name}` has over {survey.MAX_TEXTS} different cells: not genres",
                '"genre_column": "..."',
            )
        if self._config.genre_separator:
            return self._config.genre_separator
        plain = [t for t in listing.texts if not cells.is_list(t) and not cells.is_nothing(t)]
        found = [s for s in cells.GENRE_SEPARATORS if any(s in text for text in plain)]
        if len(found) > 1:
            example = next(t for t in plain if found[0] in t or found[1] in t)
            raise self._doubt(
                f"the genres of `{listing.name}` are separated by {' and by '.join(found)}, as in "
                f"{example!r}",
                f'"genre_separator": "{found[0]}"',
            )
        return found[0] if found else None

    def _listed_genres(self, listing: survey.Column, separator: str | None) -> list[str]:
        """Returns the different genres of a column, of the cells that can be read."""
        found = (cells.read_genres(text, separator) or () for text in listing.texts)
        return sorted({name for genres in found for name in genres})

    def _label_columns(self, others: list[survey.Column], listed: list[str]) -> list[survey.Column]:
        config = self._config
        if config.genre_columns:
            return [self._named("genre_columns", name) for name in config.genre_columns]
        if config.genre_column:
            return []
        labels = [column for column in others if column.is_label and not column.is_index]
        for column in labels:
            if not column.name:
                raise self._doubt(
                    f"column {column.position + 1} has no name, but 0 and 1",
                    f'"genre_columns": {_listing(labels)}',
                )
        if listed:
            folded = {name.casefold() for name in listed}
            known = [column for column in labels if column.name.casefold() in folded]
            labels = [c for c in labels if c in known or not names.is_flag_name(c.name)]
            if labels and not known:
                raise self._doubt(
                    f"the genres listed, such as {listed[0]}, are none of the 0/1 columns "
                    f"{_quoted(labels)}",
                    f'"genre_columns": {_listing(labels)}` for the columns, `"genre_column": "..."'
                    "` for the list",
                )
        for column in labels:
            self._check_single_name(column)
        return labels

    def _group_column(self) -> survey.Column | None:
        name = self._config.group_column
        return self._named("group_column", name) if name else None

    def _names_of(self, labels: list[survey.Column], listed: list[str]) -> list[str]:
        """Returns the columns' names, as the list spells them if it does so in one way."""
        spellings = collections.defaultdict(list)
        for name in listed:
            spellings[name.casefold()].append(name)
        genres = []
        for column in labels:
            spelt = spellings[column.name.casefold()]
            genres.append(spelt[0] if len(spelt) == 1 else column.name)
        return genres

    def _check_doubtful(
        self, listing: survey.Column, genres: list[str], separator: str | None
    ) -> None:
        """Checks that no genre looks like several others joined by what was not a separator."""
        if self._config.genre_separator:
            return
        known = set(genres)
        for name in genres:
            for mark in _DOUBTFUL_SEPARATORS:
                parts = [part.strip() for part in name.split(mark)]
                if mark != separator and len(parts) > 1 and known.issuperset(parts):
                    raise self._doubt(
                        f"`{listing.name}` has {name!r}, and its parts alone too: one genre or "
                        f"{len(parts)}?",
                        f'"genre_separator": "{mark}"` for {len(parts)}, `"genre_separator": '
                        f'"{separator or "|"}"` for one',
                    )

    def _named(self, setting: str, name: str) -> survey.Column:
        found = [column for column in self._columns if column.name == name]
        if len(found) != 1:
            raise faults.UserError(
                f'--config: "{setting}" names `{name}`, of which {self._table.path} has '
                f"{len(found)}. Its columns: {_quoted(self._columns)}."
            )
        return found[0]

    def _check_single_name(self, column: survey.Column) -> None:
        count = self._table.columns.count(column.name)
        if count > 1:
            raise faults.UserError(
                f"{self._table.path}: the column `{column.name}` is there {count} times. "
                "Rename or remove one."
            )

    def _doubt(self, problem: str, setting: str) -> faults.UserError:
        return faults.UserError(
            f"{self._table.path}: {problem}. Say in --config which is meant: `{setting}`."
        )

    def _no_id(self) -> faults.UserError:
        header = ",".join(self._table.columns)
        first = self._columns[0].name if self._columns else ""
        return faults.UserError(
            f"{self._table.path}: the column `Id` is missing: no column is called as the posters' "
            f"names are, and no single one names images of {self._images.directory}.\n"
            f"  closest form: {names.EXPECTED_HEADER}\n"
            f"  the header:   {header}\n"
            f'Say in --config which column names the posters: `"id_column": "{first}"`.'
        )

    def _no_group(self, group: survey.Column) -> faults.UserError:
        return faults.UserError(
            f'--config: "group_column" names `{group.name}` of {self._table.path}, which names the '
            f"posters or their genres. Name another of its columns: {_quoted(self._columns)}."
        )

    def _no_genres(self, id_column: survey.Column) -> faults.UserError:
        others = [column for column in self._columns if column is not id_column]
        row = next(iter(zip(*(column.sample for column in self._columns), strict=False)), ())
        return faults.UserError(
            f"{self._table.path}: there is no genre column: none has 0 and 1, and none is called "
            "as a list of genres is.\n"
            f"  closest form: Id,Genre / a,Noir|Heist\n"
            f"  the file:     {','.join(self._table.columns)} / {','.join(row)}\n"
            'Say in --config which column lists the genres: `"genre_column": '
            f'"{others[-1].name if others else "..."}"`, or which are 0/1: `"genre_columns": '
            '["...", ...]`.'
        )


def _is_single(listing: survey.Column, separator: str | None) -> bool:
    return all(len(cells.read_genres(t, separator) or ()) <= 1 for t in listing.texts)


def _problems_of(genres: list[str]) -> list[str]:
    """Returns why genres cannot be told apart or written down."""
    problems = [
        f"the genre {name!r} has a line break" for name in genres if len(name.splitlines()) > 1
    ]
    folded = collections.defaultdict(list)
    for name in genres:
        folded[name.casefold()].append(name)
    return problems + [
        f"the genres {' and '.join(map(repr, alike))} differ in capitals alone; write them alike"
        for alike in folded.values()
        if len(alike) > 1
    ]


def _quoted(columns: list[survey.Column]) -> str:
    return ", ".join(f"`{column.name}`" for column in columns)


def _listing(columns: list[survey.Column]) -> str:
    return "[" + ", ".join(f'"{column.name}"' for column in columns if column.name) + "]"
