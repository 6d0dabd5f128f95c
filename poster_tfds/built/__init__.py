"""Built datasets: opening one, its numbers and its page, and whether it is whole.

`opening` finds a dataset, `numbers` counts what is in it, `page` shows that to a person,
`verification` reads every record and compares them with the `counts` of the build, by
`record_files`, which names what is damaged. Nothing here builds.
"""
