"""What may be in a data set: `Sample → Sample | Rejection`, one reason each, the first that applies."""

from data_prep.records import Rejection
from pretrain.config import Config
from pretrain.sample import Sample


class FilterConfig(Config):
    """min_length, max_length: residues of a sequence. letters: those it may have. max_unknown: share of X."""

    min_length: int = 20
    max_length: int = 40_000
    letters: str = "ACDEFGHIKLMNPQRSTVWYXBZUOJ"
    max_unknown: float = 0.5


def check(sample: Sample, source: str, config: FilterConfig) -> Sample | Rejection:
    """The sample itself if every limit holds. `source`: the file that its first record came from."""
    sequence = sample.sequence
    if sequence is None:
        return sample
    if len(sequence) < config.min_length:
        return Rejection(
            "too_short", sample.key, source, f"{len(sequence)} residues, min_length is {config.min_length}"
        )
    if len(sequence) > config.max_length:
        return Rejection("too_long", sample.key, source, f"{len(sequence)} residues, max_length is {config.max_length}")
    strange = sorted(set(sequence) - set(config.letters))
    if strange:
        at = min(sequence.index(letter) for letter in strange)
        return Rejection(
            "bad_letters", sample.key, source, f"{''.join(strange)!r} at residue {at + 1}; allowed are {config.letters}"
        )
    unknown = sequence.count("X") / len(sequence)
    if unknown > config.max_unknown:
        return Rejection("mostly_unknown", sample.key, source, f"{unknown:.2f} of {len(sequence)} residues are X")
    return sample
