"""Whether a machine trains rightly and fast: what it is, what was tried on it, what to set."""
