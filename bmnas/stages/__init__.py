"""The stages that a run goes through: unimodal networks, search, training."""
