"""What does a distilled dataset contain?

Makers of distilled sets, pools of networks trained on real and distilled data, and the analyses that compare them.
Import the module that holds the thing: ``from ddanalysis import data, networks, training``. Nothing is imported here,
so that a notebook can check its parameters before it loads PyTorch.
"""

__version__ = "0.1.0"
