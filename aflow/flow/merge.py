"""What merge_artifacts copies into a join, decided by names and digests alone.

An artifact that all inputs which have it agree on (the same digest) is taken from the first of
them. One on which they differ has to be set by the join itself before it merges.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from aflow.errors import MergeArtifactsError, MissingInMergeArtifacts, UnhandledInMergeArtifacts

_NAMED = 10  # conflicts shown in detail; a join of thousands of inputs may have many


class Merge:
    """A merge that inputs are added to one by one: memory grows with artifacts, not with inputs.

    `set_already` are the artifacts that the join has set itself, `skip` those that never merge
    (parameters and constants).
    """

    def __init__(
        self,
        set_already: Collection[str] = (),
        exclude: Collection[str] = (),
        include: Collection[str] = (),
        skip: Collection[str] = (),
    ) -> None:
        for option, names in (("exclude", exclude), ("include", include)):
            if isinstance(names, str):
                raise MergeArtifactsError(
                    f"merge_artifacts: {option}= takes a list of names; write {option}=[{names!r}]."
                )
        if exclude and include:
            raise MergeArtifactsError(
                "merge_artifacts takes exclude= or include=, but not both at once."
            )
        self._include = frozenset(include)
        self._set_already = frozenset(set_already)
        self._refused = frozenset(exclude) | self._set_already | frozenset(skip)
        self._first: dict[str, tuple[int, str, str]] = {}
        self._conflicts: dict[str, tuple[str, str]] = {}
        self._count = 0

    def add(self, label: str, digests: Mapping[str, str]) -> None:
        """Add an input: `label` names it to people, `digests` are its artifacts.

        Args:
            label: What the input is called in errors.
            digests: The digests of the input's artifacts, by name.
        """
        first, refused = self._first, self._refused
        for name, digest in digests.items():
            known = first.get(name)
            if known is None:
                if name not in refused and (not self._include or name in self._include):
                    first[name] = (self._count, label, digest)
            elif known[2] != digest and name not in self._conflicts:
                self._conflicts[name] = (known[1], label)
        self._count += 1

    def plan(self) -> dict[str, int]:
        """Return from which input each artifact is taken: its position, by name.

        Raises:
            UnhandledInMergeArtifacts: The inputs differ in an artifact.
            MissingInMergeArtifacts: A name in `include` is in no input, and the join has not set
                it.
        """
        if self._conflicts:
            raise self._unhandled()
        missing = sorted(self._include - self._first.keys() - self._set_already)
        if missing:
            raise MissingInMergeArtifacts(
                f"merge_artifacts: no input has {_listed(missing)}, which include= asks for.",
                missing,
            )
        return {name: position for name, (position, _, _) in self._first.items()}

    def _unhandled(self) -> UnhandledInMergeArtifacts:
        names = sorted(self._conflicts)
        differences = [
            f"{name} (differs between {self._conflicts[name][0]} and {self._conflicts[name][1]})"
            for name in names[:_NAMED]
        ]
        if len(names) > _NAMED:
            differences.append(f"{len(names) - _NAMED} more")
        return UnhandledInMergeArtifacts(
            f"merge_artifacts: the inputs of the join differ in {', '.join(differences)}. "
            "Set these artifacts in the join before it merges, or name them in exclude=.",
            names,
        )


def _listed(names: list[str]) -> str:
    return ", ".join(repr(name) for name in names)
