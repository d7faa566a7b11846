"""The offline side: the feature log in Parquet, and what is made from it (training sets, proofs, backfills)."""
