"""What may be in a data set: `Sample → Sample | Rejection`, one reason each, the first that applies."""

from data_prep.records import Record, Rejection
from pretrain.config import Config
from pretrain.sample import Sample


class FilterConfig(Config):
    """min_length, max_length: residues of a sequence. letters: those it may have. max_unknown: share of X."""

    min_length: int = 20
    max_length: int = 40_000
    letters: str = "ACDEFGHIKLMNPQRSTVWYXBZUOJ"
    max_unknown: float = 0.5


def check(sample: Sample, first: Record, config: FilterConfig) -> Sample | Rejection:
    """The sample itself if every limit holds. `first`: the protein's first record, which says where it came from."""
    sequence = sample.sequence
    if sequence is None:
        return sample
    problem = _problem(sequence, config)
    return Rejection(problem[0], sample.key, first.source, problem[1], first.position) if problem else sample


def _problem(sequence: str, config: FilterConfig) -> tuple[str, str] | None:
    """(reason, what was seen)."""
    if len(sequence) < config.min_length:
        return "too_short", f"{len(sequence)} residues, min_length is {config.min_length}"
    if len(sequence) > config.max_length:
        return "too_long", f"{len(sequence)} residues, max_length is {config.max_length}"
    strange = sorted(set(sequence) - set(config.letters))
    if strange:
        at = min(sequence.index(letter) for letter in strange)
        return "bad_letters", f"{''.join(strange)!r} at residue {at + 1}; allowed are {config.letters}"
    unknown = sequence.count("X") / len(sequence)
    if unknown > config.max_unknown:
        return "mostly_unknown", f"{unknown:.2f} of {len(sequence)} residues are X"
    return None
