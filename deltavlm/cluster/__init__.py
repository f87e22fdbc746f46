"""The same run on several machines, by Ray: who reads and asks what, and what happens when a worker dies."""
