// Exercises a TensorRT plugin library without TensorRT: loads it, makes plugins from fields, clones
// them, asks shapes, types and formats, and on a GPU runs enqueue against double precision.
//
//   test_tensorrt_plugin LIBRARY [--gpu]
//
// Prints what fails; exit code 1 if anything did. The CUDA runtime is linked, libnvinfer is not.
#include <NvInferRuntime.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <dlfcn.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <vector>

using namespace nvinfer1;

namespace {

int failures = 0;

#define CHECK(condition)                                                   \
  do {                                                                     \
    if (!(condition)) {                                                    \
      std::printf("line %d: expected %s\n", __LINE__, #condition);         \
      ++failures;                                                          \
    }                                                                      \
  } while (false)

class CountingLogger : public ILogger {
 public:
  int errors = 0;
  void log(Severity severity, const char* /*message*/) noexcept override {
    if (severity <= Severity::kERROR) ++errors;
  }
};

class Finder : public ILoggerFinder {
 public:
  CountingLogger logger;
  ILogger* findLogger() noexcept override { return &logger; }
};

struct Sizes {
  int64_t batch = 2, anchors = 19, points = 5, views = 3, levels = 2, groups = 4, channels = 64;
  std::vector<int> maps = {8, 22, 4, 11, 7, 20, 3, 9, 1, 6, 2, 2};  // (view, level): height, width
  int64_t rows() const {
    int64_t sum = 0;
    for (size_t i = 0; i < maps.size(); i += 2) sum += int64_t{maps[i]} * maps[i + 1];
    return sum;
  }
};

Dims dims(std::initializer_list<int64_t> sizes) {
  Dims result{};
  result.nbDims = static_cast<int32_t>(sizes.size());
  int i = 0;
  for (int64_t size : sizes) result.d[i++] = size;
  return result;
}

std::vector<PluginTensorDesc> describe(const Sizes& s, DataType features, DataType index,
                                       DataType locations, DataType weights, DataType output) {
  const auto desc = [](Dims d, DataType t) {
    PluginTensorDesc result{};
    result.dims = d;
    result.type = t;
    result.format = TensorFormat::kLINEAR;
    result.scale = -1.0F;
    return result;
  };
  return {desc(dims({s.batch, s.rows(), s.channels}), features),
          desc(dims({s.views, s.levels, 2}), index),
          desc(dims({s.views, s.levels}), index),
          desc(dims({s.batch, s.anchors, s.points, s.views, 2}), locations),
          desc(dims({s.batch, s.anchors, s.points, s.views, s.levels, s.groups}), weights),
          desc(dims({s.batch, s.anchors, s.channels}), output)};
}

std::vector<DynamicPluginTensorDesc> dynamic(const std::vector<PluginTensorDesc>& all) {
  std::vector<DynamicPluginTensorDesc> result(all.size());
  for (size_t i = 0; i < all.size(); ++i) {
    result[i].desc = all[i];
    result[i].min = result[i].max = result[i].opt = all[i].dims;
  }
  return result;
}

template <typename Interface>
Interface* capability(IPluginV3* plugin, PluginCapabilityType type) {
  return static_cast<Interface*>(plugin->getCapabilityInterface(type));
}

struct NoExpressions : public IExprBuilder {};

void test_creators(IPluginCreatorInterface* const* creators, int32_t count) {
  std::set<std::string> names;
  for (int32_t i = 0; i < count; ++i) {
    auto* creator = static_cast<IPluginCreatorV3One*>(creators[i]);
    CHECK(std::strcmp(creator->getInterfaceInfo().kind, "PLUGIN CREATOR_V3ONE") == 0);
    names.insert(std::string(creator->getPluginNamespace()) + "::" + creator->getPluginName() +
                 "/" + creator->getPluginVersion());
    CHECK(creator->getFieldNames() != nullptr && creator->getFieldNames()->nbFields == 1);
  }
  CHECK(names == (std::set<std::string>{"::DeformableAggregation/1", "s4d::DeformableAggregation/1",
                                        "::DeformableAttentionAggrPlugin/1",
                                        "custom::DeformableAttentionAggrPlugin/1"}));
}

IPluginV3* create(IPluginCreatorV3One* creator, std::vector<PluginField> fields) {
  const PluginFieldCollection collection = {static_cast<int32_t>(fields.size()), fields.data()};
  return creator->createPlugin("layer", &collection, TensorRTPhase::kRUNTIME);
}

void test_fields(IPluginCreatorV3One* creator, Finder& finder) {
  const float good = 0.05F, negative = -1.0F, nan = std::numeric_limits<float>::quiet_NaN();
  const int32_t integer = 3;
  const auto scale = [](const void* data, PluginFieldType type, int32_t length) {
    return PluginField{"scale", data, type, length};
  };
  std::unique_ptr<IPluginV3> plugin(
      create(creator, {scale(&good, PluginFieldType::kFLOAT32, 1),
                       PluginField{"plugin_version", "1", PluginFieldType::kCHAR, 1},
                       PluginField{"plugin_namespace", "", PluginFieldType::kCHAR, 0}}));
  CHECK(plugin != nullptr);
  if (!plugin) return;
  auto* runtime =
      capability<IPluginV3OneRuntime>(plugin.get(), PluginCapabilityType::kRUNTIME);
  const PluginFieldCollection* stored = runtime->getFieldsToSerialize();
  CHECK(stored != nullptr && stored->nbFields == 1);
  CHECK(*static_cast<const float*>(stored->fields[0].data) == good);
  // A plugin made from what was stored, and a clone that outlives its original, hold the same.
  std::unique_ptr<IPluginV3> again(creator->createPlugin("x", stored, TensorRTPhase::kRUNTIME));
  std::unique_ptr<IPluginV3> clone(again->clone());
  again.reset();
  const auto* fields = capability<IPluginV3OneRuntime>(clone.get(), PluginCapabilityType::kRUNTIME)
                           ->getFieldsToSerialize();
  CHECK(*static_cast<const float*>(fields->fields[0].data) == good);
  std::unique_ptr<IPluginV3> attached(runtime->attachToContext(nullptr));
  CHECK(attached != nullptr);

  const int before = finder.logger.errors;
  CHECK(create(creator, {scale(&negative, PluginFieldType::kFLOAT32, 1)}) == nullptr);
  CHECK(create(creator, {scale(&nan, PluginFieldType::kFLOAT32, 1)}) == nullptr);
  CHECK(create(creator, {scale(&integer, PluginFieldType::kINT32, 1)}) == nullptr);
  CHECK(create(creator, {scale(nullptr, PluginFieldType::kFLOAT32, 1)}) == nullptr);
  CHECK(create(creator, {PluginField{"scales", &good, PluginFieldType::kFLOAT32, 1}}) == nullptr);
  CHECK(finder.logger.errors == before + 5);
  std::unique_ptr<IPluginV3> plain(creator->createPlugin("x", nullptr, TensorRTPhase::kBUILD));
  CHECK(plain != nullptr);
}

void test_build(IPluginCreatorV3One* creator) {
  std::unique_ptr<IPluginV3> plugin(create(creator, {}));
  auto* core = capability<IPluginV3OneCore>(plugin.get(), PluginCapabilityType::kCORE);
  auto* build = capability<IPluginV3OneBuild>(plugin.get(), PluginCapabilityType::kBUILD);
  CHECK(std::strcmp(core->getPluginName(), creator->getPluginName()) == 0);
  CHECK(std::strcmp(core->getPluginNamespace(), creator->getPluginNamespace()) == 0);
  CHECK(build->getNbOutputs() == 1);
  CHECK(build->getWorkspaceSize(nullptr, 0, nullptr, 0) == 0);

  const DataType f32 = DataType::kFLOAT, f16 = DataType::kHALF, i8 = DataType::kINT8,
                 i32 = DataType::kINT32, i64 = DataType::kINT64, bf16 = DataType::kBF16;
  const auto supported = [&](DataType f, DataType i, DataType l, DataType w, DataType o) {
    const auto all = dynamic(describe(Sizes(), f, i, l, w, o));
    bool every = true;
    for (int32_t p = 0; p < 6; ++p) {
      every = every && build->supportsFormatCombination(p, all.data(), 5, 1);
    }
    return every;
  };
  CHECK(supported(f32, i32, f32, f32, f32));
  CHECK(supported(f16, i32, f32, f16, f16));
  CHECK(supported(f16, i64, f16, f32, f16));
  CHECK(supported(bf16, i32, f32, bf16, bf16));
  CHECK(supported(i8, i32, f32, f32, f32));
  CHECK(supported(i8, i32, f32, f16, f16));
  CHECK(!supported(i8, i32, f32, f16, f32));
  CHECK(!supported(i8, i32, f32, f16, i8));
  CHECK(!supported(f32, i32, f32, f32, f16));
  CHECK(!supported(f32, f32, f32, f32, f32));
  CHECK(!supported(f32, i32, i8, f32, f32));
  auto packed = dynamic(describe(Sizes(), f16, i32, f32, f16, f16));
  packed[0].desc.format = TensorFormat::kCHW2;
  CHECK(!build->supportsFormatCombination(0, packed.data(), 5, 1));
  CHECK(!build->supportsFormatCombination(6, packed.data(), 5, 1));
  CHECK(!build->supportsFormatCombination(0, nullptr, 5, 1));

  const DataType in[5] = {i8, i32, i32, f32, f16};
  DataType out = i32;
  CHECK(build->getOutputDataTypes(&out, 1, in, 5) == 0 && out == f16);
  CHECK(build->getOutputDataTypes(&out, 1, in, 4) != 0);

  // The shape of the result is made of the inputs' own expressions.
  std::vector<DimsExprs> shapes(5);
  const int32_t ranks[5] = {3, 3, 2, 5, 6};
  static char tags[5][8];
  for (int i = 0; i < 5; ++i) {
    shapes[i].nbDims = ranks[i];
    for (int k = 0; k < ranks[i]; ++k) {
      shapes[i].d[k] = reinterpret_cast<const IDimensionExpr*>(&tags[i][k]);
    }
  }
  DimsExprs result{};
  NoExpressions builder;
  CHECK(build->getOutputShapes(shapes.data(), 5, nullptr, 0, &result, 1, builder) == 0);
  CHECK(result.nbDims == 3 && result.d[0] == shapes[0].d[0] && result.d[1] == shapes[3].d[1] &&
        result.d[2] == shapes[0].d[2]);
  CHECK(build->getOutputShapes(shapes.data(), 4, nullptr, 0, &result, 1, builder) != 0);

  const auto right = describe(Sizes(), f32, i32, f32, f32, f32);
  const auto open = dynamic(right);
  CHECK(build->configurePlugin(open.data(), 5, open.data() + 5, 1) == 0);
  CHECK(build->configurePlugin(open.data(), 4, open.data() + 5, 1) != 0);
  auto* runtime = capability<IPluginV3OneRuntime>(plugin.get(), PluginCapabilityType::kRUNTIME);
  CHECK(runtime->onShapeChange(right.data(), 5, right.data() + 5, 1) == 0);
  auto wrong = right;
  wrong[4].dims.d[3] = 2;
  CHECK(runtime->onShapeChange(wrong.data(), 5, wrong.data() + 5, 1) != 0);
  wrong = right;
  wrong[5].dims.d[1] = 1;
  CHECK(runtime->onShapeChange(wrong.data(), 5, wrong.data() + 5, 1) != 0);
  CHECK(runtime->onShapeChange(nullptr, 5, nullptr, 1) != 0);
  CHECK(runtime->enqueue(nullptr, nullptr, nullptr, nullptr, nullptr, nullptr) != 0);
}

// --- on the GPU ---

struct HostData {
  std::vector<double> features, locations, weights;
  std::vector<int> shapes, starts;
};

std::vector<double> truth(const Sizes& s, const HostData& d) {
  std::vector<double> out(s.batch * s.anchors * s.channels, 0.0);
  for (int64_t b = 0; b < s.batch; ++b)
    for (int64_t a = 0; a < s.anchors; ++a)
      for (int64_t p = 0; p < s.points; ++p)
        for (int64_t n = 0; n < s.views; ++n) {
          const int64_t at = ((b * s.anchors + a) * s.points + p) * s.views + n;
          const double x = d.locations[2 * at], y = d.locations[2 * at + 1];
          if (!(x > 0 && x < 1 && y > 0 && y < 1)) continue;
          for (int64_t l = 0; l < s.levels; ++l) {
            const int height = d.shapes[2 * (n * s.levels + l)];
            const int width = d.shapes[2 * (n * s.levels + l) + 1];
            const double px = x * width - 0.5, py = y * height - 0.5;
            const int x0 = static_cast<int>(std::floor(px)), y0 = static_cast<int>(std::floor(py));
            for (int k = 0; k < 4; ++k) {
              const int xk = x0 + (k & 1), yk = y0 + (k >> 1);
              if (xk < 0 || yk < 0 || xk >= width || yk >= height) continue;
              const double share = ((k & 1) ? px - x0 : 1 - px + x0) *
                                   ((k >> 1) ? py - y0 : 1 - py + y0);
              const int64_t row = b * s.rows() + d.starts[n * s.levels + l] + yk * width + xk;
              for (int64_t c = 0; c < s.channels; ++c) {
                const int64_t g = c / (s.channels / s.groups);
                out[(b * s.anchors + a) * s.channels + c] +=
                    d.weights[(at * s.levels + l) * s.groups + g] * share *
                    d.features[row * s.channels + c];
              }
            }
          }
        }
  return out;
}

size_t width_of(DataType type) {
  return type == DataType::kFLOAT || type == DataType::kINT32 ? 4 : type == DataType::kHALF ? 2 : 1;
}

// Stores `values` in `type` on the device, and what was stored back into `values`.
void* upload(std::vector<double>& values, DataType type, float scale) {
  std::vector<unsigned char> raw(values.size() * width_of(type));
  for (size_t i = 0; i < values.size(); ++i) {
    if (type == DataType::kFLOAT) {
      const float v = static_cast<float>(values[i]);
      std::memcpy(&raw[4 * i], &v, 4);
      values[i] = v;
    } else if (type == DataType::kHALF) {
      const __half v = __float2half(static_cast<float>(values[i]));
      std::memcpy(&raw[2 * i], &v, 2);
      values[i] = __half2float(v);
    } else {
      const double v = std::fmin(127.0, std::fmax(-128.0, std::nearbyint(values[i] / scale)));
      raw[i] = static_cast<unsigned char>(static_cast<signed char>(v));
      values[i] = v * static_cast<double>(scale);
    }
  }
  void* device = nullptr;
  CHECK(cudaMalloc(&device, raw.size()) == cudaSuccess);
  CHECK(cudaMemcpy(device, raw.data(), raw.size(), cudaMemcpyHostToDevice) == cudaSuccess);
  return device;
}

void test_enqueue(IPluginCreatorV3One* creator, const Sizes& s, DataType features,
                  DataType locations, DataType weights, double limit) {
  std::mt19937 random(7 + static_cast<unsigned>(s.channels));
  std::normal_distribution<double> normal;
  std::uniform_real_distribution<double> uniform(-0.3, 1.3);
  HostData d;
  d.shapes = s.maps;
  int start = 0;
  for (size_t i = 0; i < s.maps.size(); i += 2) {
    d.starts.push_back(start);
    start += s.maps[i] * s.maps[i + 1];
  }
  d.features.resize(s.batch * s.rows() * s.channels);
  d.locations.resize(s.batch * s.anchors * s.points * s.views * 2);
  d.weights.resize(d.locations.size() / 2 * s.levels * s.groups);
  for (double& v : d.features) v = normal(random);
  for (double& v : d.locations) v = uniform(random);
  for (double& v : d.weights) v = normal(random);
  d.locations[0] = std::numeric_limits<double>::quiet_NaN();
  d.locations[3] = std::numeric_limits<double>::infinity();
  const float scale = 0.031F;
  std::vector<void*> buffers = {upload(d.features, features, scale), nullptr, nullptr,
                                upload(d.locations, locations, scale),
                                upload(d.weights, weights, scale)};
  for (int i = 1; i < 3; ++i) {
    const std::vector<int>& table = i == 1 ? d.shapes : d.starts;
    CHECK(cudaMalloc(&buffers[i], table.size() * 4) == cudaSuccess);
    CHECK(cudaMemcpy(buffers[i], table.data(), table.size() * 4, cudaMemcpyHostToDevice) ==
          cudaSuccess);
  }
  const DataType type = features == DataType::kINT8 ? weights : features;
  const auto desc = describe(s, features, DataType::kINT32, locations, weights, type);
  const int64_t size = s.batch * s.anchors * s.channels;
  void* output = nullptr;
  CHECK(cudaMalloc(&output, size * width_of(type)) == cudaSuccess);

  std::unique_ptr<IPluginV3> plugin(
      create(creator, {PluginField{"scale", &scale, PluginFieldType::kFLOAT32, 1}}));
  auto* runtime = capability<IPluginV3OneRuntime>(plugin.get(), PluginCapabilityType::kRUNTIME);
  CHECK(runtime->onShapeChange(desc.data(), 5, desc.data() + 5, 1) == 0);
  cudaStream_t stream;
  CHECK(cudaStreamCreate(&stream) == cudaSuccess);
  const std::vector<double> expected = truth(s, d);
  std::vector<unsigned char> first;
  for (int run = 0; run < 2; ++run) {  // twice on the same buffers: nothing accumulates
    CHECK(cudaMemset(output, 0xff, size * width_of(type)) == cudaSuccess);  // NaN everywhere
    CHECK(runtime->enqueue(desc.data(), desc.data() + 5, buffers.data(), &output, nullptr,
                           stream) == 0);
    CHECK(cudaStreamSynchronize(stream) == cudaSuccess);
    std::vector<unsigned char> raw(size * width_of(type));
    CHECK(cudaMemcpy(raw.data(), output, raw.size(), cudaMemcpyDeviceToHost) == cudaSuccess);
    double error = 0, norm = 0;
    for (int64_t i = 0; i < size; ++i) {
      float value;
      if (type == DataType::kFLOAT) {
        std::memcpy(&value, &raw[4 * i], 4);
      } else {
        __half half;
        std::memcpy(&half, &raw[2 * i], 2);
        value = __half2float(half);
      }
      error += (value - expected[i]) * (value - expected[i]);
      norm += expected[i] * expected[i];
    }
    const double relative = std::sqrt(error / norm);
    if (!(relative <= limit)) {
      std::printf("features type %d, %d channels: relative error %g, limit %g\n",
                  static_cast<int>(features), static_cast<int>(s.channels), relative, limit);
      ++failures;
    }
    if (run == 0) first = raw;
    CHECK(raw == first);
  }
  for (void* buffer : buffers) cudaFree(buffer);
  cudaFree(output);
  cudaStreamDestroy(stream);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) return 2;
  void* library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    std::printf("cannot load: %s\n", dlerror());
    return 1;
  }
  using Getter = IPluginCreatorInterface* const* (*)(int32_t&);
  const auto get = reinterpret_cast<Getter>(dlsym(library, "getCreators"));
  const auto set_finder =
      reinterpret_cast<void (*)(ILoggerFinder*)>(dlsym(library, "setLoggerFinder"));
  CHECK(get != nullptr && set_finder != nullptr);
  if (failures != 0) return 1;
  Finder finder;
  set_finder(&finder);
  int32_t count = 0;
  IPluginCreatorInterface* const* creators = get(count);
  CHECK(count == 4);
  test_creators(creators, count);
  for (int32_t i = 0; i < count; ++i) {
    auto* creator = static_cast<IPluginCreatorV3One*>(creators[i]);
    test_fields(creator, finder);
    test_build(creator);
  }
  if (argc > 2 && std::strcmp(argv[2], "--gpu") == 0) {
    auto* creator = static_cast<IPluginCreatorV3One*>(creators[1]);
    for (const int64_t channels : {64, 256, 36}) {
      Sizes s;
      s.channels = channels;
      const DataType f32 = DataType::kFLOAT, f16 = DataType::kHALF, i8 = DataType::kINT8;
      test_enqueue(creator, s, f32, f32, f32, 1e-6);
      test_enqueue(creator, s, f16, f32, f16, 2e-3);
      test_enqueue(creator, s, f16, f16, f32, 2e-3);
      test_enqueue(creator, s, i8, f32, f32, 1e-6);
      test_enqueue(creator, s, i8, f32, f16, 2e-3);
    }
  }
  std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
