"""Proteins as an exported model takes them: no choice left to make, what cannot be embedded refused by name."""

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from pretrain.data.draw import WHOLE, InputSpec, sees
from pretrain.embeddings import named
from pretrain.sample import Function, Modality, Sample

log = logging.getLogger("pretrain.inference")


def first(sample: Sample, spec: InputSpec) -> Sample:
    """The sample with no choice left to make: one structure (the best ranked that the model can see), one text.

    Raises ValueError for what is no Sample, such as a file's name.
    """
    if not isinstance(sample, Sample):
        raise ValueError(f"{sample!r:.60} is no protein (Sample); fourfold.read makes proteins of a file")
    end = spec.sequence_max if sample.sequence and Modality.SEQUENCE in spec.modalities else WHOLE
    met = [structure for structure in sample.structures if structure.residue[0] < end]
    function = sample.function
    if function is not None:
        function = Function(function.terms, function.texts[:1])
    return replace(sample, structures=tuple(met[:1]), function=function, images=sample.images[: spec.max_images])


def check(samples: list[Sample], spec: InputSpec) -> tuple[str, ...]:
    """Refuse what cannot be embedded; name, warn of and return what will lose residues."""
    if not samples:
        raise ValueError("there are no proteins")
    keys = [sample.key for sample in samples]
    if repeated := sorted(key for key, count in Counter(keys).items() if count > 1):
        raise ValueError(f"keys must be unique; {named(repeated)} come more than once")
    if empty := [sample.key for sample in samples if not sees(sample, spec)]:
        how = f" (function as texts{' or GO terms' if spec.terms else ''})" if "function" in spec.modalities else ""
        raise ValueError(f"{named(empty)}: nothing that this model sees; it takes {', '.join(spec.modalities)}{how}")
    limits = f"{spec.sequence_max:,} residues of a sequence"
    limits += f" and {spec.structure_max:,} of a structure" if spec.structure_max else ""
    cut = tuple(sample.key for sample in samples if _cut(sample, spec))
    if spec.terms is not None:
        ids = [term.id for sample in samples if sample.function for term in sample.function.terms]
        if unknown := spec.terms.unknown(ids):
            log.warning("%s: not among the GO terms that this model was trained with; left out", named(unknown))
    if cut:
        log.warning("%s: longer than this model's encoders take; only the first %s are seen", named(cut), limits)
    return cut


def _cut(sample: Sample, spec: InputSpec) -> bool:
    long = (
        bool(sample.sequence)
        and Modality.SEQUENCE in spec.modalities
        and len(sample.sequence or "") > spec.sequence_max
    )
    folded = Modality.STRUCTURE in spec.modalities and spec.structure_max is not None
    return long or (folded and any(len(structure) > (spec.structure_max or 0) for structure in sample.structures))


def batches(samples: list[Sample], tokens: int) -> Iterator[list[int]]:
    """Positions of samples, near in length, at most `tokens` residues together (a longer one alone)."""
    sizes = [len(s.sequence or "") + sum(map(len, s.structures)) + 64 for s in samples]  # 64: a text, an image
    batch: list[int] = []
    total = 0
    for i in sorted(range(len(samples)), key=lambda i: sizes[i]):
        if batch and total + sizes[i] > tokens:
            yield batch
            batch, total = [], 0
        batch.append(i)
        total += sizes[i]
    if batch:
        yield batch
