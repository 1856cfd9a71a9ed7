"""The parameters of a run."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Parameters:
    """Everything a run may choose. The trigger form and the flags of ``plan`` mirror these fields.

    ``None`` means: derived by the stage, which records what it took and why in its report.
    """

    tokenizer: str = "t5-base"
    pad_id: int | None = None
    chunk_size: int = 64
    max_chunks: int | None = None
    token_dtype: str = "auto"
    on_bad_record: str = "quarantine"
    max_bad_share: float = 0.5
    model: str = "sentence-transformers/all-MiniLM-L6-v2"
    embed_input: str = "text"
    batch_size: int | None = None
    index_type: str = "auto"
    index_memory: str | None = None
    index_too_small: str = "fail"
    max_training_vectors: int | None = None
    seed: int = 0
    num_neighbours: int = 4
    profile: str = "default"
    nprobe: int | None = None
    retrieval_margin: int | None = None
    target_recall: float = 0.95
    recall_sample: int = 2000
    max_overlap: float | None = None
    max_shared_run: int | None = None
    max_shared_ngrams: float | None = None
    min_recall: float = 0.8
    min_full_rows: float = 0.0
    max_duplicates: float = 1.0
    max_leaked: float = 1.0
    max_imbalance: float | None = None
    max_drift: float = 0.25
    device: str = "auto"
    shard_index: bool = False
    memory_budget: str = "2GiB"
    search_memory: str | None = None
    duplicates: str = "keep"
    duplicate_threshold: float = 0.8
