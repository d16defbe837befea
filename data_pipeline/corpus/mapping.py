"""Which columns of a row make which cells of a record: the `columns` of an input's config."""

from __future__ import annotations

from pydantic import Field, model_validator

from data_pipeline.config import Config

_EXAMPLE_KEYS = frozenset({"text_a", "text_b", "text_c", "label", "score"})
_ANSWERED_KEYS = frozenset({"prompt", "chosen", "rejected", "answers", "ranking", "ratings", "answer", "is_desirable"})


class Columns(Config):
    """Where a row keeps what a record is made of: columns, or paths into them such as `taskinfo.output`.

    Which keys a kind of record takes is told by `kinds.py`.
    """

    instruction: str = ""
    output: str = ""
    input: str = Field(default="", description="what the instruction is about, kept apart from it as Alpaca does")
    system: str = ""
    messages: str = Field(default="", description="the list of turns, in place of instruction and output")
    id: str = Field(default="", description="'' = a row's own `id` where it has one, else its position")
    text_a: str = Field(default="", description="the text, or the first of two")
    text_b: str = ""
    text_c: str = Field(default="", description="of a triplet: what is not meant by text_a (hard negative)")
    label: str = Field(default="", description="the class of a row")
    score: str = Field(default="", description="how much the two texts of a row have in common, a number")
    prompt: str = Field(default="", description="what was asked: a text, or a list of turns that ends with the user's")
    chosen: str = Field(default="", description="the better answer: a text, or turns that end with it")
    rejected: str = ""
    answers: str = Field(default="", description="several answers: a list, a path such as answers[].text, or answer_*")
    ranking: str = Field(default="", description="the rank of each of the answers, the lowest is best; as answers")
    ratings: str = Field(default="", description="a number for each of the answers, the highest is best; as answers")
    answer: str = Field(default="", description="the answer that was judged, or one to compare others with")
    is_desirable: str = Field(default="", description="whether the answer is as it should be: true or false, 1 or 0")

    @property
    def named(self) -> dict[str, str]:
        """The keys that are set."""
        return {key: name for key, name in self if name}

    @model_validator(mode="after")
    def _is_one_form(self) -> Columns:
        if self.ranking and self.ratings:
            raise ValueError(
                f"got ranking: {self.ranking} and ratings: {self.ratings}; name the one that the answers are to be "
                "compared by"
            )
        if self.named.keys() & (_EXAMPLE_KEYS | _ANSWERED_KEYS):
            return self
        has_pair = bool(self.instruction and self.output)
        is_mixed = self.messages and (self.instruction or self.output or self.input)
        if is_mixed or not (self.messages or has_pair):
            named = ", ".join(f"{key}: {name}" for key, name in self.named.items()) or "nothing"
            raise ValueError(
                f"got {named}; name instruction and output, or messages alone; of other records text_a and label, "
                "text_a and text_b, or prompt with chosen and rejected"
            )
        return self
