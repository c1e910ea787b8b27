"""Reads everything that pip needs from settings.ini, the one place where nbdev and pip both look."""

from configparser import ConfigParser

from setuptools import find_packages, setup

config = ConfigParser(delimiters=["="])
config.read("settings.ini", encoding="utf-8")
settings = config["DEFAULT"]

setup(
    version=settings["version"],
    description=settings["description"],
    author=settings["author"],
    url=settings["git_url"],
    packages=find_packages(include=["mmgen", "mmgen.*"]),
    package_data={"mmgen": ["py.typed", "packaged/**/*", "data/tables/*"]},
    install_requires=settings["requirements"].split(),
    extras_require={
        name: settings[f"{name}_requirements"].split() for name in ("dev", "spark", "onnx", "demo", "book")
    },
)
