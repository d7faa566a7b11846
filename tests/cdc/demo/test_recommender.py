"""The demo's recommender: what was looked at together, best first."""

from __future__ import annotations

from headrace.cdc.demo.recommender import CoOccurrence


def test_what_was_looked_at_together_goes_together() -> None:
    model = CoOccurrence()
    assert model.saw("a", 1) == []
    assert model.saw("a", 2) == [1]
    assert model.saw("b", 2) == [1], "another customer is told what the first one did"
    assert model.saw("b", 3) == [2]
    for customer in ("c", "d", "e"):
        model.saw(customer, 2)
        model.saw(customer, 9)
    assert model.saw("f", 2)[0] == 9 and set(model.saw("f", 2)) == {9, 1, 3}
    assert 2 not in model.saw("a", 2), "never the product itself"
