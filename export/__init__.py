"""Makes a SavedModel that takes JPEG bytes and answers with genres."""

from export.predictor import load

__all__ = ["load"]
