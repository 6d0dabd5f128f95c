"""Makes a SavedModel that takes JPEG bytes and answers with genres."""
