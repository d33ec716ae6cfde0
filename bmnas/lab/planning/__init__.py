"""What a search will cost on this machine: part of an epoch is timed, the rest is arithmetic."""

from bmnas.lab.planning.plan import Plan, plan_features, plan_task

__all__ = ["Plan", "plan_features", "plan_task"]
