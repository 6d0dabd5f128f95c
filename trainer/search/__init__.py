"""Which settings suit a dataset: runs with others and others, judged on validation posters."""
