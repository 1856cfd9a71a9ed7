"""Reads RETRO retrieval datasets: chunks, neighbours, documents and text, from a folder or an object store."""

from retro_data.dataset import Dataset, open_dataset
from retro_data.documents import Document
from retro_data.split import Rows, Split, Windows

__all__ = ["Dataset", "Document", "Rows", "Split", "Windows", "open_dataset"]
