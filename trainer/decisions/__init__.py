"""From scores to genres: calibrated probabilities, and thresholds from which a genre is meant.

Both are chosen on posters that the model was not trained on and that no score is reported of.
"""
