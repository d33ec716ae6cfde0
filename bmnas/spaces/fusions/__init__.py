"""Hand-made fusions: what a found network is compared with."""
