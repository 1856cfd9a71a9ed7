"""Texts that are more or less alike."""

import numpy as np

WORDS = [f"word{number}" for number in range(3000)]


def made(count: int, seed: int = 0) -> list[str]:
    """Texts of random words, and copies of them of which more and more words were replaced."""
    random = np.random.default_rng(seed)
    texts = []
    for _ in range(count):
        words = random.choice(WORDS, int(random.integers(40, 400))).tolist()
        texts.append(" ".join(words))
        for share in (0.0, 0.01, 0.02, 0.03, 0.06, 0.15):
            copy = [random.choice(WORDS) if random.random() < share else word for word in words]
            texts.append(" ".join(copy))
    return [texts[i] for i in random.permutation(len(texts))]
