"""A dozen beginnings of Python that the bundled model completes."""

PROMPTS = (
    "import os\nimport sys\n",
    "def read_config(path):\n",
    "class Stack:\n    def __init__(self",
    "for name in sorted(",
    "    def test_",
    "def main(args=None):\n    parser = argparse.ArgumentParser(",
    "try:\n    import json\nexcept",
    "    def __repr__(self):\n",
    "with open(filename,",
    "    def __enter__(self):\n        return self\n\n    def __exit__(self,",
    "class Error(Exception):\n",
    'def parse_header(line):\n    """',
)
