"""Fusion trees and their evolution (DC-NAS, Liang et al., AAAI 2024)."""
