"""Many runs side by side: what ``bmnas sweep`` and ``bmnas bench`` share.

A ``Job`` is one run as plain data, ``work`` is what a process does for it, ``engine`` and
``on_ray`` start such processes, and ``folder`` runs a list of jobs and records how they end.
"""
