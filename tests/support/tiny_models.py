"""Small sentence-transformers with random weights, of any architecture of transformers, as folders."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

BERT = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 80}
DECODER = BERT | {"num_key_value_heads": 2, "head_dim": 16, "num_hidden_layers": 2}
CONFIGS: dict[str, dict[str, Any]] = {
    "Bert": BERT,
    "Roberta": BERT,
    "XLMRoberta": BERT,
    "Camembert": BERT,
    "DistilBert": {"dim": 48, "n_layers": 2, "n_heads": 4, "hidden_dim": 80},
    "MPNet": BERT,
    "NomicBert": BERT,
    "ModernBert": BERT | {"local_attention": 16, "global_attn_every_n_layers": 2},
    "Llama": DECODER,
    "Mistral": DECODER | {"sliding_window": 8},
    "Qwen2": DECODER,
    "Qwen3": DECODER,
    "Gemma3Text": DECODER | {"sliding_window": 8, "query_pre_attn_scalar": 16},
    "Gemma3Text both ways": DECODER | {"sliding_window": 16, "use_bidirectional_attention": True},
}
"""By name of the model in transformers, which a remark may follow."""


def transformer(name: str, **settings: Any) -> Any:
    """A model with random weights, including biases and norms, as in a trained one."""
    import torch
    import transformers

    of = name.partition(" ")[0]
    torch.manual_seed(0)
    common = {"vocab_size": 100, "pad_token_id": 1, "max_position_embeddings": 80}
    config = getattr(transformers, f"{of}Config")(**common | CONFIGS[name] | settings)
    made = getattr(transformers, f"{of}Model")(config).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return made


def wordpiece(texts: Sequence[str]) -> Any:
    """A tokenizer of transformers with BERT's conventions, trained on ``texts``."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=2000, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", special.index("[CLS]")), ("[SEP]", special.index("[SEP]"))]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, mask_token="[MASK]", **names)


def write(
    folder: Path,
    name: str,
    tokenizer: Any,
    pooling: str | Sequence[str] = "mean",
    *,
    longest: int = 64,
    dense: int | None = None,
    prompts: dict[str, str] | None = None,
    dtype: str = "float32",
    **settings: Any,
) -> str:
    """A sentence-transformer around ``transformer(name)``; its folder. ``dense``: size of a further layer."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer

    inner = folder / "inner"
    tokenizer.save_pretrained(inner)
    sizes = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id or 0, "max_position_embeddings": 600}
    transformer(name, **sizes | settings).to(getattr(torch, dtype)).save_pretrained(inner)
    first = Transformer(str(inner), max_seq_length=longest)
    pooled = Pooling(first.get_embedding_dimension(), pooling)
    width = pooled.pooling_output_dimension
    more: list[Any] = [Dense(width, dense).to(getattr(torch, dtype))] if dense else []
    network = SentenceTransformer(modules=[first, pooled, *more, Normalize()], prompts=prompts, device="cpu")
    network.save(str(folder / "model"))
    return str(folder / "model")
