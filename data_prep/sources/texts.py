"""Descriptions of function in a table: one row per protein, a column for its accession and one for the text."""

from typing import Literal

from data_prep.records import Items, Rejection, TextRecord
from data_prep.sources.files import Files, Stream
from pretrain.config import Config
from pretrain.sample import Text


class TextColumns(Config):
    accession: str = "uniprot"
    text: str = "description"


class Texts(Files):
    """`kind = "texts"`: TSV or CSV with a header, `.gz` or not. `name` becomes the origin of its texts."""

    kind: Literal["texts"] = "texts"
    columns: TextColumns = TextColumns()

    def parse(self, stream: Stream) -> Items:
        for line in self.rows(stream, self.columns.model_dump()):
            if isinstance(line, Rejection):
                yield line
                continue
            position, row = line
            if row["text"]:
                text = Text(row["text"], self.name or "texts")
                yield TextRecord(row["accession"], stream.name, text, position)
            else:
                yield Rejection("empty_text", row["accession"], stream.name, position=position)
