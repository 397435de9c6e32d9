"""Raw public files to training shards, with Ray."""
