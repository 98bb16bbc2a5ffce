"""Where reviews come from: files (CSV, JSON Lines, Parquet; local or S3) and SQL tables, read in bounded memory."""

from reviewclf.data.sources.files import SourceFile
from reviewclf.data.sources.listing import list_source, read_chunks
from reviewclf.data.sources.rows import Chunk
from reviewclf.data.sources.sql import SqlSource

__all__ = ["Chunk", "SourceFile", "SqlSource", "list_source", "read_chunks"]
