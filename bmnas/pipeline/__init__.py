"""What a command runs: stages, configuration, run folders, trained networks."""
