"""Where the time goes, on the machine at hand."""
