"""Opens a sentence-transformers model: its weights, its prompt for documents, and what identifies its vectors."""

import contextlib
import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retro_ops.errors import BadInputError, ConfigurationError
from retro_ops.plan.parameters import Parameters
from retro_ops.tokens import hub_names
from retro_ops.tokens.tokenizer import text_digest

DOCUMENT_PROMPTS = ("document", "passage", "corpus")
"""Names of prompts for documents, in the order in which ``encode_document`` of sentence-transformers looks for them."""

TOKENIZER_OF_THE_DEFAULT = "9114256b104cca80"
"""Digest of the tokenizer of all-MiniLM-L6-v2, which many models share. It was in no digest of the first versions."""

DECIDING_SETTINGS = (
    *("num_attention_heads", "n_heads", "n_head", "num_heads", "num_key_value_heads", "head_dim", "d_kv"),
    *("hidden_act", "hidden_activation", "activation", "activation_function", "dense_act_fn", "feed_forward_proj"),
    *("layer_norm_eps", "layer_norm_epsilon", "norm_eps", "rms_norm_eps", "position_embedding_type", "pad_token_id"),
    *("rope_theta", "rope_parameters", "rope_scaling", "global_rope_theta", "local_rope_theta", "rotary_emb_base"),
    *("sliding_window", "local_attention", "global_attn_every_n_layers", "layer_types", "attention_window"),
    *("query_pre_attn_scalar", "attention_multiplier", "embedding_multiplier", "residual_multiplier"),
    *("attn_logit_softcapping", "final_logit_softcapping", "use_bidirectional_attention", "is_decoder", "is_causal"),
    *("relative_attention_num_buckets", "relative_attention_max_distance", "norm_type", "parallel_attention", "alibi"),
)
"""Settings in the ``config.json`` of a transformer that change its vectors and not its weights. Named, because others
come and go with the version of transformers, and would rename the outputs of every dataset."""

SETTINGS_OF_THE_DEFAULT = "2a303612b3fa4d41"
"""Digest of these settings of all-MiniLM-L6-v2, which were in no digest of the first versions."""

LIMIT = 16_384
"""More ids than any chunk has; a batch must hold as many."""


@dataclass(frozen=True)
class Model:
    """``network``: the SentenceTransformer, on the CPU, in the type that its weights are stored in.

    ``prompt``: text before each chunk; ``digest`` identifies the vectors: weights, modules, prompt and ``dimension``;
    ``longest``: number of ids that it reads of a text, special ones included.
    """

    network: Any
    prompt: str
    digest: str
    dimension: int
    longest: int

    @property
    def transformer(self) -> Any | None:
        """The model of transformers inside, None if there is none."""
        return getattr(self.network[0], "model", None)

    @property
    def tokenizer(self) -> Any | None:
        """The model's own tokenizer of transformers, None if it has none with a tokenizer.json."""
        found = getattr(self.network, "tokenizer", None)
        return found if getattr(found, "is_fast", False) else None

    @property
    def modules(self) -> list[str]:
        return [type(module).__name__ for module in self.network]

    def operations(self, tokens: int) -> float:
        """Multiplications and additions for a text of ``tokens`` ids: products with weights, and attention."""
        import torch

        linear = (
            module.weight.numel()
            for name, module in self.network.named_modules()
            if isinstance(module, torch.nn.Linear) and "pooler" not in name
        )
        config = getattr(self.transformer, "config", None)
        heads, layers, size = (
            getattr(config, name, None) or 0 for name in ("num_attention_heads", "num_hidden_layers", "hidden_size")
        )
        width = heads * (getattr(config, "head_dim", None) or 0) or size
        return float(2 * sum(linear) * tokens + 4 * layers * width * tokens**2)

    @property
    def bytes(self) -> int:
        """Size of the weights in float32."""
        return 4 * sum(int(parameter.numel()) for parameter in self.network.parameters())

    @property
    def stored_dtype(self) -> str:
        """``float32``, ``float16`` or ``bfloat16``."""
        first = next((parameter.dtype for parameter in self.network.parameters()), None)
        return str(first).removeprefix("torch.")


def open_model(
    name: str, prompt: str | None = None, dimensions: int | None = None, *, trust_remote_code: bool = False
) -> Model:
    """The model ``name``, a hub name or local folder.

    ``prompt``: the name of one of its prompts, or a text; None: its own prompt for documents. ``dimensions``: keeps the
    first dimensions of each vector, for models trained for it. No code of the model runs unless ``trust_remote_code``.
    ConfigurationError if it cannot be loaded or has pickled weights.
    """
    hub_names.check_folder("model", name)
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    _refuse_pickles(name)
    try:
        with _refused_code() as refused:
            network = SentenceTransformer(
                name,
                device="cpu",
                trust_remote_code=trust_remote_code,
                # Kernels of the hub, which a model can ask for, are code too.
                model_kwargs={"use_safetensors": True, "allow_all_kernels": False},
            )
        if refused:
            raise ValueError(refused[0])
    except Exception as error:  # Of a damaged or unknown model: loading raises any type.
        raise hub_names.not_loaded("model", name, error, _hint(str(error))) from error
    return _opened(network.eval(), name, prompt, dimensions)


def _opened(network: Any, name: str, prompt: str | None, dimensions: int | None) -> Model:
    own = network.truncate_dim
    network.truncate_dim = None
    whole = int(network.get_embedding_dimension() or 0)
    if not whole:
        raise BadInputError(f"model {name!r} gives no vectors of a fixed size", "use a model that embeds texts")
    if dimensions is not None and dimensions > whole:
        raise BadInputError(
            f"--embed-dimensions is {dimensions}, but {name!r} has {whole}", f"give a number from 1 to {whole}"
        )
    network.truncate_dim = kept = dimensions or own or whole
    text = _prompt(network, prompt)
    decides = [text or None, kept if kept != whole else None]
    return Model(network, text, _digest(network, decides), kept, _longest(network))


def chosen_model(parameters: Parameters) -> Model:
    return open_model(
        parameters.model,
        parameters.embed_prompt,
        parameters.embed_dimensions,
        trust_remote_code=parameters.trust_remote_code,
    )


def _prompt(network: Any, requested: str | None) -> str:
    prompts: dict[str, str] = network.prompts or {}
    if requested is not None:
        return str(prompts.get(requested, requested))
    for name in DOCUMENT_PROMPTS:
        if prompts.get(name):
            return str(prompts[name])
    return str(prompts.get(network.default_prompt_name) or "")


def _digest(network: Any, decides: list[Any]) -> str:
    """SHA-256 over everything that decides the vectors: independent of where the model is stored.

    These are module types, their settings and all weights; then, where they are not as in the first versions of this
    package, so that the names of their outputs stay: ``decides`` (prompt and dimensions), tokenizer, settings and type.
    """
    import torch

    digest = hashlib.sha256()
    for module in network:
        settings = module.get_config_dict() if hasattr(module, "get_config_dict") else {}
        digest.update(type(module).__name__.encode())
        digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    digest.update(str(network.max_seq_length).encode())
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        # NumPy has no bfloat16.
        digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy())
    if decides != [None, None]:
        digest.update(json.dumps(decides).encode())
    if (tokenizer := _tokenizer_digest(network)) != TOKENIZER_OF_THE_DEFAULT:
        digest.update(f"tokenizer {tokenizer}".encode())
    if (settings_digest := _settings_digest(network)) not in (None, SETTINGS_OF_THE_DEFAULT):
        digest.update(f"settings {settings_digest}".encode())
    if any(tensor.dtype == torch.bfloat16 for tensor in network.state_dict().values()):
        digest.update(b"bfloat16")  # Bytes of float16 would be as many.
    return digest.hexdigest()[:16]


def _settings_digest(network: Any) -> str | None:
    """Identifies the settings of the transformer that decide its vectors beside the weights; None without one."""
    config = getattr(getattr(network[0], "model", None), "config", None)
    if config is None:
        return None
    values = {name: getattr(config, name, None) for name in DECIDING_SETTINGS}
    chosen = {name: value for name, value in values.items() if value not in (None, False, "absolute")}
    return text_digest(json.dumps(chosen, sort_keys=True, default=str))


def _tokenizer_digest(network: Any) -> str:
    """Identifies the model's own tokenizer, without its settings for padding and truncation."""
    from tokenizers import Tokenizer

    found: Any = getattr(network, "tokenizer", None)
    backend = found if isinstance(found, Tokenizer) else getattr(found, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        words = found.get_vocab() if hasattr(found, "get_vocab") else None
        return text_digest(json.dumps([type(found).__name__, words], sort_keys=True))
    plain = Tokenizer.from_str(backend.to_str())
    plain.no_padding()
    plain.no_truncation()
    return text_digest(plain.to_str())


def _longest(network: Any) -> int:
    """Number of ids that the model reads of a text, or LIMIT: transformers says 10^30 where there is no limit."""
    return int(min(getattr(network, "max_seq_length", None) or LIMIT, LIMIT))


@contextlib.contextmanager
def _refused_code() -> Iterator[list[str]]:
    """Warnings that code of the model was left out: sentence-transformers goes on without it, with other vectors."""
    messages: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "trust_remote_code" in record.getMessage():
                messages.append(record.getMessage())

    logger, handler = logging.getLogger("sentence_transformers"), Handler(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield messages
    finally:
        logger.removeHandler(handler)


def _refuse_pickles(name: str) -> None:
    """Pickled weights can contain code, so a local folder must hold them as safetensors, in every folder of a module.

    Models of the hub: transformers is told to load safetensors only; other modules read theirs with ``weights_only``.
    """
    folder = Path(name)
    if not folder.is_dir():
        return
    for pickled in sorted(folder.rglob("pytorch_model*.bin")):
        if not any(pickled.parent.glob("model*.safetensors")):
            raise ConfigurationError(
                f"{pickled} is pickled, and pickled weights can contain code",
                "save the model with safetensors: SentenceTransformer(NAME).save_pretrained(FOLDER), on a machine "
                "where its code may run",
            )


def _hint(message: str) -> str:
    if "trust_remote_code" in message:
        return "the model contains its own Python code; if you trust it, use --trust-remote-code"
    if "safetensors" in message:
        return "use a revision with safetensors: pickled weights can contain code and are not loaded"
    return hub_names.HINT
