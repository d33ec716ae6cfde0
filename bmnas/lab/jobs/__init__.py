"""Many runs side by side: what ``bmnas sweep`` and ``bmnas bench`` share.

A ``Job`` is one run as plain data, ``work`` is what a process does for it, ``local`` and ``on_ray``
are engines that start such processes, and ``folder`` runs a list of jobs and records how they end.
"""
