"""The backend `aws-secrets-manager` of @secrets: secrets that are stored in AWS Secrets Manager.

The names, the options and the conversion of values are those of Metaflow.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from aflow._core.settings import Settings, keep_service_key, looked_up
from aflow.aws.client import AwsClient
from aflow.aws.settings import KEY_PLACE
from aflow.errors import AwsError, InvalidSetting, SecretsError

_ARN = re.compile(r"arn:aws[a-z-]*:secretsmanager:([^:]+):")
_OPTIONS = ("env_var_name", "json", "region")


class SecretsManager:
    """Reads one secret for each call, by name or ARN.

    The text of a secret is a JSON object. Each key is the name of a variable (`-`, `.` and `/` in
    it become `_`), and its value is converted with Python's `str`. With the option `json: False`,
    the whole text is the value of one variable, `env_var_name` or the name of the secret. A binary
    secret is handled in the same way, as base64. `region` is the region of the secret, unless its
    ARN contains it; the default is AFLOW_AWS_SECRETS_MANAGER_DEFAULT_REGION.
    """

    def get(
        self, id: str | None, options: Mapping[str, Any], role: str | None
    ) -> Mapping[str, str]:
        """Return the variables of one secret.

        Raises:
            SecretsError: If it cannot be read. The message does not contain the secret.
        """
        if not isinstance(id, str) or not id:
            raise SecretsError("@secrets: a secret of AWS Secrets Manager needs an id.")
        for name in options:
            if name not in _OPTIONS:
                raise SecretsError(
                    f"@secrets: AWS Secrets Manager has no option {name!r}; there are: "
                    f"{', '.join(_OPTIONS)}."
                )
        settings = Settings.load()
        region = options.get("region") or settings.secrets_region
        found = _read(id, region, role or settings.secrets_manager_role)
        return _variables(id, str(found.get("Name") or id), found, options)


def fetch_service_key() -> None:
    """Set AFLOW_SERVICE_AUTH_KEY in the environment of this job from a secret.

    The secret is named by AFLOW_SERVICE_AUTH_KEY_SECRET. Does nothing if none is named or a key is
    set.

    Raises:
        SecretsError: If the secret cannot be read.
    """
    secret = looked_up(KEY_PLACE)
    if secret is None or looked_up("SERVICE_AUTH_KEY") is not None:
        return
    settings = Settings.load()
    found = _read(secret, settings.secrets_region, settings.secrets_manager_role)
    keep_service_key(str(found.get("SecretString") or ""))


def _read(id: str, region: str | None, role: str | None) -> dict[str, Any]:
    if (named := _ARN.match(id)) is not None:
        region = named[1]
    try:
        return AwsClient(region, role).call("secretsmanager", "get_secret_value", SecretId=id)
    except AwsError as error:
        if error.code == "ResourceNotFoundException":
            where = region or "the region of this program"
            raise SecretsError(
                f"@secrets: there is no secret {id!r} in AWS Secrets Manager in {where}: check "
                "name, region and account."
            ) from error
        if error.denied or error.code == "DecryptionFailure":
            whom = f"the role {role}" if role else "who runs this step"
            raise SecretsError(
                f"@secrets: the secret {id!r} may not be read by {whom}: allow "
                f"secretsmanager:GetSecretValue (and kms:Decrypt for a key of your own). {error}"
            ) from error
        raise SecretsError(f"@secrets: the secret {id!r} cannot be read: {error}") from error
    except InvalidSetting as error:
        raise SecretsError(f"@secrets: the secret {id!r} cannot be read: {error}") from error


def _variables(
    id: str, secret: str, found: Mapping[str, Any], options: Mapping[str, Any]
) -> dict[str, str]:
    name = options.get("env_var_name") or secret
    if "SecretBinary" in found:
        return _named(id, [(name, base64.b64encode(found["SecretBinary"]).decode())])
    if not options.get("json", True):
        return _named(id, [(name, found["SecretString"])])
    try:
        value = json.loads(found["SecretString"])
    except ValueError:
        value = None
    if not isinstance(value, dict):
        # The exception of json contains the text, so it is not chained.
        raise SecretsError(
            f"@secrets: the secret {id!r} is not a JSON object: keep one variable a key, or say "
            'options={"json": False, "env_var_name": "..."} to have it as it is.'
        )
    return _named(id, ((key, str(each)) for key, each in value.items()))


def _named(id: str, values: Iterable[tuple[str, str]]) -> dict[str, str]:
    made: dict[str, str] = {}
    for key, value in values:
        name = re.sub(r"[-./]", "_", key)
        if name in made:
            raise SecretsError(f"@secrets: two keys of the secret {id!r} are the variable {name}.")
        made[name] = value
    return made
