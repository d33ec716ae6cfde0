"""Losses and metrics, and the loop that trains for a number of epochs."""
