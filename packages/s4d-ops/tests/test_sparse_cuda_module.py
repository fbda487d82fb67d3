"""The CUDA module for Python without a framework, as far as it goes without a device."""

import gc
import sys

import pytest

from s4d_ops import MissingLibraryError, _native_module, sparse_cuda

try:
    module = sparse_cuda.native()
except MissingLibraryError:
    module = None
needs_module = pytest.mark.skipif(module is None, reason="s4d-ops was built without CUDA")


def test_a_missing_module_is_named(monkeypatch):
    monkeypatch.setattr(
        _native_module.importlib,
        "import_module",
        lambda name: (_ for _ in ()).throw(ImportError("no")),
    )
    sparse_cuda.native.cache_clear()
    with pytest.raises(MissingLibraryError, match="S4D_CUDA=ON"):
        sparse_cuda.program()
    sparse_cuda.native.cache_clear()


@needs_module
def test_dlpack_keeps_the_owner_alive_and_lets_it_go():
    class Owner:
        pass

    owner = Owner()
    alone = sys.getrefcount(owner)
    capsule = module.export_tensor(0x1000, [2, 0, 3], "float16", 1, owner)
    assert sys.getrefcount(owner) == alone + 1
    tensor = module.ImportedTensor(capsule)
    assert (tensor.address, tensor.shape, tensor.dtype) == (0x1000, [2, 0, 3], "float16")
    assert tensor.device == (2, 1) and tensor.contiguous
    with pytest.raises(ValueError):
        module.ImportedTensor(capsule)  # taken already
    del capsule, tensor
    gc.collect()
    assert sys.getrefcount(owner) == alone
    unused = module.export_tensor(0x1000, [4], "int32", 0, owner)
    del unused
    gc.collect()
    assert sys.getrefcount(owner) == alone
    with pytest.raises(ValueError, match="DLPack type"):
        module.export_tensor(0, [1], "complex64", 0, owner)


@needs_module
def test_sizes_and_programs():
    program = sparse_cuda.program()
    program.clear(0, 16)
    program.store(0, 1)
    assert len(program) == 2
    with pytest.raises(ValueError, match="float32, float16 or int8"):
        program.check_finite(0, "float64", 0, 1, 5, True, 0)
    assert module.padded_channels("float16", 5) == 16
    assert module.padded_channels("int8", 33) == 64
    assert module.site_map_bytes([1, 0, 1, 1]) == 0
    assert module.site_map_bytes([1, 41, 1440, 1440]) % 256 == 0
    assert module.packed_weight_bytes("int8", 27, 16, 16) >= 27 * 16 * 16
