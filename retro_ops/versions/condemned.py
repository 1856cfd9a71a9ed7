"""The digests of damaged outputs, which are never used again."""

import json
from collections.abc import Iterable

from retro_ops.plan import paths
from retro_ops.storage import store


def read_condemned(root: str, dataset: str) -> tuple[str, ...]:
    """Digests of all outputs of the dataset that were found damaged."""
    stored = store.at(root).read_tagged(paths.condemned_uri(root, dataset))
    return tuple(json.loads(stored[0])["digests"]) if stored else ()


def condemn(root: str, dataset: str, digests: Iterable[str]) -> None:
    """Add ``digests`` to the damaged outputs. Raises ConflictError if another process changed the list meanwhile."""
    uri = paths.condemned_uri(root, dataset)
    stored = store.at(uri).read_tagged(uri)
    known = json.loads(stored[0])["digests"] if stored else []
    wanted = list(dict.fromkeys([*known, *digests]))
    if wanted != known:
        data = json.dumps({"format": 1, "digests": wanted}, indent=1) + "\n"
        store.at(uri).write_if(uri, data.encode(), stored[1] if stored else None)
