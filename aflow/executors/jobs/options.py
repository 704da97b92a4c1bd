"""Options and environment variables that all job systems have in common."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from aflow._core.settings import Settings, looked_up
from aflow.aws.settings import passed_on
from aflow.errors import InvalidInput, InvalidSetting

if TYPE_CHECKING:
    from aflow._core.settings import PartSettings
    from aflow.flow.definition import StepDefinition

PROGRAM = ("aflow", "_task")  # the module that jobs run, and its argument
PYTHON = "python"  # the interpreter in images, unless the step names another
MARGIN = 60  # seconds beyond @timeout for a job to start its task and report its end


class StepOptions:
    """The options of a step for a job system: those of its decorator, with settings as defaults.

    On the command line and in settings, all values are strings.

    Args:
        step: The step; None for a job without a step.
        decorator: The name of the decorator of the job system.
        settings: Settings with a field per option; None for no defaults.
    """

    def __init__(
        self, step: StepDefinition | None, decorator: str, settings: PartSettings | None = None
    ) -> None:
        self.step = step
        self._decorator = decorator
        self._settings = settings
        self._own: Any = None if step is None else step.decorator(decorator)

    def value(self, name: str, *, own_only: bool = False) -> Any:
        """Return an option; None if neither the step nor a setting has it.

        Args:
            name: The name of the option.
            own_only: Whether to ignore settings.
        """
        found = getattr(self._own, name, None)
        if found is None and not own_only:
            found = getattr(self._settings, name, None)
        return found

    def text(self, name: str, *, own_only: bool = False) -> str | None:
        """Return an option as a string; None if it is missing or empty.

        Args:
            name: The name of the option.
            own_only: Whether to ignore settings.
        """
        found = self.value(name, own_only=own_only)
        return None if found in (None, "") else str(found)

    def wrong(self, name: str, expected: str) -> InvalidInput:
        """Return the error for an option with an invalid value.

        Args:
            name: The name of the option.
            expected: A description of valid values.
        """
        if self.step is None or getattr(self._own, name, None) is None:
            assert self._settings is not None, "the value is that of a setting"
            key = self._settings.keys()[name][0]
            return InvalidSetting(f"AFLOW_{key} must be {expected}, not {self.value(name)!r}.")
        return InvalidInput(
            f"Step {self.step.name}: {name} of @{self._decorator} must be {expected}, not "
            f"{self.value(name)!r}."
        )

    def choice(self, name: str, choices: Sequence[str]) -> str | None:
        """Return the choice that an option names, regardless of case.

        Args:
            name: The name of the option.
            choices: The valid values.

        Raises:
            InvalidInput: If it is none of them.
        """
        found = self.text(name)
        if found is None:
            return None
        chosen = next((each for each in choices if each.lower() == found.lower()), None)
        if chosen is None:
            raise self.wrong(name, f"one of {', '.join(choices)}")
        return chosen

    def number(self, name: str, expected: str = "a number of 0 or more") -> float | None:
        """Return an option that is a number of 0 or more.

        Args:
            name: The name of the option.
            expected: A description of valid values, for the error.

        Raises:
            InvalidInput: If it is not such a number.
        """
        value = self.value(name)
        if value is None:
            return None
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not number >= 0 or math.isinf(number):
            raise self.wrong(name, expected)
        return number

    def whole(self, name: str) -> int | None:
        """Return an option that is a whole number of 0 or more.

        Args:
            name: The name of the option.

        Raises:
            InvalidInput: If it is not such a number.
        """
        number = self.number(name, "a whole number")
        if number is not None and number != int(number):
            raise self.wrong(name, "a whole number")
        return None if number is None else int(number)

    def names(self, name: str) -> list[str]:
        """Return an option that is a list of names, or a comma-separated string.

        Args:
            name: The name of the option.

        Raises:
            InvalidInput: If it is neither.
        """
        value = self.value(name)
        if value is None:
            return []
        parts = value.strip("[] ").split(",") if isinstance(value, str) else value
        if isinstance(parts, Mapping) or not isinstance(parts, Iterable):
            raise self.wrong(name, "a list of names")
        return [text for each in parts if (text := str(each).strip(" \"'"))]

    def mapping(self, name: str) -> dict[str, str]:
        """Return an option that is a mapping, a JSON object, or a string such as `a=b,c=d`.

        Args:
            name: The name of the option.

        Raises:
            InvalidInput: If it is not a mapping.
        """
        value = self.value(name)
        if value is None:
            return {}
        if isinstance(value, str):
            value = as_json(value) if value.strip().startswith("{") else _pairs(value)
        elif isinstance(value, list | tuple):
            value = _pairs(",".join(map(str, value)))
        if not isinstance(value, Mapping):
            raise self.wrong(name, "a mapping, or pairs such as a=b,c=d")
        return {str(key): "" if each is None else str(each) for key, each in value.items()}

    def most(self, name: str, attempt: int, unsaid: float | None = None) -> float:
        """Return the larger of what the decorator and @resources request; else the setting; else 0.

        Args:
            name: The name of the option: `cpu`, `gpu`, `memory` or `disk`.
            attempt: The number of the attempt, from 0.
            unsaid: The request of a @resources without this option; None for no request.

        Raises:
            InvalidInput: If the option is not a number of 0 or more.
        """
        resources: Any = None if self.step is None else self.step.decorator("resources")
        asked = None
        if resources is not None:
            asked = resources.amount(name, attempt)
            asked = unsaid if asked is None else asked
        if asked is not None and self.value(name, own_only=True) is None:
            return float(asked)
        return max(self.number(name) or 0.0, asked or 0.0)


def as_json(text: str) -> Any:
    """Return the value of a JSON text; None if it is invalid.

    Args:
        text: The text of a setting or a command-line option.
    """
    try:
        return json.loads(text)
    except ValueError:
        return None


def _pairs(text: str) -> dict[str, str] | None:
    pairs = [each.partition("=") for each in text.split(",") if each.strip()]
    if not all(key.strip() and sign for key, sign, _ in pairs):
        return None
    return {key.strip(): value.strip() for key, _, value in pairs}


def with_registry(image: str, registry: str | None) -> str:
    """Return the full name of an image, with the default registry unless it names one.

    Args:
        image: The image, with or without a registry.
        registry: The default registry; None for no change.
    """
    host = image.partition("/")[0]
    named = "/" in image and ("." in host or ":" in host or host == "localhost")
    return f"{registry.rstrip('/')}/{image}" if registry and not named else image


def variables_of(metadata: str, storage: str) -> dict[str, str]:
    """Return the environment variables of all jobs of a run.

    By these, the client in a step finds the metadata and the datastore.

    Args:
        metadata: The metadata setting: `service` or a URL of a service; others are not passed on.
        storage: The URL of the datastore; only `s3://` is passed on.
    """
    found = {**passed_on(), "AFLOW_USER": Settings.load().user}
    if storage.startswith("s3://"):
        found |= {"AFLOW_DEFAULT_DATASTORE": "s3", "AFLOW_DATASTORE_SYSROOT_S3": storage}
        if (endpoint := looked_up("S3_ENDPOINT_URL")) is not None:
            found["AFLOW_S3_ENDPOINT_URL"] = endpoint
    url = looked_up("SERVICE_INTERNAL_URL", "SERVICE_URL")
    if metadata == "service" and url is not None:
        found |= {"AFLOW_DEFAULT_METADATA": metadata, "AFLOW_SERVICE_URL": url}
    elif metadata.startswith(("http://", "https://")):
        found["AFLOW_DEFAULT_METADATA"] = metadata
    return found
