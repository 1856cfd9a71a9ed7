"""Examples of Hypothesis have no deadline: how long one takes depends on what else the machine does."""

from hypothesis import settings

settings.register_profile("without deadline", deadline=None)
settings.load_profile("without deadline")
