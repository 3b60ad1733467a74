import os
import subprocess
import sys
import zipfile

import pytest

from experiments._arguments import UserError
from experiments.submit import pack, plain_name, title


@pytest.mark.parametrize(
    ("name", "plain"), [("Mark", "mark"), ("José  María", "jose-maria"), ("Weiß", "weiss"), ("van-Dyk", "van-dyk")]
)
def test_names_become_plain_letters(name, plain):
    assert plain_name(name) == plain


@pytest.mark.parametrize("name", ["", " ", "../up", "a/b", "a\\b", "a_b", "李", "x\0", "-", "a.b"])
def test_other_names_are_refused(name):
    with pytest.raises(UserError):
        plain_name(name)


@pytest.mark.parametrize("student_id", ["", "01 23", "../1", "1_2", "1" * 33, "\u0661"])
def test_ids_are_digits_and_letters(student_id):
    with pytest.raises(UserError):
        title("mark", "philip", student_id)


@pytest.fixture
def unpacked(tmp_path):
    pdf = tmp_path / "any.pdf"
    pdf.write_bytes(b"%PDF-1.7\n")
    name = title("mark", "philip", "0123456", "Project_1")
    with zipfile.ZipFile(pack(name, pdf, tmp_path / "out")) as zipped:
        zipped.extractall(tmp_path)
    return tmp_path / name


# A finder that refuses JAX, so that it counts as not installed.
_NO_JAX = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("jax", "jaxlib", "flax", "optax", "jax_arcface"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refuse())
"""


def _train(unpacked, *words):
    (unpacked / "sitecustomize.py").write_text(_NO_JAX)
    environment = {**os.environ, "PYTHONPATH": str(unpacked), "OMP_NUM_THREADS": "1"}
    begin = "import sys, torch_reference as t; assert t.__file__.startswith(sys.argv.pop(1)); import runpy; "
    begin += "runpy.run_module('torch_reference', run_name='__main__', alter_sys=True)"
    command = [sys.executable, "-c", begin, str(unpacked), "train", "--epochs", "1", "--out", "runs/one", *words]
    done = subprocess.run(command, cwd=unpacked, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (unpacked / "runs/one/model.safetensors").exists()


def test_jax_is_refused(unpacked):
    (unpacked / "sitecustomize.py").write_text(_NO_JAX)
    environment = {**os.environ, "PYTHONPATH": str(unpacked)}
    done = subprocess.run([sys.executable, "-c", "import jax"], env=environment, capture_output=True, check=False)
    assert done.returncode == 1


def test_what_is_in_the_zip_trains_without_jax(unpacked):
    assert (unpacked / f"{unpacked.name}.pdf").exists()
    assert list((unpacked / "figures").glob("*.png"))
    _train(unpacked, "--width", "0.25")


@pytest.mark.slow
def test_what_is_in_the_zip_trains_on_a_slice_of_mnist(unpacked):
    folder = os.environ.get("ARCFACE_DATA_DIR")
    if not folder:
        pytest.skip("needs MNIST below ARCFACE_DATA_DIR")
    program = (
        "import torch; from torch_reference import *; from torch_reference.data import load\n"
        "data = load('mnist')\n"
        "images = torch.as_tensor(data.train.images[:512]).float().permute(0, 3, 1, 2) / 255\n"
        "labels = torch.as_tensor(data.train.labels[:512]).long()\n"
        "net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 16))\n"
        "head = Head(arcface(m=0.3, scale=16.0), embedding_dim=16, num_classes=10)\n"
        "batches = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, labels), batch_size=64)\n"
        "weights = [*net.parameters(), *head.parameters()]\n"
        "fit(net, head, torch.optim.SGD(weights, 0.05), batches, epochs=1)\n"
    )
    (unpacked / "sitecustomize.py").write_text(_NO_JAX)
    environment = {**os.environ, "PYTHONPATH": str(unpacked), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=unpacked, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
