"""A run for people: scores, progress in the terminal, curves, TensorBoard, pages, comparisons.

Nothing here trains. `scores` says how good answers are, beside the constant predictor; the others
show it.
"""
