"""A suite of runs: every way to fuse on the same features, several seeds, one report."""
