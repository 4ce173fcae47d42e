"""What was decided before: verdicts joined with embeddings, tried again under other policies."""
