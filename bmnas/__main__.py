"""``python -m bmnas`` is ``bmnas``."""

from bmnas.cli import main

main()
