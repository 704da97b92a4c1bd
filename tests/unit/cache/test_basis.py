"""What differs between two bases is said in words."""

from __future__ import annotations

from aflow.runs.cache.key import Basis, Value, changes

CODE = {"F.start": "1", "utils.f": "2"}


def basis(
    *inputs: tuple[str, dict[str, str]],
    code: dict[str, str] | None = CODE,
    environment: dict[str, str] | None = None,
    item: str | None = None,
) -> Basis:
    """A basis whose values are their own digests."""
    values = tuple(
        (step, {name: Value(text, text) for name, text in artifacts.items()})
        for step, artifacts in inputs
    )
    return Basis(code, environment or {}, values, None if item is None else Value(item, item))


def test_the_same_basis_has_no_changes() -> None:
    one = basis(("a", {"x": "1"}), item="i", environment={"Python": "3.11"})
    assert [] == changes(one, one)


def test_values_of_one_input_are_told_by_name() -> None:
    before = basis(("a", {"lr": "0.1", "gone": "1", "same": "2"}))
    now = basis(("a", {"lr": "0.2", "new": "1", "same": "2"}))
    assert ["gone is not there any more", "lr changed 0.1 -> 0.2", "new is new"] == changes(
        before, now
    )


def test_values_that_look_alike_are_not_shown() -> None:
    before = Basis({}, {}, (("a", {"x": Value("1", "<Model>")}),), None)
    now = Basis({}, {}, (("a", {"x": Value("2", "<Model>")}),), None)
    assert ["x changed"] == changes(before, now)


def test_branches_are_told_by_step() -> None:
    before = basis(("a", {"x": "1"}), ("b", {"x": "1"}))
    now = basis(("a", {"x": "1"}), ("b", {"x": "2"}))
    assert ["x changed 1 -> 2 (from b)"] == changes(before, now)


def test_the_inputs_of_a_foreach_are_counted() -> None:
    before = basis(*(("w", {"y": str(n), "lr": "0.1"}) for n in range(5)))
    now = basis(*(("w", {"y": str(n % 4), "lr": "0.2"}) for n in range(5)))
    assert ["lr changed 0.1 -> 0.2", "y changed in 1 of 5 input tasks"] == changes(before, now)


def test_another_number_of_inputs_is_told() -> None:
    assert ["its input tasks are 1, and were 2"] == changes(
        basis(("w", {}), ("w", {})), basis(("w", {}))
    )


def test_code_is_told_by_name() -> None:
    now = {"F.start": "1", "utils.g": "9"}
    assert ["utils.f is not in its code any more", "utils.g is new in its code"] == changes(
        basis(), basis(code=now)
    )
    assert ["utils.f changed"] == changes(basis(), basis(code={**CODE, "utils.f": "3"}))


def test_code_that_was_not_recorded_is_said_to_be_unknown() -> None:
    assert ["its code is not known: an older aflow has recorded none"] == changes(
        basis(code=None), basis()
    )


def test_items_and_environments_are_told() -> None:
    before = basis(item="a", environment={"Python": "3.11", "@environment": "on"})
    now = basis(item="b", environment={"Python": "3.12", "@pypi": "on"})
    assert [
        "its item changed a -> b",
        "@environment was taken away",
        "@pypi was added",
        "Python changed 3.11 -> 3.12",
    ] == changes(before, now)
