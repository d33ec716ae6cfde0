"""Search spaces: what can be found, as plain data, and the networks that it stands for."""
