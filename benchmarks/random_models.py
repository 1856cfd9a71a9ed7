"""Sentence-transformers with random weights in the shapes of published models, for speed where weights do not matter.

python benchmarks/random_models.py FOLDER bge-small qwen3-0.6b
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer

SMALL = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 1536}
BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
SHAPES: dict[str, dict[str, Any]] = {
    "minilm": {"of": "Bert", "pooling": "mean", "config": SMALL | {"num_hidden_layers": 6}},
    "bge-small": {"of": "Bert", "pooling": "cls", "config": SMALL},
    "e5-small": {"of": "Bert", "pooling": "mean", "config": SMALL, "prompt": "passage: "},
    "bge-base": {"of": "Bert", "pooling": "cls", "config": BASE},
    "mpnet": {"of": "MPNet", "pooling": "mean", "config": BASE | {"vocab_size": 30527, "max_position_embeddings": 514}},
    "multilingual-e5-base": {
        "of": "XLMRoberta",
        "pooling": "mean",
        "config": BASE | {"vocab_size": 250002, "max_position_embeddings": 514, "pad_token_id": 1},
        "prompt": "passage: ",
    },
    "modernbert": {
        "of": "ModernBert",
        "pooling": "mean",
        "config": {
            "hidden_size": 768,
            "num_hidden_layers": 22,
            "num_attention_heads": 12,
            "intermediate_size": 1152,
            "vocab_size": 50368,
        },
        "prompt": "search_document: ",
    },
    "nomic": {"of": "NomicBert", "pooling": "mean", "config": BASE, "prompt": "search_document: "},
    "qwen3-0.6b": {
        "of": "Qwen3",
        "pooling": "lasttoken",
        "config": {
            "hidden_size": 1024,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "intermediate_size": 3072,
            "vocab_size": 151669,
        },
        "dtype": "bfloat16",
    },
    "embeddinggemma": {
        "of": "Gemma3Text",
        "pooling": "mean",
        "config": {
            "hidden_size": 768,
            "num_hidden_layers": 24,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "head_dim": 256,
            "intermediate_size": 1152,
            "vocab_size": 262144,
            "sliding_window": 512,
            "use_bidirectional_attention": True,
        },
        "dense": (3072, 768),
        "prompt": "title: none | text: ",
        "dtype": "bfloat16",
    },
}


def write(
    shape: dict[str, Any], tokenizer: str, folder: Path, changed: Callable[[Any], Any] | None = None, longest: int = 512
) -> str:
    """A model of ``shape`` with the files of ``tokenizer``; its folder. ``changed``: of its configuration."""
    inner = folder / "transformer"
    torch.manual_seed(0)
    words = transformers.AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=False)
    words.save_pretrained(inner)
    settings = {"vocab_size": len(words), "pad_token_id": words.pad_token_id or 0} | shape["config"]
    config = getattr(transformers, f"{shape['of']}Config")(**settings)
    if changed:
        changed(config)
    made = getattr(transformers, f"{shape['of']}Model")(config).to(getattr(torch, shape.get("dtype", "float32")))
    made.save_pretrained(inner)
    first = Transformer(str(inner), max_seq_length=longest)
    width = first.get_embedding_dimension()
    modules: list[Any] = [first, Pooling(width, shape["pooling"])]
    for size in shape.get("dense", ()):
        modules.append(Dense(width, size, bias=False, activation_function=torch.nn.Identity()))
        width = size
    prompts = {"document": shape["prompt"]} if "prompt" in shape else {}
    SentenceTransformer(modules=[*modules, Normalize()], prompts=prompts, device="cpu").save(str(folder / "model"))
    return str(folder / "model")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="+", choices=SHAPES)
    parser.add_argument("--tokenizer", required=True)
    arguments = parser.parse_args()
    for name in arguments.names:
        print(write(SHAPES[name], arguments.tokenizer, arguments.folder / name))


if __name__ == "__main__":
    main()
