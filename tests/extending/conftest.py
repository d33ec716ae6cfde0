from few_calls import few_calls
from one_registry import one_registry

__all__ = ["few_calls", "one_registry"]
