"""Images to pyramid WebDataset shards with a manifest and per-shard indexes."""
