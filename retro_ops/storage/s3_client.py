"""The client of S3 through boto3, locations as it takes them, and its errors as errors a user can act on."""

import contextlib
import functools
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from retro_ops.errors import BadInputError, ConfigurationError, RetroError, TransientError
from retro_ops.storage.base import ConflictError, missing, taken_over
from retro_ops.storage.read_ahead import LOOKUPS, READERS
from retro_ops.storage.s3_retries import ATTEMPTS, CutShortError, forget, repeated
from retro_ops.uris import split_scheme

TRANSIENT_CODES = frozenset(
    {"RequestTimeout", "BadDigest", "IncompleteBody", "InvalidPart", "XAmzContentSHA256Mismatch", "ExpiredToken"}
    | {"SlowDown", "Throttling", "ThrottlingException", "TooManyRequests", "RequestLimitExceeded"}
)
"""Refusals with a status of the 400s that a retry may not meet again."""

WRONG_SETTINGS = (
    *("ConfigNotFound", "ConfigParseError", "ProfileNotFound", "NoRegionError", "InvalidRegionError"),
    *("UnsupportedS3ArnError", "UnsupportedS3ConfigurationError", "InvalidRetryModeError"),
)
"""Errors of botocore that no retry can help, besides a ValueError about the endpoint."""

SETTINGS = "check AWS_ENDPOINT_URL (http://host:port), AWS_DEFAULT_REGION and AWS_PROFILE"

CREDENTIAL_CODES = frozenset(
    {"AccessDenied", "AllAccessDisabled", "AccountProblem", "InvalidAccessKeyId", "SignatureDoesNotMatch"}
    | {"InvalidToken", "TokenRefreshRequired", "InvalidSecurity", "MissingSecurityHeader", "NotSignedUp"}
    | {"CredentialsNotSupported", "MissingAuthenticationToken", "UnauthorizedAccess", "Unauthorized", "Forbidden"}
)
"""Refusals that concern the keys or the policy. Answers without a body (to HEAD) have only a status: 401 or 403."""

CHECKSUM_WORDS = ("checksum", "trailer", "aws-chunked", "x-amz-content-sha256", "streaming-unsigned")
"""Words in the answers of stores that do not know the checksums which clients send since 2025."""

CHECKSUMS = "AWS_REQUEST_CHECKSUM_CALCULATION=when_required AWS_RESPONSE_CHECKSUM_VALIDATION=when_required"

T = TypeVar("T")


@functools.cache
def client(*, checksums: bool = True) -> Any:
    """``checksums``: as the environment says, by default with every request; otherwise only where S3 requires them."""
    import boto3
    from botocore.config import Config

    config = Config(retries={"mode": "standard", "max_attempts": ATTEMPTS}, max_pool_connections=READERS * LOOKUPS)
    if not checksums:
        config = config.merge(Config(request_checksum_calculation="when_required"))
    forget()
    # A new session, because the default one keeps the first credentials that it saw.
    return boto3.session.Session().client("s3", config=config)


def sends_checksums(*, checksums: bool = True) -> bool:
    """Whether every upload of ``client`` has a checksum, with which the store compares what it received."""
    return bool(client(checksums=checksums).meta.config.request_checksum_calculation == "when_supported")


def bucket_key(uri: str) -> dict[str, str]:
    prefix, key = split_scheme(uri)
    bucket, key = prefix.removeprefix("s3://"), key.removeprefix("/")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}", bucket):
        raise BadInputError(f"{uri!r} is not a location in S3", "write it like s3://bucket/key, without ARNs")
    if any(character < " " or "\ud800" <= character <= "\udfff" for character in key):
        raise BadInputError(f"{uri!r} is not a location in S3", "use a key without control characters")
    return {"Bucket": bucket, "Key": key}


def bucket_prefix(folder: str) -> tuple[str, str]:
    """Bucket, and prefix of the keys in ``folder``. ``a//`` is not ``a/``: an empty name is a name in S3."""
    bucket, prefix = bucket_key(folder if folder.endswith("/") else f"{folder}/").values()
    return bucket, prefix


@contextlib.contextmanager
def s3_errors(uri: str) -> Iterator[None]:
    from botocore import exceptions

    cut_short = (exceptions.IncompleteReadError, exceptions.ResponseStreamingError, exceptions.FlexibleChecksumError)
    try:
        yield
    except exceptions.ClientError as error:
        raise _refusal(uri, error) from error
    except (exceptions.NoCredentialsError, exceptions.PartialCredentialsError) as error:
        raise ConfigurationError(
            f"no credentials for {uri}", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_ENDPOINT_URL)"
        ) from error
    except exceptions.ParamValidationError as error:
        raise BadInputError(f"{uri} is not a location in S3: {error}", "write it like s3://bucket/key") from error
    except ValueError as error:
        if "endpoint" not in str(error):
            raise
        raise ConfigurationError(f"cannot use the store of {uri}: {error}", SETTINGS) from error
    except cut_short as error:
        raise CutShortError(f"the response for {uri} is incomplete: {error}", "run the command again") from error
    except exceptions.BotoCoreError as error:
        if type(error).__name__ in WRONG_SETTINGS:
            raise ConfigurationError(f"cannot use the store of {uri}: {error}", SETTINGS) from error
        raise TransientError(f"cannot reach the store of {uri}: {error}", "check AWS_ENDPOINT_URL") from error


def ask(uri: str, request: Callable[[], T]) -> T:
    """The answer to ``request``, which concerns ``uri``, with errors of this package and repeated where that helps."""

    def once() -> T:
        with s3_errors(uri):
            return request()

    return repeated(uri, once)


def _refusal(uri: str, error: Any) -> RetroError:
    """The error to raise for ``error``, botocore's ClientError: an answer of the store that is not a success."""
    status = error.response["ResponseMetadata"].get("HTTPStatusCode", 0)
    code = error.response["Error"].get("Code", "")
    answer = ": ".join(filter(None, (code or str(status), error.response["Error"].get("Message"))))
    if code == "NoSuchUpload":
        return taken_over(uri)
    if status == 404:
        return missing(uri)
    if status in (409, 412):
        return ConflictError(f"{uri} was changed by another process", "run the command again")
    if status == 416:
        return BadInputError(f"{uri} is shorter than its header says")
    if status == 501 or code == "NotImplemented":
        return ConfigurationError(
            f"the store does not implement a request for {uri}: {answer}",
            f"use another store, or, if that concerns checksums, set {CHECKSUMS}",
        )
    if status not in range(300, 500) or status in (408, 429) or code in TRANSIENT_CODES:
        return TransientError(f"the store failed on {uri}: {answer}")
    if any(word in answer.lower() for word in CHECKSUM_WORDS):
        return ConfigurationError(f"the store refused {uri}: {answer}", f"it may not know checksums: set {CHECKSUMS}")
    if status in (401, 403) or code in CREDENTIAL_CODES:
        return ConfigurationError(
            f"the store refused {uri}: {answer}",
            "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the policy (and the clock of this machine)",
        )
    return ConfigurationError(
        f"the store refused {uri}: {answer}",
        "this is not about credentials: check the bucket, AWS_DEFAULT_REGION, AWS_ENDPOINT_URL and the store's limits",
    )
