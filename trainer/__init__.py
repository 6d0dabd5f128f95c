"""Trains a multi-label CNN on a TFDS dataset of posters."""
