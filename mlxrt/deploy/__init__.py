"""Files that run and watch a server: `mlxrt deploy print`."""
