"""What CloudFormation, Secrets Manager and API Gateway say of a stack."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from aflow.aws.stack.settings import StackOutput
from aflow.errors import InvalidInput, MissingExtra, StackUnreadable

try:
    from botocore import exceptions as faults
    from botocore.config import Config
    from botocore.session import get_session
except ImportError as error:
    raise MissingExtra("Reading a stack needs botocore: install aflow-runtime[aws].") from error

T = TypeVar("T")
_FINISHED = ("CREATE_COMPLETE", "UPDATE_COMPLETE", "UPDATE_ROLLBACK_COMPLETE", "IMPORT_COMPLETE")
_TIMES = Config(connect_timeout=10, read_timeout=30, retries={"total_max_attempts": 4})


class Stack:
    """One stack of a region; None is the region that all tools of AWS take."""

    def __init__(self, name: str, region: str | None) -> None:
        self._name = name
        self._session = get_session()
        self._region = region

    def outputs(self) -> list[StackOutput]:
        """Its outputs. Raises InvalidInput where there is no such stack or it is not finished, and
        StackUnreadable."""
        answer = self._ask("cloudformation", lambda aws: aws.describe_stacks(StackName=self._name))
        stack = answer["Stacks"][0]
        if stack["StackStatus"] not in _FINISHED:
            raise InvalidInput(
                f"The stack {self._name} is {stack['StackStatus']}: its settings can be taken when "
                "it is complete."
            )
        return [
            StackOutput(each["OutputKey"], each["OutputValue"], each.get("Description", ""))
            for each in stack.get("Outputs", ())
        ]

    def key(self, place: str) -> str:
        """What is kept in the secret with this ARN, or as the key of API Gateway with this id.
        Raises StackUnreadable."""
        if place.startswith("arn:"):
            secret = self._ask("secretsmanager", lambda aws: aws.get_secret_value(SecretId=place))
            return str(secret["SecretString"])
        key = self._ask("apigateway", lambda aws: aws.get_api_key(apiKey=place, includeValue=True))
        return str(key["value"])

    def _ask(self, service: str, call: Callable[[Any], T]) -> T:
        try:
            return call(self._session.create_client(service, self._region, config=_TIMES))
        except faults.ClientError as error:
            said = error.response["Error"]
            if said["Code"] == "ValidationError" and "exist" in said["Message"]:
                raise InvalidInput(
                    f"There is no stack {self._name} in this region and account: {said['Message']}."
                ) from error
            raise StackUnreadable(self._failed(service, said["Message"])) from error
        except faults.NoRegionError as error:
            raise InvalidInput(
                "The region of the stack is not known: give --region, or set AWS_DEFAULT_REGION."
            ) from error
        except (faults.BotoCoreError, ValueError) as error:  # ValueError: an endpoint that is none
            raise StackUnreadable(self._failed(service, str(error))) from error

    def _failed(self, service: str, why: str) -> str:
        return f"The stack {self._name} cannot be read: {service} says: {why.rstrip('.')}."
