"""What a dynamic model contains and its source does not."""
