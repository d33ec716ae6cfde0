from few_calls import few_calls

__all__ = ["few_calls"]
