"""Descriptions of the difference between two cache keys."""

from __future__ import annotations

from aflow.runs.cache.key import KeyInputs, Value, changes

CODE = {"F.start": "1", "utils.f": "2"}


def key_inputs(
    *inputs: tuple[str, dict[str, str]],
    code: dict[str, str] | None = CODE,
    environment: dict[str, str] | None = None,
    item: str | None = None,
) -> KeyInputs:
    """A basis whose values are their own digests."""
    values = tuple(
        (step, {name: Value(text, text) for name, text in artifacts.items()})
        for step, artifacts in inputs
    )
    return KeyInputs(code, environment or {}, values, None if item is None else Value(item, item))


def test_the_same_inputs_have_no_changes() -> None:
    one = key_inputs(("a", {"x": "1"}), item="i", environment={"Python": "3.11"})
    assert [] == changes(one, one)


def test_values_of_one_input_are_reported_by_name() -> None:
    before = key_inputs(("a", {"lr": "0.1", "gone": "1", "same": "2"}))
    now = key_inputs(("a", {"lr": "0.2", "new": "1", "same": "2"}))
    assert ["gone no longer exists", "lr changed 0.1 -> 0.2", "new is new"] == changes(before, now)


def test_values_that_look_alike_are_not_shown() -> None:
    before = KeyInputs({}, {}, (("a", {"x": Value("1", "<Model>")}),), None)
    now = KeyInputs({}, {}, (("a", {"x": Value("2", "<Model>")}),), None)
    assert ["x changed"] == changes(before, now)


def test_branches_are_reported_by_step() -> None:
    before = key_inputs(("a", {"x": "1"}), ("b", {"x": "1"}))
    now = key_inputs(("a", {"x": "1"}), ("b", {"x": "2"}))
    assert ["x changed 1 -> 2 (from b)"] == changes(before, now)


def test_the_inputs_of_a_foreach_are_counted() -> None:
    before = key_inputs(*(("w", {"y": str(n), "lr": "0.1"}) for n in range(5)))
    now = key_inputs(*(("w", {"y": str(n % 4), "lr": "0.2"}) for n in range(5)))
    assert ["lr changed 0.1 -> 0.2", "y changed in 1 of 5 input tasks"] == changes(before, now)


def test_another_number_of_inputs_is_reported() -> None:
    assert ["its input tasks are 1, and were 2"] == changes(
        key_inputs(("w", {}), ("w", {})), key_inputs(("w", {}))
    )


def test_code_is_reported_by_name() -> None:
    now = {"F.start": "1", "utils.g": "9"}
    assert ["utils.f is no longer in its code", "utils.g is new in its code"] == changes(
        key_inputs(), key_inputs(code=now)
    )
    assert ["utils.f changed"] == changes(key_inputs(), key_inputs(code={**CODE, "utils.f": "3"}))


def test_code_that_was_not_recorded_is_said_to_be_unknown() -> None:
    assert ["its code is not known: an older aflow has recorded none"] == changes(
        key_inputs(code=None), key_inputs()
    )


def test_items_and_environments_are_reported() -> None:
    before = key_inputs(item="a", environment={"Python": "3.11", "@environment": "on"})
    now = key_inputs(item="b", environment={"Python": "3.12", "@pypi": "on"})
    assert [
        "its item changed a -> b",
        "@environment was taken away",
        "@pypi was added",
        "Python changed 3.11 -> 3.12",
    ] == changes(before, now)
