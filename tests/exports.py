"""Exports in every form for the tests of `dfstream.model`: packed, merged, edited; what a model computes."""

import io
import tarfile

import numpy as np
import onnx
import pytest
from dfstream.patches.graph import export_graph

from dfstream.backends.base import find_backend
from dfstream.errors import ModelError
from dfstream.model import Model
from dfstream.modes.base import find_mode


def refusal(source, kind=ModelError):
    """The one-line message and the hint of a refused model."""
    with pytest.raises(kind) as caught:
        Model.load(source)
    assert str(caught.value).isprintable()
    return str(caught.value), caught.value.hint


def outputs(model, mode="incremental", frames=5):
    """What a mode computes from noise, all results in one row of numbers."""
    rng, c = np.random.default_rng(1), model.config
    running = find_mode(mode)(model, find_backend("ort-cpu"))
    feat_erb = rng.standard_normal((1, 1, frames, c.nb_erb), np.float32)
    feat_spec = rng.standard_normal((1, 2, frames, c.nb_df), np.float32)
    return np.concatenate([result.ravel() for result in running.step(feat_erb, feat_spec)])


def foreign(data):
    """A graph without what dfstream writes into it."""
    model = onnx.load_model_from_string(data)
    del model.metadata_props[:]
    return model.SerializeToString()


def graph_of(model, mode):
    """The one graph of a mode, as another program would have made it."""
    (data,) = model.graphs(find_mode(mode).recipe()).values()
    return foreign(data)


def edited(data, edit):
    model = onnx.load_model_from_string(data)
    edit(model)
    return model.SerializeToString()


def pack(folder, path, names=None, **fields):
    with tarfile.open(path, "w:gz") as archive:
        for name in names or sorted(path.name for path in folder.iterdir()):
            data = (folder / name).read_bytes()
            info = tarfile.TarInfo(f"tmp/export/{name}")
            info.size = len(data)
            for key, value in fields.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(data))
    return path


def write(folder, files):
    folder.mkdir(exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def merged(model):
    """The three graphs as one, as another program would have made it."""
    return export_graph(model._merged())
