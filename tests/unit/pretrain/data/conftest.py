"""Tiny data sets of random proteins, and the specification of a model that reads them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pretrain.data.dataset import Dataset
from pretrain.data.draw import InputSpec
from pretrain.sample import Modality, Sample
from tests.unit.datasets import mixed, protein, write


def tokenize(text: str) -> list[int]:
    return [len(word) for word in text.split()]


@pytest.fixture(scope="session")
def make_protein() -> Callable[..., Sample]:
    return protein


@pytest.fixture(scope="session")
def write_dataset() -> Callable[..., Path]:
    return write


@pytest.fixture(scope="session")
def make_spec() -> Callable[..., InputSpec]:
    """The specification of a small model of four modalities; keywords replace its fields."""

    def make(**over: object) -> InputSpec:
        fields: dict = {
            "sequence_max": 64,
            "structure_max": None,
            "tokenize": tokenize,
            "text_max": 16,
            "image_size": 8,
            "image_patches": 4,
            "crop": 48,
            "max_images": 2,
            "modalities": tuple(Modality),
        }
        return InputSpec(**{**fields, **over})

    return make


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """90 proteins in six groups to train on, 20 to validate, none to test."""
    folder = write(tmp_path_factory.mktemp("tiny"), {"train": mixed(90), "valid": mixed(20, "V"), "test": []})
    return Dataset.open(folder)
