"""Plans, sweeps, benchmark suites and tables of whole spaces."""
