"""What a run leaves on disk: its directory, its checkpoints, and how it stops without loss.

`directory` names the files and writes them whole or not at all, `checkpoints` saves and restores
all that a run needs to go on, `stopping` turns a signal into a request. What the files say about a
model is made in `trainer/reports`.
"""
