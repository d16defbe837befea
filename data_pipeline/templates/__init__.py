"""Instruction templates: messages -> the text and the ids that a model sees, and which of them it must learn."""

from data_pipeline.templates.encode import EncodedRows, encode_prompt, encode_row, encode_rows
from data_pipeline.templates.load import load_template, template_names
from data_pipeline.templates.template import Message, Piece, Template, TemplateError

__all__ = [
    "EncodedRows",
    "Message",
    "Piece",
    "Template",
    "TemplateError",
    "encode_prompt",
    "encode_row",
    "encode_rows",
    "load_template",
    "template_names",
]
