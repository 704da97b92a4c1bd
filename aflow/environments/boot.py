"""Bootstrap a job without aflow: fetch the shipped manifest from the datastore and run its
installer.

This source is part of the command of each job (`command` in shipping.py), so it is short, uses only
the standard library, and runs on Python 3.7 and later. It looks for credentials in the same order
as botocore: variables, a web identity, ~/.aws/credentials, the role of the container, the role of
the instance.
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import json
import os
import random
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

AGAIN, FINAL = 1, 202  # exit codes: a retry may succeed; a retry would fail as well
PIECE = 1 << 20
ENV = os.environ
FOUND: dict[str, Any] = {}  # cache: the credentials with the time they were found, the region


class BootError(Exception):
    """The job cannot start; the message is one sentence, `code` the exit code of the process."""

    def __init__(self, why: str, code: int = FINAL) -> None:
        super().__init__(why)
        self.code = code


def ask(url: str, method: str = "GET", **headers: str) -> str:
    """Return the response of a link-local service, without using a proxy.

    Args:
        url: The URL of the service; three attempts with a timeout of three seconds each.
        method: GET to read, PUT to request a token.
        **headers: The headers of the request.
    """
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(url, headers=named, method=method)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for tries in (2, 1, 0):
        try:
            with opener.open(request, timeout=3) as answer:
                return str(answer.read().decode())
        except OSError:
            if not tries:
                raise
    raise AssertionError


def by_web_identity(region: str) -> tuple[str, ...] | None:
    """Return the credentials of a role that is assumed with a web identity token, which pods of
    Kubernetes have; None if there is no token.

    Args:
        region: The region of the STS endpoint, for example `eu-central-1`.
    """
    if not (ENV.get("AWS_WEB_IDENTITY_TOKEN_FILE") and ENV.get("AWS_ROLE_ARN")):
        return None
    with open(ENV["AWS_WEB_IDENTITY_TOKEN_FILE"], encoding="utf-8") as file:
        token = file.read()
    endpoint = ENV.get("AWS_ENDPOINT_URL_STS") or ENV.get("AWS_ENDPOINT_URL")
    query = {
        "Action": "AssumeRoleWithWebIdentity",
        "Version": "2011-06-15",
        "RoleArn": ENV["AWS_ROLE_ARN"],
        "RoleSessionName": ENV.get("AWS_ROLE_SESSION_NAME") or "aflow",
        "WebIdentityToken": token,
    }
    url = (endpoint or "https://sts." + domain(region)) + "/?" + urlencode(query)
    with urllib.request.urlopen(url, timeout=20) as answer:
        text = answer.read().decode()
    names = ("AccessKeyId", "SecretAccessKey", "SessionToken")
    return tuple(re.findall("<%s>(.*?)</" % name, text)[0] for name in names)


def of_file() -> tuple[str, ...] | None:
    """Return the credentials of the profile in ~/.aws/credentials; None if it has none."""
    import configparser

    path = ENV.get("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials"
    parser = configparser.RawConfigParser()
    try:
        parser.read(os.path.expanduser(path))
    except configparser.Error:  # its message contains lines of the file
        raise ValueError(path + " is malformed") from None
    profile = ENV.get("AWS_PROFILE") or "default"
    if not parser.has_option(profile, "aws_access_key_id"):
        return None
    names = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")
    return tuple(parser.get(profile, name, fallback="") for name in names)


def of_role() -> tuple[str, ...] | None:
    """Return the credentials of the role of the container (ECS, EKS), else of the instance (EC2);
    None if the instance metadata service is disabled."""
    relative = ENV.get("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI")
    full = "http://169.254.170.2" + relative if relative else None
    full = full or ENV.get("AWS_CONTAINER_CREDENTIALS_FULL_URI")
    if full:
        token = ENV.get("AWS_CONTAINER_AUTHORIZATION_TOKEN")
        if ENV.get("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"):
            with open(ENV["AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"], encoding="utf-8") as file:
                token = file.read().strip()
        text = ask(full, **({"Authorization": token} if token else {}))
    elif (ENV.get("AWS_EC2_METADATA_DISABLED") or "").lower() == "true":
        return None
    else:
        host = ENV.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or "http://169.254.169.254"
        place = host.rstrip("/") + "/latest/meta-data/iam/security-credentials/"
        seconds = {"X_aws_ec2_metadata_token_ttl_seconds": "21600"}
        token = ask(host.rstrip("/") + "/latest/api/token", "PUT", **seconds)
        role = ask(place, X_aws_ec2_metadata_token=token).split()[0]
        text = ask(place + role, X_aws_ec2_metadata_token=token)
    answer = json.loads(text)
    return answer["AccessKeyId"], answer["SecretAccessKey"], answer["Token"]


def credentials(region: str) -> tuple[str, ...]:
    """Return the access key, the secret key and the session token (or ""). Raises BootError.

    Args:
        region: The region whose endpoints are used, for example `eu-central-1`.
    """
    if ENV.get("AWS_ACCESS_KEY_ID"):
        names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
        return tuple(ENV.get(name, "") for name in names)
    known = FOUND.get("credentials")
    if known and time.time() < known[0] + 300:
        return tuple(known[1])
    why = "none are given by its variables, by files or by a role"
    try:
        found = by_web_identity(region) or of_file() or of_role()
    except (OSError, ValueError, LookupError, HTTPException) as error:
        found, why = None, str(error)
    if not found:
        raise BootError(
            "The job has no credentials for its datastore (%s): give it a role that may read the "
            "bucket (AFLOW_ECS_S3_ACCESS_IAM_ROLE)." % why
        )
    FOUND["credentials"] = time.time(), found
    return found


def domain(region: str) -> str:
    """Return the domain of the endpoints in a region.

    Args:
        region: The region, for example `eu-central-1`.
    """
    return region + ".amazonaws.com" + (".cn" if region.startswith("cn-") else "")


def opened(store: str, name: str, start: int, end: int) -> Any:
    """Return a range of an object's bytes as a file object.

    Args:
        store: The URL of the datastore, `file://...` or `s3://...`.
        name: The name of the object in the datastore.
        start: The offset of the first byte.
        end: The end offset, exclusive; a local file is not cut off there.
    """
    place = urlsplit(store)
    if place.scheme == "file":
        file = open(os.path.join(unquote(place.path), name), "rb")
        file.seek(start)
        return file
    options = dict(parse_qsl(place.query))
    region = FOUND.get("region") or options.get("region") or ENV.get("AWS_REGION")
    region = str(region or ENV.get("AWS_DEFAULT_REGION") or "us-east-1")
    endpoint = options.get("endpoint") or ENV.get("AWS_ENDPOINT_URL_S3")
    endpoint = endpoint or ENV.get("AWS_ENDPOINT_URL") or "https://s3." + domain(region)
    key, secret, token = credentials(region)
    prefix = place.path.strip("/")
    parts = [place.netloc, *([unquote(prefix)] if prefix else []), name]
    path = urlsplit(endpoint).path.rstrip("/") + "/" + quote("/".join(parts), safe="/-_.~")
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    headers = {
        "host": urlsplit(endpoint).netloc,
        "x-amz-content-sha256": "UNSIGNED-PAYLOAD",
        "x-amz-date": stamp,
    }
    if token:
        headers["x-amz-security-token"] = token
    names = ";".join(sorted(headers))
    lines = [each + ":" + headers[each] for each in sorted(headers)]
    asked = "\n".join(["GET", path, "", *lines, "", names, "UNSIGNED-PAYLOAD"])
    scope = "/".join([stamp[:8], region, "s3", "aws4_request"])
    digest = hashlib.sha256(asked.encode()).hexdigest()
    signing = ("AWS4" + secret).encode()
    for part in [*scope.split("/"), "\n".join(["AWS4-HMAC-SHA256", stamp, scope, digest])]:
        signing = hmac.new(signing, part.encode(), hashlib.sha256).digest()
    signed = (key, scope, names, signing.hex())
    form = "AWS4-HMAC-SHA256 Credential=%s/%s, SignedHeaders=%s, Signature=%s"
    headers["authorization"] = form % signed
    headers["range"] = "bytes=%d-%d" % (start, end - 1)
    whole = urlsplit(endpoint)
    url = whole.scheme + "://" + whole.netloc + path
    context = None
    if ENV.get("AWS_CA_BUNDLE") and whole.scheme == "https":
        import ssl

        context = ssl.create_default_context(cafile=ENV["AWS_CA_BUNDLE"])
    return urllib.request.urlopen(
        urllib.request.Request(url, headers=headers), timeout=60, context=context
    )


def refused(error: urllib.error.HTTPError, store: str, name: str) -> str:
    """Return the reason of an HTTP error that may be retried.

    Args:
        error: The error response of S3.
        store: The URL of the datastore, for messages.
        name: The name of the object, for messages.

    Raises:
        BootError: If the object does not exist, or a retry cannot succeed.
    """
    text = error.read(4096).decode("utf-8", "replace")
    code = (re.findall("<Code>(.*?)</Code>", text) or [""])[0]
    region = error.headers.get("x-amz-bucket-region") or re.findall("<Region>(.*?)</", text)
    if region and not FOUND.get("region"):
        FOUND["region"] = region if isinstance(region, str) else region[0]
        return "its bucket is in another region"
    if error.code == 404:
        raise BootError(
            "%s has no object %s (%s): deploy the flow again, or begin a new run."
            % (store, name, code or "404")
        )
    if error.code in (400, 401, 403) and code not in ("ExpiredToken", "RequestTimeout"):
        why = (re.findall("<Message>(.*?)</Message>", text) or [str(error.reason)])[0]
        raise BootError("%s refuses to give %s to this job: %s (%s)." % (store, name, why, code))
    FOUND.pop("credentials", None)
    return "it answers %d %s" % (error.code, code or error.reason)


def pieces(store: str, name: str, size: int) -> Iterator[bytes]:
    """Yield the first `size` bytes of an object; an interrupted download is resumed. Raises
    BootError.

    Args:
        store: The URL of the datastore, `file://...` or `s3://...`.
        name: The name of the object in the datastore.
        size: The size of the object in bytes.
    """
    patience = float(ENV.get("AFLOW_BOOT_PATIENCE") or 120)
    done, wait, give_up_at = 0, 0.5, time.monotonic() + patience
    while done < size:
        try:
            with opened(store, name, done, size) as answer:
                why = "the object is cut off"
                while done < size:
                    piece = answer.read(min(PIECE, size - done))
                    if not piece:
                        break
                    done, give_up_at = done + len(piece), time.monotonic() + patience
                    yield piece
        except urllib.error.HTTPError as error:
            why = refused(error, store, name)
        except (OSError, HTTPException) as error:
            why = str(getattr(error, "reason", error))
            if isinstance(error, FileNotFoundError):
                raise BootError("%s has no object %s." % (store, name)) from error
        if done < size:
            if time.monotonic() > give_up_at:
                raise BootError("The datastore %s cannot be read: %s." % (store, why), AGAIN)
            # A copy of the logic in aflow/_core/backoff.py: aflow is not installed yet.
            time.sleep(wait * random.random())
            wait = min(2 * wait, 10)


def boot(runtime: str, program: list[str]) -> None:
    """Fetch the manifest and run its installer, which replaces this process by the program. If that
    fails, print the error and exit.

    Args:
        runtime: The value of AFLOW_RUNTIME, `key:size:sha256:store`: the manifest's blob key, its
            size and SHA-256, and the URL of the datastore.
        program: The command, as a list of arguments.
    """
    try:
        key, size, digest, store = runtime.split(":", 3)
        name = "blobs/" + key[:2] + "/" + key[2:]
        data = b"".join(pieces(store, name, int(size)))
        if hashlib.sha256(data).hexdigest() != digest:
            raise BootError(
                "The object %s of %s is damaged: its digest is another." % (name, store)
            )
        manifest = json.loads(data)
        names = dict(globals())
        exec(compile(manifest["installer"], "aflow-installer", "exec"), names)
        names["install"](manifest, store, program)
    except BootError as fault:
        why, code = str(fault), fault.code
    except OSError as error:
        why, code = "%s (%s)" % (error.strerror or error, error.filename or "no file"), AGAIN
        if error.errno == errno.ENOSPC:
            why = "No room is left on the disk of the job to install aflow and its packages: give "
            why += "it more (@batch(ephemeral_storage=...) on Fargate, a larger volume on EC2)."
    print("aflow: " + why, file=sys.stderr)
    sys.stderr.flush()
    os._exit(code)
