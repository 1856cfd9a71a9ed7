"""Locations as text: local paths and ``s3://`` URIs, taken apart and put together. Nothing is opened."""

import posixpath
import re


def join(folder: str, *names: str) -> str:
    return "/".join((folder.rstrip("/"), *names))


def beside(uri: str, suffix: str) -> str:
    """A companion of ``uri``: (``a/chunks.npy``, ``report.json``) -> ``a/chunks.report.json``."""
    folder, slash, name = uri.rpartition("/")
    stem = re.sub(r"\.(npy|index|json)$", "", name)
    return f"{folder}{slash}{stem}.{suffix}"


def parent(uri: str) -> str:
    """Folder of ``uri``, without a final slash: ``s3://bucket/a/b.json`` -> ``s3://bucket/a``."""
    return uri.rpartition("/")[0] if "/" in uri else "."


def file_name(uri: str) -> str:
    """Name of the file at ``uri``, without the checksum of https: ``https://host/a.jsonl#sha256=…`` -> ``a.jsonl``."""
    path = uri.partition("#")[0].partition("?")[0] if uri.startswith("https://") else uri
    return path.rpartition("/")[2]


def split_scheme(uri: str) -> tuple[str, str]:
    """``s3://bucket/key`` -> (``s3://bucket``, ``/key``); a local path -> (````, path)."""
    if "://" not in uri:
        return "", uri
    scheme, _, rest = uri.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host}", slash + path


def resolve(path: str, spec_uri: str) -> str:
    """Absolute location of a ``path`` written in the spec at ``spec_uri``."""
    if "://" in path or path.startswith("/"):
        return path
    prefix, folder = split_scheme(parent(spec_uri))
    return prefix + posixpath.normpath(posixpath.join(folder or "/", path))


def relative(uri: str, folder: str) -> str:
    """``uri`` as written into a spec that lies in ``folder``."""
    prefix, path = split_scheme(uri)
    folder_prefix, folder_path = split_scheme(folder)
    if prefix != folder_prefix:
        return uri
    return posixpath.relpath(path, folder_path or "/")
