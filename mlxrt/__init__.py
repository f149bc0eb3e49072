"""mlxrt: execution of language models on MLX as a service that somebody else schedules."""
