from few_calls import few_calls
from no_pictures import no_pictures, pictures
from one_registry import one_registry

__all__ = ["few_calls", "no_pictures", "one_registry", "pictures"]
