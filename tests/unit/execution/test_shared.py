"""Values that the shards of a group share."""

import gc
import weakref

from retro_ops.execution.shard_groups import Shared


class Model:
    """Stands for something large."""


def test_a_value_is_made_once_and_kept_until_another_key_is_used() -> None:
    shared: Shared[Model] = Shared()
    first = shared.get("a", Model)
    assert shared.get("a", Model) is first
    assert shared.get("b", Model) is not first
    assert shared.get("a", Model) is not first


def test_the_old_value_is_dropped_before_the_new_one_is_made() -> None:
    shared: Shared[Model] = Shared()
    old = weakref.ref(shared.get("a", Model))

    def make() -> Model:
        gc.collect()
        assert old() is None
        return Model()

    shared.get("b", make)


def test_a_value_that_could_not_be_made_is_made_again() -> None:
    shared: Shared[float] = Shared()
    for divisor, expected in ((0, None), (2, 0.5)):
        try:
            assert shared.get("a", lambda divisor=divisor: 1 / divisor) == expected
        except ZeroDivisionError:
            assert expected is None
