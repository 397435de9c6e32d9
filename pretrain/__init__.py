"""Shards to a trained, exported model. Deliberately empty: a Ray worker reading `pretrain.sample` must not load torch."""
