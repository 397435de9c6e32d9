"""What follows from a run's configuration."""

from pretrain.config import dump, load, validate
from pretrain.run import RunConfig


def test_only_the_models_modalities_are_encoded() -> None:
    run = load(RunConfig, "amma/tiny.toml", ["model.modalities=['sequence','image']"])
    assert run.frozen.structure is None and run.frozen.function is None
    assert run.frozen.sequence == run.encoders.sequence and run.frozen.image == run.encoders.image
    assert validate(RunConfig, dump(run), "dumped") == run
