"""Decide which artifacts merge_artifacts copies into a join, by their names and digests.

If all inputs that have an artifact agree on it (equal digests), it is copied from the first of
them. If they differ, the join must set the artifact before it merges.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from aflow.errors import MergeArtifactsError, MissingInMergeArtifacts, UnhandledInMergeArtifacts

_NAMED = 10  # the maximum number of conflicts in an error message


class Merge:
    """A merge to which inputs are added one by one, so that it needs memory only for the artifacts.

    `set_already` are artifacts that the join has set, `skip` names that are never merged
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
        """Add an input.

        Args:
            label: The name of the input for error messages.
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
        """Return the position of the input from which each artifact is copied, by artifact name.

        Raises:
            UnhandledInMergeArtifacts: If the inputs differ in an artifact.
            MissingInMergeArtifacts: If no input has an artifact in `include`, and the join has not
                set it.
        """
        if self._conflicts:
            raise self._unhandled()
        missing = sorted(self._include - self._first.keys() - self._set_already)
        if missing:
            names = ", ".join(map(repr, missing))
            raise MissingInMergeArtifacts(
                f"merge_artifacts: no input has {names}, which include= asks for.",
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
