"""The Swift example is in step with what dfstream writes: keys, types, tensor names, golden vectors."""

import copy
import json
import os
import re
import shutil
import subprocess
from typing import get_args

import numpy as np
import pytest

import swift_golden
from conftest import ROOT
from contract_engine import unpacked
from dfstream.converting import convert_model
from dfstream.coreml.contract import FORMAT, contract, description
from dfstream.coreml.flavour import Flavour, StateStyle

EXAMPLE = ROOT / "examples" / "swift"
LIBRARY = EXAMPLE / "Sources" / "DFStream"

STATE = {"name": "h", "output": "h_out", "shape": [1, 8, 1, 1], "dtype": "float32"}

#: Swift types, and what JSON values they decode.
SCALARS = {"Int": int, "Float": (int, float), "Double": (int, float), "String": str, "Data": str}


# -- reading Swift -----------------------------------------------------------------------------------


def split(text):
    """What stands outside all braces, and each pair of outermost braces: the line it begins on, its body."""
    outside, inside, start, depth = "", [], 0, 0
    for i, letter in enumerate(text):
        if letter == "{":
            if depth == 0:
                outside += text[start:i]
                header, start = outside.rpartition("\n")[2], i + 1
            depth += 1
        elif letter == "}":
            depth -= 1
            if depth == 0:
                inside.append((header, text[start:i]))
                start = i + 1
    return outside + text[start:], inside


def coding_keys(body):
    cases = ",".join(re.findall(r"\bcase (.+)", body))
    entries = (case.partition("=") for case in cases.split(","))
    return {name.strip(): key.strip(' "') or name.strip() for name, _, key in entries if name.strip()}


def decodable(text, found=None):
    """All structs: the Swift type of each property that is decoded, by its JSON key."""
    found = {} if found is None else found
    for header, body in split(re.sub(r"//.*", "", text))[1]:
        declaration = re.search(r"\b(?:struct|enum) (\w+)", header)
        if not declaration:
            continue
        name, (own, inner) = declaration[1], split(body)
        if "enum" in header:
            found[name] = set(coding_keys(body).values())
        else:
            properties = dict(re.findall(r"\blet (\w+): ([^\n=]+)", own))
            keys = next((coding_keys(b) for h, b in inner if "CodingKeys" in h), dict.fromkeys(properties))
            assert set(keys) == set(properties), f"{name}: properties and CodingKeys differ"
            found[name] = {keys[swift] or swift: kind.strip() for swift, kind in properties.items()}
        decodable(body, found)
    return found


def decode(value, kind, types, where="it"):
    """Do what JSONDecoder would; an AssertionError says what is wrong where."""
    if kind.endswith("?"):
        if value is None:
            return
        kind = kind[:-1]
    if kind.startswith("[String: "):
        assert isinstance(value, dict), where
        for key, item in value.items():
            decode(item, kind[len("[String: ") : -1], types, f"{where}.{key}")
    elif kind.startswith("["):
        assert isinstance(value, list), where
        for item in value:
            decode(item, kind[1:-1], types, f"{where}[]")
    elif kind in SCALARS:
        assert isinstance(value, SCALARS[kind]), f"{where} = {value!r} is no {kind}"
        assert not isinstance(value, bool), where
    elif isinstance(types[kind], set):
        assert value in types[kind], f"{where} = {value!r}"
    else:
        for key, inner in types[kind].items():
            assert key in value or inner.endswith("?"), f"{where} has no {key}"
            decode(value[key], inner, types, f"{where}.{key}")


def swift(name, folder=LIBRARY):
    return (folder / name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def types():
    return decodable(swift("Contract.swift"))


@pytest.fixture(scope="module")
def beside(bundled):
    """A file that stands beside a package, read back."""
    return json.loads(json.dumps(description(bundled.config, [STATE])))


# -- what dfstream writes, Swift decodes -------------------------------------------------------------


def test_the_description_is_decoded(types, beside):
    assert types["Contract"]["fft_size"] == "Int"
    assert types["Source"] == {"noisy", "masked"}
    decode(beside, "Description", types)


@pytest.mark.slow
@pytest.mark.parametrize("kind", get_args(StateStyle))
def test_what_stands_beside_a_package_is_decoded(types, synthetic_model, tmp_path, kind):
    pytest.importorskip("coremltools", reason="needs the extra coreml")
    target = tmp_path / "X.mlpackage"
    made = convert_model(synthetic_model("dfn2"), target, Flavour(state=kind), check=False).description
    values = json.loads(made.read_text(encoding="utf-8"))
    decode(values, "Description", types)
    decode(values, "File", decodable(swift("Golden.swift", EXAMPLE / "Tests" / "DFStreamTests")))
    assert values["state"] == kind
    assert all((state["output"] is None) == (kind == "coreml") for state in values["states"])


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["contract", "fft_size"], None),
        (["contract", "fft_size"], 960.5),
        (["contract", "deep_filter", "reads"], "other"),
        (["contract", "features", "erb", "power_floor"], None),
        (["states", 0, "name"], None),
        (["contract", "window", "values"], ["1"]),
    ],
)
def test_the_check_itself_notices_what_is_wrong(types, beside, path, value):
    changed = json.loads(json.dumps(beside))
    *way, last = path
    place = changed
    for step in way:
        place = place[step]
    if value is None:
        del place[last]
    else:
        place[last] = value
    with pytest.raises(AssertionError):
        decode(changed, "Description", types)


def test_numbers_of_the_contract_are_all_used_or_facts(types, beside):
    """What a port has to know, the example reads; the rest is for people."""
    unread = {"formula", "note", "lookahead", "outputs", "synthesis"}

    def check(value, kind, where):
        if isinstance(types.get(kind), dict):
            assert set(value) - set(types[kind]) <= unread, where
            for key, inner in types[kind].items():
                check(value[key], inner, f"{where}.{key}")

    check(beside["contract"], "Contract", "contract")


def test_format_and_kinds_of_states_are_known():
    assert f"static let knownFormat = {FORMAT}\n" in swift("Contract.swift")
    cases = re.findall(r'case "(\w+)":', swift("Package.swift"))
    assert cases == list(get_args(StateStyle))


def test_tensor_names_are_those_of_the_graph(bundled):
    network = contract(bundled.config)["network"]
    names = re.findall(r"static let \(.*\) = \((.*)\)", swift("Package.swift"))
    assert [name for line in names for name in re.findall(r'"(\w+)"', line)] == [
        *network["inputs"], *sorted(network["outputs"], key=["mask", "coefs", "lsnr"].index)
    ]  # fmt: skip
    # and no other file of the package mentions one
    everywhere = {*network["inputs"], *network["outputs"]}
    for path in LIBRARY.glob("*.swift"):
        literals = set(re.findall(r'"(\w+)"', path.read_text(encoding="utf-8")))
        assert path.name in ("Package.swift", "Contract.swift") or not literals & everywhere, path.name


# -- golden vectors ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made():
    return json.loads(json.dumps(swift_golden.files()))


def test_golden_files_are_decoded(made, types):
    golden = decodable(swift("Golden.swift", EXAMPLE / "Tests" / "DFStreamTests"))
    for content in made.values():
        decode(content, "Description", types)
        decode(content, "File", golden)


def test_golden_files_are_what_the_code_makes(made):
    """To rounding: another processor may differ in the last bits."""
    assert {path.name for path in swift_golden.FOLDER.iterdir()} == set(made)
    for name, now in copy.deepcopy(made).items():
        kept = json.loads((swift_golden.FOLDER / name).read_text(encoding="utf-8"))
        stages, kept_stages = now["golden"].pop("stages"), kept["golden"].pop("stages")
        assert kept == now, f"{name}: run tools/swift_golden.py"
        assert kept_stages.keys() == stages.keys()
        for stage, values in stages.items():
            difference = np.abs(unpacked(kept_stages[stage]) - unpacked(values)).max()
            assert difference <= (1e-3 if stage == "lsnr" else 1e-5), f"{name}: {stage}"


def test_stages_that_swift_asks_for_exist(made):
    tests = "".join(path.read_text(encoding="utf-8") for path in (EXAMPLE / "Tests").rglob("*.swift"))
    asked = set(re.findall(r'\b(?:frame|spectrum|audio)\("(\w+)"', tests))
    assert asked == set(made["bundled.json"]["golden"]["stages"])


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("swift"), reason="needs a Swift toolchain")
def test_swift_tests_pass(tmp_path, bundled):
    long = tmp_path / "long.json"
    long.write_text(json.dumps(swift_golden.golden(bundled, 20)), encoding="utf-8")
    done = subprocess.run(
        ["swift", "test", "--scratch-path", str(tmp_path / "build")],
        cwd=EXAMPLE, env={**os.environ, "DFSTREAM_GOLDEN": str(long)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
