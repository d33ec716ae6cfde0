"""MFAS: fusion layers over pooled features, chosen by a surrogate (Pérez-Rúa et al., CVPR 2019).

It has its own space, genotype file and network; ``bmnas.strategies.mfas`` searches.
"""
