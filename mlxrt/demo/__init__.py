"""`mlxrt demo`: a server process, a scheduler in another, and a dozen prompts."""
