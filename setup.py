"""Packaging. The ranges are what the code is written for; constraints.txt is what it is tested with."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"', (ROOT / "rllib_calql" / "__init__.py").read_text(), re.MULTILINE)
assert VERSION is not None

setup(
    name="rllib_calql",
    version=VERSION[1],
    description="Cal-QL for Ray RLlib: calibrated offline pre-training for efficient online fine-tuning",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    packages=find_packages(include=["rllib_calql", "rllib_calql.*"]),
    # `rllib train file tuned_configs/NAME.yaml` finds them here where there is no checkout.
    data_files=[
        (
            "share/rllib_calql/tuned_configs",
            sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tuned_configs").glob("*.yaml")),
        )
    ],
    python_requires=">=3.11",
    install_requires=[
        # RLlib's internals change from one minor version to the next: these are tested, the first by `make
        # test-ray-min`. Ray 2.53 pins gymnasium 1.1.1.
        "ray[rllib]>=2.54.0,<2.61",
        "torch>=2.4,<3",
        # Ray 2.54 to 2.60 themselves pin 1.2.2.
        "gymnasium>=1.2.2,<1.3",
        "dm-tree>=0.1.8,<0.2",
        "numpy>=2.0,<3",
        "pyarrow>=17,<27",
        "h5py>=3.11,<4",
        "filelock>=3.13,<5",
        # RLlib's own logs: packed columns, and episodes.
        "lz4>=4,<5",
        "msgpack>=1,<2",
        "scipy>=1.13,<2",
        "pyyaml>=6,<7",
        "typer>=0.16,<1",
        "rich>=13.8,<16",
        "tqdm>=4.66,<5",
        "matplotlib>=3.9,<4",
    ],
    extras_require={
        "d4rl": ["d4rl"],
        "docs": ["mkdocs>=1.6,<2", "mkdocs-material>=9.6,<10", "mkdocstrings[python]>=1.0,<2"],
        "export": ["onnx>=1.19,<2", "onnxruntime>=1.23,<2", "onnxscript>=0.5,<0.8"],
        "minigrid": ["minigrid>=3.1,<4"],
        # `hf` is for its downloads.
        "minari": ["minari[hdf5,hf]>=0.5.4,<0.6"],
        "serve": ["ray[serve]>=2.54.0,<2.61"],
        "robotics": ["gymnasium-robotics>=1.4.2,<2", "mujoco>=3.2,<4"],
        "dev": [
            "hypothesis>=6.100",
            "minari[create,hdf5]>=0.5.4,<0.6",
            # With it Ray writes logs of whole episodes.
            "msgpack-numpy>=0.4.8,<0.5",
            "minigrid>=3.1,<4",
            "mypy>=1.15",
            "pytest>=8",
            "pytest-timeout>=2.3",
            "ruff>=0.9",
            "types-PyYAML",
        ],
    },
    entry_points={
        "console_scripts": ["calql = rllib_calql.cli.calql:main", "rllib = rllib_calql.cli.rllib:main"],
    },
    classifiers=[
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.11",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
