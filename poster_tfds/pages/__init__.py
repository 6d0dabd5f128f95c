"""Pages that a person can look at: one HTML file each, with its tables, plots and posters in it.

`rendering` fills templates, with escaping on; `base.html` is the frame of every page, `parts.html`
has the tables, plots and galleries that pages are made of, and `style.css` is the only style.
`dataset.html` is the dataset's page; the report of a run has its template beside its code, in
`trainer/reports`.
"""
