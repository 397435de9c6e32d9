"""Shards to a trained, exported model. Deliberately empty: a Ray worker reading `pretrain.sample` loads no torch."""
