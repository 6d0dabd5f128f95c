"""A run as a page: how good its best model is, genre by genre, and where it is still wrong."""
