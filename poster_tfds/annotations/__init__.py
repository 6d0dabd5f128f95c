"""Anyone's annotations: a file of any usual form becomes one `Annotation` a poster.

`folder` finds the file and the images' folder, `text_files` what encodes and separates a text,
`tables` gives any file as chunks of strings with the lines they are on, `understanding` says
which column is what, and `cells` what a cell says; `rows` puts them together. What has two
readings is refused, with the setting that settles it.
"""

from poster_tfds.annotations.rows import Annotation

__all__ = ["Annotation"]
