"""Ensembles: several networks on the same features, whose mean is what is answered."""
