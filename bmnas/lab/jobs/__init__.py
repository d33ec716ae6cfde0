"""Many runs side by side: what ``bmnas sweep`` and ``bmnas bench`` share.

A ``Job`` is one run as plain data, which a process does; ``engine`` and ``on_ray`` start such
processes, and ``folder`` runs a list of jobs and records how they end.
"""
