"""A dozen beginnings of Python that the bundled model completes."""

PROMPTS = (
    "import os\nimport sys\n\n",
    "def read_config(path):\n    ",
    "class Stack:\n    def __init__(self",
    "for i in range(",
    "    def test_",
    "if __name__ == ",
    "def main(args=None):\n    parser = argparse.ArgumentParser(",
    "try:\n    import json\nexcept ",
    'def __repr__(self):\n        return "',
    "with open(filename, ",
    "    def __enter__(self):\n        return self\n\n    def __exit__(self, ",
    "class Error(Exception):\n    ",
)
