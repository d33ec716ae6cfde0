"""Pictures, tables and pages of genotypes, runs and comparisons.

Importing its modules starts neither matplotlib nor rich; only drawing and printing do.
"""
