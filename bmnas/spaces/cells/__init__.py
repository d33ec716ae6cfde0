"""The space of BM-NAS: Cells of primitive operations, with a supernet."""
