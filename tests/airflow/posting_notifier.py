"""A notifier as a provider would have it, which posts its text."""

import urllib.request
from collections.abc import Sequence
from typing import Any

from airflow.sdk import BaseNotifier


class PostingNotifier(BaseNotifier):
    template_fields: Sequence[str] = ("text",)

    def __init__(self, url: str, text: str) -> None:
        super().__init__()
        self.url, self.text = url, text

    def notify(self, context: Any) -> None:
        urllib.request.urlopen(urllib.request.Request(self.url, self.text.encode()), timeout=30).close()
