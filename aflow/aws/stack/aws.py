"""Read a stack from CloudFormation, Secrets Manager and API Gateway."""

from __future__ import annotations

from typing import Any

from aflow.aws.client import AwsClient
from aflow.aws.stack.settings import StackOutput
from aflow.errors import AwsError, InvalidInput, InvalidSetting, StackUnreadable

_FINISHED = ("CREATE_COMPLETE", "UPDATE_COMPLETE", "UPDATE_ROLLBACK_COMPLETE", "IMPORT_COMPLETE")


class Stack:
    """A stack in a region; None for the default region of the AWS tools."""

    def __init__(self, name: str, region: str | None) -> None:
        self._name = name
        self._services = AwsClient(region)

    def outputs(self) -> list[StackOutput]:
        """Return its outputs.

        Raises:
            InvalidInput: If the stack does not exist or is not complete.
            StackUnreadable: If AWS rejects the call, or does not respond.
        """
        answer = self._ask("cloudformation", "describe_stacks", StackName=self._name)
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
        """Return the value of a secret, or of a key of API Gateway.

        Args:
            place: The ARN of the secret, or the id of the key.

        Raises:
            StackUnreadable: If AWS rejects the call, or does not respond.
        """
        if place.startswith("arn:"):
            secret = self._ask("secretsmanager", "get_secret_value", SecretId=place)
            return str(secret["SecretString"])
        key = self._ask("apigateway", "get_api_key", apiKey=place, includeValue=True)
        return str(key["value"])

    def _ask(self, service: str, operation: str, **values: Any) -> dict[str, Any]:
        try:
            return self._services.call(service, operation, **values)
        except AwsError as error:
            if error.code == "ValidationError" and "exist" in error.detail:
                raise InvalidInput(
                    f"There is no stack {self._name} in this region and account: {error.detail}."
                ) from error
            why = (error.detail or str(error)).rstrip(".")
            raise StackUnreadable(
                f"The stack {self._name} cannot be read: {service} says: {why}."
            ) from error
        except InvalidSetting as error:
            raise InvalidInput(
                "The region of the stack is not known: give --region, or set AWS_DEFAULT_REGION."
            ) from error
