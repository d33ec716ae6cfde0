"""Errors, files, progress, costs, devices, checkpoints, several processes."""
