"""Settings: the same declaration read from file, environment and flags; every mistake is named."""

import argparse
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import pytest

from fs3 import settings
from fs3.errors import Code, Fs3Error
from fs3.settings import section, setting, size


class Mode(Enum):
    FAST = "fast"
    SAFE = "safe"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scrub:
    bytes_per_s: int = size(32 << 20, help="read at most this much per second")
    enabled: bool = setting(True, help="scrub at all")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    path: Path = setting(help="directory")
    target: int = setting(help="id")
    reserve_bytes: int = size(0, help="kept free")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    cluster_id: str = setting(help="the cluster's name")
    ratio: float = setting(0.5, help="100 % is 1")
    mode: Mode = setting(Mode.SAFE, help="how")
    metaservers: tuple[str, ...] = setting((), help="addresses")
    ports: list[int] = setting([], help="ports")
    targets: tuple[Target, ...] = setting((), help="what to serve")
    log_file: Path | None = setting(None, help="where to log")
    scrub: Scrub = section(Scrub)

    def validate(self):
        return f"ratio {self.ratio} must be at most 1" if self.ratio > 1 else None


def load(text="", flags=None, environ=None, tmp_path=None):
    path = None
    if text:
        path = tmp_path / "fs3.toml"
        path.write_text(text)
    return settings.load(Settings, path, flags or {}, environ or {})


WHOLE = """
cluster_id = "a"
ratio = 1
mode = "fast"
metaservers = ["m1:7000", "m2:7000"]
ports = [1, 2]
log_file = "/var/log/fs3"
[scrub]
bytes_per_s = "64MiB"
enabled = false
[[targets]]
path = "/d1"
target = 11
reserve_bytes = "1.5GiB"
[[targets]]
path = "/d2"
target = 12
"""


def test_a_file_fills_every_kind_of_field(tmp_path):
    assert load(WHOLE, tmp_path=tmp_path) == Settings(
        cluster_id="a",
        ratio=1.0,
        mode=Mode.FAST,
        metaservers=("m1:7000", "m2:7000"),
        ports=[1, 2],
        log_file=Path("/var/log/fs3"),
        scrub=Scrub(bytes_per_s=64 << 20, enabled=False),
        targets=(
            Target(path=Path("/d1"), target=11, reserve_bytes=3 << 29),
            Target(path=Path("/d2"), target=12),
        ),
    )


def test_flags_win_over_the_environment_and_that_over_the_file(tmp_path):
    environ = {"FS3_RATIO": "0.2", "FS3_SCRUB__BYTES_PER_S": "2K", "FS3_CLUSTER_ID": "env"}
    flags = {"ratio": "0.3", "scrub.enabled": "yes"}
    made = load(WHOLE, flags, environ, tmp_path)
    assert (made.cluster_id, made.ratio) == ("env", 0.3)
    assert made.scrub == Scrub(bytes_per_s=2048, enabled=True)


def test_without_a_file_the_defaults_hold():
    assert load(flags={"cluster-id": "x"}) == Settings(cluster_id="x")


def test_lists_are_said_with_commas_or_json_outside_the_file():
    made = load(
        flags={
            "cluster_id": "x",
            "metaservers": "a:1, b:2",
            "ports": "[3, 4]",
            "targets": '[{"path": "/d", "target": 5}]',
            "log_file": "none",
        }
    )
    assert made.metaservers == ("a:1", "b:2")
    assert made.ports == [3, 4]
    assert made.targets == (Target(path=Path("/d"), target=5),)
    assert made.log_file is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('clusterid = "x"', "unknown setting clusterid in {file}; did you mean cluster_id?"),
        ("[scrub]\nbyte_per_s = 1", "scrub.byte_per_s in {file}; did you mean scrub.bytes_per_s?"),
        ('cluster_id = "x"\nzzz = 1', "unknown setting zzz in {file}; known are"),
        ("cluster_id = 3", "setting cluster_id in {file} is 3; allowed is text"),
        ('cluster_id = "x"\nratio = "1"', "ratio in {file} is '1'; allowed is number"),
        ('cluster_id = "x"\nratio = true', "ratio in {file} is True; allowed is number"),
        ('cluster_id = "x"\nports = [1.5]', "ports[0] in {file} is 1.5; allowed is whole number"),
        ('cluster_id = "x"\nports = 1', "ports in {file} is 1; allowed is a list"),
        ('cluster_id = "x"\nmode = "x"', "mode in {file} is 'x'; allowed is one of fast, safe"),
        ('cluster_id = "x"\nscrub = 1', "scrub in {file} is 1; allowed is a table"),
        ('cluster_id = "x"\n[scrub]\nbytes_per_s = "3 apples"', "allowed is size like 65536 or"),
        ('cluster_id = "x"\n[scrub]\nenabled = 1', "scrub.enabled in {file} is 1; allowed is true"),
        ('cluster_id = "x"\n[[targets]]\npath = "/d"', "setting targets[0].target is missing: id"),
        ('cluster_id = "x"\n[[targets]]\npth = "/d"', "did you mean targets[0].path?"),
        ('cluster_id = "x"\ntargets = [3]', "targets[0] in {file} is 3; allowed is a table"),
        ("ratio = 1", "setting cluster_id is missing: the cluster's name"),
        ('cluster_id = "x"\nratio = 2', "settings: ratio 2.0 must be at most 1"),
        ("cluster_id = ", "settings file {file}: "),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path, text, expected):
    with pytest.raises(Fs3Error) as caught:
        load(text, tmp_path=tmp_path)
    assert caught.value.code is Code.INVALID
    assert expected.format(file=tmp_path / "fs3.toml") in caught.value.detail


@pytest.mark.parametrize(
    ("flags", "environ", "expected"),
    [
        ({"scrub.enable": "1"}, {}, "--scrub.enable in the command line; did you mean --scrub"),
        ({"ratio": "x"}, {}, "ratio in --ratio is 'x'; allowed is number"),
        ({"targets": "["}, {}, "targets in --targets is '['; allowed is a JSON list"),
        ({}, {"FS3_RATOI": "1"}, "FS3_RATOI in the environment; did you mean FS3_RATIO?"),
        ({}, {"FS3_SCRUB__X": "1"}, "unknown setting FS3_SCRUB__X in the environment"),
        ({}, {"FS3_SCRUB__ENABLED": "2"}, "scrub.enabled in FS3_SCRUB__ENABLED is '2'"),
    ],
)
def test_a_mistake_elsewhere_is_named(flags, environ, expected):
    with pytest.raises(Fs3Error) as caught:
        load(flags={"cluster_id": "x"} | flags, environ=environ)
    assert expected in caught.value.detail


def test_variables_of_other_programs_are_left_alone():
    load(flags={"cluster_id": "x"}, environ={"FS3_HOME": "/", "HOME": "/", "FS3": "1"})


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(Fs3Error, match=r"no-such\.toml: No such file"):
        settings.load(Settings, tmp_path / "no-such.toml")


def test_every_setting_is_a_flag_and_only_what_was_said_counts(capsys):
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", type=Path)
    settings.add_flags(parser, Settings)
    arguments = ["--config", "f", "--cluster-id", "x", "--scrub.bytes-per-s", "1MiB"]
    said = settings.flags_of(parser.parse_args(arguments))
    assert said == {"cluster_id": "x", "scrub.bytes_per_s": "1MiB"}
    assert load(flags=said).scrub.bytes_per_s == 1 << 20
    assert settings.flags_of(parser.parse_args(["--scrub.bytes_per_s", "1"])) == {
        "scrub.bytes_per_s": "1"
    }
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    assert "read at most this much per second" in capsys.readouterr().out


def test_the_description_names_every_setting_and_is_a_valid_file(tmp_path):
    text = settings.describe(Settings)
    assert "read at most this much per second (size like 65536 or 64KiB; default 33554432)" in text
    assert "# the cluster's name (text; required)" in text
    lines = [line.removeprefix("# ") for line in text.splitlines() if " = " in line]
    (bytes_per_s,) = [line for line in lines if line.startswith("bytes_per_s")]
    uncommented = f'cluster_id = "x"\n[scrub]\n{bytes_per_s}'
    assert load(uncommented, tmp_path=tmp_path) == Settings(cluster_id="x")


@pytest.mark.parametrize(
    ("text", "count"),
    [("0", 0), ("17", 17), ("4K", 4096), ("4KiB", 4096), ("4kb", 4000), ("1.5MiB", 3 << 19),
     ("2 GiB", 2 << 30), ("1TiB", 1 << 40), ("5B", 5)],
)  # fmt: skip
def test_sizes_are_read(text, count):
    assert settings.parse_size(text) == count


@pytest.mark.parametrize("text", ["", "-1", "1XB", "MiB", "1.3B", "1e3", "0x10"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match="is no"):
        settings.parse_size(text)
