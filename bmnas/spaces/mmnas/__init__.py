"""The space of MMnas: an encoder and a decoder of searched operations (Yu et al., ACM MM 2020)."""
