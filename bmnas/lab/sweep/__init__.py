"""Many runs at once: a sweep over tasks, seeds and settings, each trial an ordinary run folder.

``plan`` turns a file and options into trials; an engine, ``local`` or ``on_ray``, has them done by
processes that may be lost, ``job`` is what such a process does, and ``folder`` holds it together.
"""
