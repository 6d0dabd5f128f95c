"""Runs compared: a table, and a plot of quality against time."""
