"""Only what pyproject.toml cannot say: `conf/` and `recipes/` stand at the top of the tree and ship in the package."""

from setuptools import find_namespace_packages, setup

setup(
    packages=[*find_namespace_packages(include=["zoo", "zoo.*"], exclude=["*.__pycache__"]), "zoo.conf", "zoo.recipes"],
    package_dir={"zoo.conf": "conf", "zoo.recipes": "recipes"},
    package_data={
        "zoo.conf": ["**/*.yaml"],
        "zoo.drawing": ["inter.json", "OFL.txt"],
        "zoo.gallery": ["*.yaml", "*/*"],
        "zoo.recipes": ["**/*.yaml", "**/*.json"],
    },
    include_package_data=False,  # what MANIFEST.in lists is for the source archive; the wheel takes the line above
)
