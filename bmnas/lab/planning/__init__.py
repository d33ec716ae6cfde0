"""What a search will cost on this machine: a few real steps are timed, the rest is arithmetic."""

from bmnas.lab.planning.estimate import Plan
from bmnas.lab.planning.plan import plan_features, plan_task

__all__ = ["Plan", "plan_features", "plan_task"]
