"""`mlxrt check`: is this installation sound, does this checkpoint fit, are its numbers mlx-lm's?"""
