"""What a tokenizer puts around a pair of texts: BERT's `[CLS] a [SEP] b [SEP]`, RoBERTa's `<s>a</s></s>b</s>`."""

from dataclasses import dataclass

import numpy as np

from emmental.utils.errors import InputError


@dataclass(frozen=True)
class PairTemplate:
    """The special tokens before, between and after two texts, and the type ids of all five parts.

    A part's type ids are those of its tokens, a text's is one.
    """

    before: list[int]
    between: list[int]
    after: list[int]
    types: tuple[list[int], int, list[int], int, list[int]]

    @property
    def special(self) -> int:
        return len(self.before) + len(self.between) + len(self.after)

    def token_types(self, first: int, second: int) -> np.ndarray:
        """The type ids of two texts of `first` and `second` tokens with all that is around them."""
        before, one, between, other, after = self.types
        return np.array([*before, *[one] * first, *between, *[other] * second, *after], dtype=np.int8)


def has_token_types(tokenizer) -> bool:
    """Whether its model distinguishes the two texts of a pair; where not, all type ids are 0."""
    return "token_type_ids" in tokenizer.model_input_names


def pair_template(tokenizer) -> PairTemplate:
    """The template of a fast tokenizer, read off a pair that it has put together."""
    encoded = tokenizer("a", "a", return_token_type_ids=True, verbose=False)
    ids, sequence = encoded["input_ids"], encoded.sequence_ids(0)
    types = encoded["token_type_ids"] if has_token_types(tokenizer) else [0] * len(ids)
    if not {0, 1} <= set(sequence):
        raise InputError(f"{tokenizer.name_or_path}: its tokenizer makes no pair of two texts")
    first, second = sequence.index(0), sequence.index(1)
    end = len(sequence) - sequence[::-1].index(1)
    between = first + sequence.count(0)
    return PairTemplate(
        before=ids[:first],
        between=ids[between:second],
        after=ids[end:],
        types=(types[:first], types[first], types[between:second], types[second], types[end:]),
    )
