// DLPack capsules for device memory: the exchange format's structs are declared here, since they
// are all that is needed (https://dmlc.github.io/dlpack, version 0.8 layout, capsule "dltensor").
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace py = pybind11;

namespace {

struct DlDevice {
  int32_t type;  // 1 CPU, 2 CUDA, 3 CUDA pinned host, 13 CUDA managed
  int32_t index;
};

struct DlType {
  uint8_t code;  // 0 int, 1 uint, 2 float
  uint8_t bits;
  uint16_t lanes;
};

struct DlTensor {
  void* data;
  DlDevice device;
  int32_t rank;
  DlType type;
  int64_t* shape;
  int64_t* strides;  // in elements; null: contiguous
  uint64_t byte_offset;
};

struct DlManagedTensor {
  DlTensor tensor;
  void* context;
  void (*deleter)(DlManagedTensor*);
};

constexpr char kName[] = "dltensor";
constexpr char kUsed[] = "used_dltensor";

DlType type_of(const std::string& name) {
  if (name == "float16") return {2, 16, 1};
  if (name == "float32") return {2, 32, 1};
  if (name == "int32") return {0, 32, 1};
  if (name == "int8") return {0, 8, 1};
  throw std::invalid_argument("no DLPack type for " + name);
}

std::string name_of(const DlType& type) {
  const char* kinds[] = {"int", "uint", "float"};
  if (type.lanes != 1 || type.code > 2) return "type code " + std::to_string(type.code);
  return kinds[type.code] + std::to_string(type.bits);
}

// What an exported capsule keeps alive.
struct Exported {
  DlManagedTensor managed;
  std::vector<int64_t> shape;
  py::object owner;
};

void release_export(DlManagedTensor* managed) {
  py::gil_scoped_acquire gil;
  delete static_cast<Exported*>(managed->context);
}

void drop_capsule(PyObject* capsule) {
  if (!PyCapsule_IsValid(capsule, kName)) return;  // a consumer has taken it
  auto* managed = static_cast<DlManagedTensor*>(PyCapsule_GetPointer(capsule, kName));
  managed->deleter(managed);
}

py::object export_tensor(uintptr_t address, const std::vector<int64_t>& shape,
                         const std::string& type, int32_t device, py::object owner) {
  auto held = std::make_unique<Exported>();
  held->shape = shape;
  held->owner = std::move(owner);
  held->managed.tensor = {reinterpret_cast<void*>(address),
                          {2, device},
                          static_cast<int32_t>(shape.size()),
                          type_of(type),
                          held->shape.data(),
                          nullptr,
                          0};
  held->managed.context = held.get();
  held->managed.deleter = &release_export;
  PyObject* capsule = PyCapsule_New(&held->managed, kName, &drop_capsule);
  if (capsule == nullptr) throw py::error_already_set();
  held.release();
  return py::reinterpret_steal<py::object>(capsule);
}

// A tensor taken out of a capsule; given back to its producer when this object dies.
class Imported {
 public:
  explicit Imported(py::handle capsule) {
    managed_ = static_cast<DlManagedTensor*>(PyCapsule_GetPointer(capsule.ptr(), kName));
    if (managed_ == nullptr) throw py::error_already_set();
    PyCapsule_SetName(capsule.ptr(), kUsed);
  }
  Imported(const Imported&) = delete;
  Imported& operator=(const Imported&) = delete;
  ~Imported() {
    if (managed_->deleter != nullptr) managed_->deleter(managed_);
  }

  uintptr_t address() const {
    return reinterpret_cast<uintptr_t>(managed_->tensor.data) + managed_->tensor.byte_offset;
  }
  std::vector<int64_t> shape() const {
    const DlTensor& t = managed_->tensor;
    return {t.shape, t.shape + t.rank};
  }
  std::string type() const { return name_of(managed_->tensor.type); }
  std::pair<int32_t, int32_t> device() const {
    return {managed_->tensor.device.type, managed_->tensor.device.index};
  }
  bool contiguous() const {
    const DlTensor& t = managed_->tensor;
    int64_t expected = 1;
    for (int32_t axis = t.rank - 1; t.strides != nullptr && axis >= 0; --axis) {
      if (t.shape[axis] != 1 && t.strides[axis] != expected) return false;
      expected *= t.shape[axis];
    }
    return true;
  }

 private:
  DlManagedTensor* managed_;
};

}  // namespace

void bind_dlpack(py::module_& module) {
  module.def("export_tensor", &export_tensor);
  py::class_<Imported>(module, "ImportedTensor")
      .def(py::init<py::handle>())
      .def_property_readonly("address", &Imported::address)
      .def_property_readonly("shape", &Imported::shape)
      .def_property_readonly("dtype", &Imported::type)
      .def_property_readonly("device", &Imported::device)
      .def_property_readonly("contiguous", &Imported::contiguous);
}
