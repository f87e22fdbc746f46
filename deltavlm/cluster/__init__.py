"""Run on several machines by Ray: readers, actors with models, retries when a worker dies."""
