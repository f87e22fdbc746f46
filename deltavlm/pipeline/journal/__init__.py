"""Journal of a run: the results so far on disk, so that a run can be stopped anywhere and resumed.

`store.Journal` is what a run uses. Below it are the pairs (`pairs`) and lines of chips (`lines`) of one file
(`file`, with its `header`), and the masks in a second one (`blobs`).
"""
