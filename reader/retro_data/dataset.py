"""Opens datasets."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from retro_data.arrays import Array, Chunks, Shard
from retro_data.cache import Cache
from retro_data.documents import Documents
from retro_data.split import Split
from retro_data.text import Decoder
from retro_ops.errors import BadInputError
from retro_ops.plan import paths
from retro_ops.plan.specs import DatasetShard, IndexShard
from retro_ops.storage import npy, read_ahead, store
from retro_ops.uris import join, parent
from retro_ops.versions import history, leases, version_files
from retro_ops.versions.version_files import SplitFiles

PAD_ID = 0
"""The pad id of the original's trainer, for datasets that do not say theirs."""


@dataclass(frozen=True)
class Dataset:
    """One version of a dataset. Publishing and pruning do not change it while it is open.

    ``splits``: by name, ``"train"`` and, with a validation corpus, ``"val"``. ``manifest``: parameters, tokenizer and
    shards of the version; empty for a dataset of the original scripts.
    """

    uri: str
    version: int | None
    """Number of the version; None for a folder that is no published dataset."""
    splits: Mapping[str, Split]
    manifest: Mapping[str, Any] = field(repr=False)
    _lease: leases.Lease | None = field(default=None, repr=False)

    @property
    def train(self) -> Split:
        return self._split("train")

    @property
    def val(self) -> Split:
        return self._split("val")

    def close(self) -> None:
        """Let `prune` remove the version again. What is in the cache can still be read."""
        if self._lease:
            self._lease.close()

    def __getstate__(self) -> dict[str, Any]:
        """For another process, which reads while this one keeps the lease."""
        return {**self.__dict__, "_lease": None}

    def __enter__(self) -> "Dataset":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _split(self, name: str) -> Split:
        if name not in self.splits:
            remedy = f"use dataset.{' or dataset.'.join(self.splits)}"
            if name == "val":
                remedy += ", or build the dataset with a validation corpus (--validation-corpus)"
            raise BadInputError(f"{self.uri} has no split {name!r}", remedy)
        return self.splits[name]


def open_dataset(
    uri: str,
    version: int | None = None,
    cache: str | None = None,
    *,
    lease: bool = True,
    tokenizer: str | None = None,
) -> Dataset:
    """Open a dataset: a published one, an exported folder, or a dataset spec.

    ``uri``: ``<root>/<dataset>`` with a ``current.json``, a folder with a ``train.data.spec.json``, or a ``.json``
    file; local or ``s3://``. ``version``: a number (default: the current one, looked up once). ``cache``: folder for
    copies of remote files (default ``$RETRO_DATA_CACHE``, else ``~/.cache/retro-data``). ``lease``: keep the version
    from `prune` until ``close``, which needs permission to write; otherwise `prune --keep-version` must.
    ``tokenizer``: name or folder, for a dataset that does not say which one it was made with.

    Raises BadInputError if there is no such dataset or version.
    """
    uri = uri.rstrip("/")
    if uri.endswith(".json"):
        return _of_spec(uri, Cache(cache), tokenizer)
    root, name = parent(uri), uri.rpartition("/")[2]
    if not store.exists(join(uri, "current.json")):
        return _of_folder(uri, version, Cache(cache, exported=uri), tokenizer)
    held, series = leases.take(root, name, version) if lease else (None, history.read(root, name))
    try:
        entry = series.entry(None if lease else version)
        run = series.run_uri(entry["version"])
        stored = paths.tokenizer_uri(run) if run else None
        splits, manifest = _opened(series.folder(entry["version"]), Cache(cache), tokenizer, stored)
    except BaseException:
        if held:
            held.close()
        raise
    return Dataset(uri, entry["version"], splits, manifest, held)


def _of_folder(uri: str, version: int | None, cache: Cache, tokenizer: str | None) -> Dataset:
    if not store.exists(paths.manifest_in(uri)):
        raise BadInputError(
            f"{uri} is not a dataset: it has neither current.json nor manifest.json",
            "name <root>/<dataset>, a folder that `retro-ops export` wrote, or a dataset spec",
        )
    if version is not None:
        raise BadInputError(f"{uri} is an exported folder, which has one version", "leave out the version")
    splits, manifest = _opened(uri, cache, tokenizer, join(uri, "tokenizer.json"))
    return Dataset(uri, None, splits, manifest)


def _of_spec(uri: str, cache: Cache, tokenizer: str | None) -> Dataset:
    dataset, index = version_files.read_specs(uri)
    names = [[version_files.name_of(shard.chunks) for shard in shards] for shards in (dataset.shards, index)]
    files = SplitFiles(dataset, index, tuple(names[0]), tuple(names[1]))
    split = _split("train", files, PAD_ID, {}, _Arrays(cache), Documents(cache), Decoder(None, tokenizer))
    return Dataset(uri, None, {"train": split}, {})


def _opened(
    folder: str, cache: Cache, tokenizer: str | None, stored: str | None
) -> tuple[dict[str, Split], dict[str, Any]]:
    found = version_files.read(folder)
    manifest, documents = found.manifest, Documents(cache)
    decoder = Decoder(None if tokenizer else stored, tokenizer or manifest["parameters"].get("tokenizer"))
    others = history.embeddings_of_others(manifest, paths.manifest_in(folder))
    pad_id, arrays = manifest["identity"]["pad_id"], _Arrays(cache)
    splits = {
        str(name): _split(name, files, pad_id, others, arrays, documents, decoder)
        for name, files in found.splits.items()
    }
    return splits, manifest


def _split(
    name: str,
    files: SplitFiles,
    pad_id: int,
    others: Mapping[str, str],
    arrays: "_Arrays",
    documents: Documents,
    decoder: Decoder,
) -> Split:
    embeddings = {**others, **{n: s.embeddings for n, s in zip(files.indexed, files.index, strict=True)}}

    def opened(pair: tuple[str, IndexShard | DatasetShard]) -> Shard:
        of, shard = pair
        return _shard(of, shard, embeddings.get(of), arrays)

    queried = read_ahead.side_by_side(opened, zip(files.queried, files.dataset.shards, strict=True))
    indexed = read_ahead.side_by_side(opened, zip(files.indexed, files.index, strict=True))
    return Split(name, Chunks(queried, pad_id), Chunks(indexed, pad_id), documents, decoder)


class _Arrays:
    """Opens each array once: the splits share those of the index."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._opened: dict[str, Array] = {}

    def open(self, uri: str, ndim: int, kind: str, rows: int | None = None) -> Array:
        if uri not in self._opened:
            self._opened[uri] = Array(npy.open_npy(uri, ndim=ndim, kind=kind), self._cache)
        found = self._opened[uri]
        if rows is not None and len(found) != rows:
            raise BadInputError(f"{uri} has {len(found):,} rows, its shard {rows:,} chunks", "rebuild the shard")
        return found


def _shard(name: str, files: IndexShard | DatasetShard, embeddings: str | None, arrays: _Arrays) -> Shard:
    chunks = arrays.open(files.chunks, 2, "u")
    neighbours = distances = None
    if isinstance(files, DatasetShard):
        neighbours = arrays.open(files.neighbours, 2, "i", len(chunks))
        near = paths.distances_uri(files.neighbours)
        distances = arrays.open(near, 2, "f", len(chunks)) if store.exists(near) else None
    seq2chunk, chunk2seq = arrays.open(files.seq2chunk, 1, "iu"), arrays.open(files.chunk2seq, 1, "iu", len(chunks))
    return Shard(name, chunks, seq2chunk, chunk2seq, neighbours, distances, embeddings)
