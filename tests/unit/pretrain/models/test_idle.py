"""Settings that nothing would read are refused, where what was meant would be lost."""

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from pretrain.models import ModelConfig

IDLE = [
    ({"kind": "amma", "variant": "contrastive", "sees": "symmetric"}, "sees does nothing where variant = contrastive"),
    ({"kind": "amma", "variant": "contrastive", "loss_on": "all"}, "loss_on does nothing"),
    ({"kind": "amma", "variant": "contrastive", "weights": {"sequence": 2}}, "weights does nothing"),
    ({"kind": "amma", "modalities": ["sequence"], "confidence_weighted": True}, "nothing without structure"),
    ({"kind": "fourfold", "rounds": 0, "levels": ["local"]}, "levels does nothing without rounds"),
    ({"kind": "fourfold", "levels": ["local", "local"]}, "each once"),
    ({"kind": "ssgi", "structure": "states", "normalize_targets": False}, "nothing where structure = states"),
    ({"kind": "align_pro", "alpha": 0, "beta": 0, "gamma": 0, "intra": 0}, "there is nothing to learn"),
    ({"kind": "align_pro", "modalities": ["sequence", "function"], "beta": 0, "intra": 0}, "nothing to learn"),
    ({"kind": "align_pro", "modalities": ["sequence", "function"], "alpha": 2}, "alpha does nothing without structure"),
    ({"kind": "align_pro", "modalities": ["sequence", "structure"], "gamma": 2}, "gamma does nothing without function"),
    ({"kind": "align_pro", "intra": 0, "view": {"masked": 0.5}}, "view does nothing without intra"),
    ({"kind": "unimodal", "modality": "sequence", "patches": 0.5}, "patches does nothing where modality = sequence"),
    ({"kind": "unimodal", "modality": "image", "masked": 0.5}, "masked does nothing where modality = image"),
    ({"kind": "unimodal", "modality": "sequence", "angles": 7}, "angles does nothing"),
]


@pytest.mark.parametrize(("settings", "match"), IDLE)
def test_a_setting_that_nothing_reads_is_refused(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ValidationError, match=match):
        TypeAdapter(ModelConfig).validate_python(settings)
